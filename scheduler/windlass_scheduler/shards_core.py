"""Which rows of a data set each worker of a job reads: batches of an epoch, handed out in shards.

A *loader* is one pass over a data set of `length` rows, equal on every worker. Its epoch is fixed when
somebody first comes to it: the ranks taking part, N of them, and the batches. Balanced, every worker gets
equally many:

    R = ceil(length / (N * size)) rounds;  min(R * N, length) batches, sizes differing by at most 1;
    batch k is rows [k * length // batches, (k + 1) * length // batches) and belongs to position k mod N
    drop_last: floor(length / (N * size)) rounds of batches of exactly `size`

Unbalanced, batches of `size` go to whoever asks. A shard is up to 16 batches of one epoch; the worker reports
it done with a later call. When a worker ends, what it was not yet handed and what it did not report done
goes, evenly split, to the survivors of the epoch (or waits for whoever comes): every row is read at least
once an epoch, exactly once if nobody ends.

A resumed pass begins where a checkpoint left it: with the same cut if as many workers read it as before, else
with the rest of the epoch's rows cut anew.

Invariant (`validate`): the queues, the shards out and those done tile the batches of every open epoch.

A queue is a few arithmetic runs of batch numbers, so a billion rows cost no more than ten. Owner: the loop
that drives it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from typing import Final, TypeAlias, cast

from windlass_proto.errors import UnavailableError, UsageError
from windlass_scheduler import limits
from windlass_scheduler.counters import Counters
from windlass_scheduler.effects import Answer, Effect, Persist, Record, Say


@dataclass(frozen=True, slots=True)
class Run:
    """Batch numbers first, first + stride, ... of which there are `count`."""

    first: int
    count: int
    stride: int

    def split(self, at: int) -> tuple[Run, Run]:
        rest = Run(self.first + at * self.stride, self.count - at, self.stride)
        return Run(self.first, at, self.stride), rest

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.first, self.first + self.count * self.stride, self.stride))


@dataclass(frozen=True, slots=True)
class Position:
    """Of the `batches` of `epoch`, dealt to `workers` (1: to whoever asks), each has had `rounds`: `row` rows."""

    epoch: int
    rounds: int
    workers: int
    batches: int
    row: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What every worker must ask for alike. `start`: where a checkpoint left this pass, None: at its beginning."""

    length: int
    size: int
    epochs: int
    drop_last: bool
    balanced: bool
    start: Position | None = None


# Events


@dataclass(frozen=True, slots=True)
class NextShard:
    """`ranks` take part in an epoch that begins now: live workers of the job and those it still expects."""

    waiter: int
    session: bytes
    rank: int
    job: str
    loader: str
    plan: Plan
    shards_done: tuple[int, ...]
    call: int
    ranks: frozenset[int]


@dataclass(frozen=True, slots=True)
class WorkerGone:
    session: bytes
    rank: int
    job: str
    live: frozenset[int]


@dataclass(frozen=True, slots=True)
class JobOver:
    """The last worker of the job left in order: another run of it reads from the start."""

    job: str


Event: TypeAlias = NextShard | WorkerGone | JobOver


@dataclass(frozen=True, slots=True)
class Shard:
    """Rows of `batches` as (begin, end) in the epoch's order.

    `positions`: by batch, where the pass is once every worker has used its like.
    """

    shard_id: int
    epoch: int
    batches: tuple[tuple[int, int], ...]
    batches_per_worker: int
    positions: tuple[Position, ...]


@dataclass(frozen=True, slots=True)
class Exhausted:
    """Answer: nothing is left for this worker."""


# State


@dataclass(frozen=True, slots=True)
class _Out:
    """A shard in a worker's hands."""

    shard_id: int
    session: bytes
    epoch: int
    run: Run


@dataclass(slots=True)
class _Epoch:
    """`queues` by rank; a shared queue (unbalanced, or left by the dead) is under rank -1.

    Its batches are those of rows [begin_row, length); of a resumed epoch dealt to others than before, the rest.
    """

    ranks: tuple[int, ...]
    batches: int
    queues: dict[int, list[Run]]
    done: int = 0
    begin_row: int = 0


@dataclass(slots=True)
class _Loader:
    job: str
    name: str
    plan: Plan
    rank: int
    epochs: dict[int, _Epoch] = field(default_factory=dict)
    epochs_begun: int = 0
    out: dict[int, _Out] = field(default_factory=dict)
    answered: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """By session, the last call and the shard it was answered with (0: exhausted)."""


_PREFIX: Final = "loader/"
_SHARED: Final = -1


class Shards:
    """`step(event) -> effects`; a refused request raises and changes nothing."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._loaders: dict[tuple[str, str], _Loader] = {}

    def step(self, event: Event) -> list[Effect]:
        match event:
            case NextShard():
                return self._next(event)
            case WorkerGone():
                loaders = [loader for loader in self._loaders.values() if loader.job == event.job]
                return [effect for loader in loaders for effect in self._gone(loader, event)]
            case JobOver():
                over = [key for key in self._loaders if key[0] == event.job]
                for key in over:
                    del self._loaders[key]
                return [Persist(f"{_PREFIX}{job}/{name}", None) for job, name in over]

    # Handing out

    def _next(self, event: NextShard) -> list[Effect]:
        loader = self._loader(event)
        call, answered = loader.answered.get(event.session, (0, 0))
        if event.call and event.call == call:
            return [Answer(event.waiter, self._shard(loader, loader.out[answered]) if answered else Exhausted())]
        for shard_id in event.shards_done:
            self._report_done(loader, event.session, shard_id)
        _close_epochs(loader)
        if len(loader.epochs) >= limits.EPOCHS_OPEN_MAX:
            raise UnavailableError(
                f"another worker is too far behind in {loader.name}",
                epoch=loader.epochs_begun,
                epoch_open=min(loader.epochs),
                next_move="Wait for it, or stop it: its batches then go to the others.",
            )
        shard = self._take(loader, event)
        loader.answered[event.session] = (event.call, shard.shard_id if shard else 0)
        _close_epochs(loader)
        answer = Answer(event.waiter, self._shard(loader, shard) if shard else Exhausted())
        return [*self._drop_oldest(loader), _record(loader), answer]

    def _loader(self, event: NextShard) -> _Loader:
        loader = self._loaders.get((event.job, event.loader))
        if loader is None:
            _check(event)
            self._check_room(event.job)
            start = event.plan.start
            loader = _Loader(event.job, event.loader, event.plan, event.rank)
            loader.epochs_begun = start.epoch if start is not None else 0
            self._loaders[event.job, event.loader] = loader
        elif loader.plan != event.plan:
            _refuse(loader, event)
        return loader

    def _report_done(self, loader: _Loader, session: bytes, shard_id: int) -> None:
        out = loader.out.get(shard_id)
        if out is not None and out.session == session:
            del loader.out[shard_id]
            loader.epochs[out.epoch].done += out.run.count

    def _take(self, loader: _Loader, event: NextShard) -> _Out | None:
        for number in sorted(loader.epochs):
            out = self._take_of(loader, number, event)
            if out is not None:
                return out
        while loader.epochs_begun < loader.plan.epochs:
            number = loader.epochs_begun
            loader.epochs[number] = _begin(loader.plan, number, event.ranks | {event.rank})
            loader.epochs_begun += 1
            out = self._take_of(loader, number, event)
            if out is not None:
                return out
            _close_epochs(loader)
        return None

    def _take_of(self, loader: _Loader, number: int, event: NextShard) -> _Out | None:
        epoch = loader.epochs[number]
        for rank in (event.rank, _SHARED):
            queue = epoch.queues.get(rank)
            if not queue:
                continue
            at_most = min(limits.SHARD_BATCHES_MAX, queue[0].count)
            if rank == _SHARED:
                left = sum(run.count for run in queue)
                at_most = min(at_most, max(1, left // (2 * len(epoch.ranks))))
            run, rest = queue[0].split(at_most)
            if rest.count:
                queue[0] = rest
            else:
                del queue[0]
            out = _Out(self._counters.take("shard"), event.session, number, run)
            loader.out[out.shard_id] = out
            return out
        return None

    def _shard(self, loader: _Loader, out: _Out) -> Shard:
        plan, epoch = loader.plan, loader.epochs[out.epoch]
        rows = tuple(_rows(plan, epoch, batch) for batch in out.run)
        positions = tuple(_position(plan, epoch, out.epoch, batch) for batch in out.run)
        return Shard(out.shard_id, out.epoch, rows, -(-epoch.batches // len(epoch.ranks)), positions)

    # A worker ends

    def _gone(self, loader: _Loader, event: WorkerGone) -> list[Effect]:
        returned: dict[int, list[Run]] = {}
        for out in [out for out in loader.out.values() if out.session == event.session]:
            del loader.out[out.shard_id]
            returned.setdefault(out.epoch, []).append(out.run)
        for number, epoch in loader.epochs.items():
            left = epoch.queues.pop(event.rank, [])
            if left:
                returned.setdefault(number, []).extend(left)
        known = loader.answered.pop(event.session, None)
        if not returned:
            return [_record(loader)] if known else []
        for number, runs in returned.items():
            epoch = loader.epochs[number]
            survivors = [rank for rank in epoch.ranks if rank in event.live and rank != event.rank]
            for rank, run in _dealt(runs, survivors or [_SHARED]):
                epoch.queues.setdefault(rank, []).append(run)
        batches = sum(run.count for runs in returned.values() for run in runs)
        text = f"{batches} batches of rank {event.rank} in {loader.name} go to the others"
        return [_record(loader), Say("shards_returned", text, loader.job)]

    def _check_room(self, job: str) -> None:
        unfinished = sum(loader.job == job and not _finished(loader) for loader in self._loaders.values())
        if unfinished >= limits.LOADERS_PER_JOB_MAX:
            raise UsageError("a job reads too many data sets at once", loaders_max=limits.LOADERS_PER_JOB_MAX)

    def _drop_oldest(self, latest: _Loader) -> list[Effect]:
        """Forget finished loaders of the job, the oldest first, once there are too many."""
        mine = [loader for loader in self._loaders.values() if loader.job == latest.job]
        surplus = len(mine) - limits.LOADERS_PER_JOB_MAX
        finished = [loader for loader in mine if loader is not latest and _finished(loader)]
        dropped = finished[: max(0, surplus)]
        for loader in dropped:
            del self._loaders[loader.job, loader.name]
        return [Persist(f"{_PREFIX}{loader.job}/{loader.name}", None) for loader in dropped]

    # Lasting

    def restore(self, records: Mapping[str, Record]) -> None:
        for record in records.values():
            loader = _loader(record)
            self._loaders[loader.job, loader.name] = loader

    def validate(self) -> None:
        for loader in self._loaders.values():
            for number, epoch in loader.epochs.items():
                queued = [b for runs in epoch.queues.values() for run in runs for b in run]
                held = [b for out in loader.out.values() if out.epoch == number for b in out.run]
                assert len(queued) + len(held) + epoch.done == epoch.batches, "queued, out and done tile the epoch"
                assert len({*queued, *held}) == len(queued) + len(held), "a batch is in one place"
            assert {out.epoch for out in loader.out.values()} <= loader.epochs.keys()


def _begin(plan: Plan, number: int, ranks: frozenset[int]) -> _Epoch:
    taking_part = tuple(sorted(ranks))
    start = plan.start if plan.start is not None and plan.start.epoch == number else None
    fresh = _epoch(plan, taking_part, 0)
    if start is None:
        return fresh
    dealt_to = len(taking_part) if plan.balanced else 1
    if (start.workers, start.batches) != (dealt_to, fresh.batches):
        return _epoch(plan, taking_part, min(start.row, plan.length))
    for queue in fresh.queues.values():
        for run in queue:
            queue[:] = [rest for rest in run.split(min(start.rounds, run.count))[1:] if rest.count]
    fresh.done = fresh.batches - sum(run.count for queue in fresh.queues.values() for run in queue)
    return fresh


def _epoch(plan: Plan, ranks: tuple[int, ...], begin_row: int) -> _Epoch:
    """The whole of rows [begin_row, length), cut and dealt."""
    n, length = len(ranks), plan.length - begin_row
    if not plan.balanced:
        batches = length // plan.size if plan.drop_last else -(-length // plan.size)
        return _Epoch(ranks, batches, {_SHARED: [Run(0, batches, 1)] if batches else []}, 0, begin_row)
    whole, rounded_up = length // (n * plan.size) * n, -(-length // (n * plan.size)) * n
    batches = whole if plan.drop_last else min(rounded_up, length)
    queues = {
        rank: [Run(position, len(range(position, batches, n)), n)] if position < batches else []
        for position, rank in enumerate(ranks)
    }
    return _Epoch(ranks, batches, queues, 0, begin_row)


def _rows(plan: Plan, epoch: _Epoch, batch: int) -> tuple[int, int]:
    first, length = epoch.begin_row, plan.length - epoch.begin_row
    if plan.balanced and not plan.drop_last:
        return first + batch * length // epoch.batches, first + (batch + 1) * length // epoch.batches
    return first + batch * plan.size, min(first + (batch + 1) * plan.size, plan.length)


def _position(plan: Plan, epoch: _Epoch, number: int, batch: int) -> Position:
    """Where the pass is when every worker has used its batch of the round that `batch` is in.

    An epoch whose beginning was dealt to others is described by rows alone: `batches` is what no dealing has.
    """
    workers = len(epoch.ranks) if plan.balanced else 1
    rounds = batch // workers + 1
    row = _rows(plan, epoch, min(rounds * workers, epoch.batches) - 1)[1]
    return Position(number, rounds, workers, 0 if epoch.begin_row else epoch.batches, row)


def _dealt(runs: Sequence[Run], ranks: Sequence[int]) -> Iterator[tuple[int, Run]]:
    """`runs` in order, cut so that each of `ranks` gets an equal part (the first ones one batch more)."""
    total = sum(run.count for run in runs)
    ends = [total * (i + 1) // len(ranks) for i in range(len(ranks))]
    passed, i = 0, 0
    for run in runs:
        while run.count:
            while ends[i] <= passed:
                i += 1
            part, run = run.split(min(run.count, ends[i] - passed))
            passed += part.count
            yield ranks[i], part


def _close_epochs(loader: _Loader) -> None:
    """Forget epochs that are done; a shard that a retry may ask for is still out, so its epoch is not."""
    for number in [number for number, epoch in loader.epochs.items() if epoch.done == epoch.batches]:
        del loader.epochs[number]


def _finished(loader: _Loader) -> bool:
    return not loader.epochs and loader.epochs_begun == loader.plan.epochs


def _check(event: NextShard) -> None:
    plan = event.plan
    if not event.loader or len(event.loader.encode()) > limits.NAME_BYTES_MAX:
        raise UsageError("a data loader needs a name", bytes_max=limits.NAME_BYTES_MAX)
    for what, value, value_max in (
        ("length", plan.length, limits.LOADER_ROWS_MAX),
        ("size", plan.size, limits.LOADER_ROWS_MAX),
        ("epochs", plan.epochs, limits.LOADER_EPOCHS_MAX),
    ):
        if not 1 <= value <= value_max:
            raise UsageError(f"batches need {what} in range", given=value, allowed=f"1..{value_max}")
    workers = len(event.ranks | {event.rank})
    full = plan.length // (plan.size * (workers if plan.balanced else 1))
    if plan.drop_last and not full:
        raise UsageError(
            "drop_last leaves no batch at all",
            rows=plan.length,
            size=plan.size,
            workers=workers,
            next_move="Take a smaller size, or drop_last=False.",
        )


def _refuse(loader: _Loader, event: NextShard) -> None:
    raise UsageError(
        f"workers read {event.loader} differently",
        **{
            f"rank_{loader.rank}_asked": _plan_text(loader.plan),
            f"rank_{event.rank}_asks": _plan_text(event.plan),
        },
        next_move="Give the same arguments to cluster.batches on every worker.",
    )


def _plan_text(plan: Plan) -> str:
    return (
        f"{plan.length} rows, size {plan.size}, {plan.epochs} epochs, "
        f"drop_last={plan.drop_last}, balanced={plan.balanced}"
        + (f", from row {plan.start.row} of epoch {plan.start.epoch}" if plan.start is not None else "")
    )


def _record(loader: _Loader) -> Persist:
    plan = loader.plan
    return Persist(
        f"{_PREFIX}{loader.job}/{loader.name}",
        {
            "job": loader.job,
            "name": loader.name,
            "plan": [plan.length, plan.size, plan.epochs, plan.drop_last, plan.balanced],
            "start": list(astuple(plan.start)) if plan.start is not None else None,
            "rank": loader.rank,
            "epochs_begun": loader.epochs_begun,
            "epochs": [
                {
                    "number": number,
                    "ranks": list(epoch.ranks),
                    "batches": epoch.batches,
                    "done": epoch.done,
                    "begin_row": epoch.begin_row,
                    "queues": [
                        [rank, [[run.first, run.count, run.stride] for run in runs]]
                        for rank, runs in epoch.queues.items()
                    ],
                }
                for number, epoch in loader.epochs.items()
            ],
            "out": [
                [out.shard_id, out.session.hex(), out.epoch, out.run.first, out.run.count, out.run.stride]
                for out in loader.out.values()
            ],
            "answered": [[session.hex(), *answer] for session, answer in loader.answered.items()],
        },
    )


def _loader(record: Record) -> _Loader:
    length, size, epochs, drop_last, balanced = cast("tuple[int, int, int, bool, bool]", record["plan"])
    start = cast("list[int] | None", record.get("start"))
    loader = _Loader(
        job=cast("str", record["job"]),
        name=cast("str", record["name"]),
        plan=Plan(length, size, epochs, drop_last, balanced, Position(*start) if start else None),
        rank=cast("int", record["rank"]),
        epochs_begun=cast("int", record["epochs_begun"]),
    )
    for stored in cast("list[dict[str, object]]", record["epochs"]):
        queues = cast("list[tuple[int, list[list[int]]]]", stored["queues"])
        loader.epochs[cast("int", stored["number"])] = _Epoch(
            ranks=tuple(cast("list[int]", stored["ranks"])),
            batches=cast("int", stored["batches"]),
            queues={rank: [Run(*run) for run in runs] for rank, runs in queues},
            done=cast("int", stored["done"]),
            begin_row=cast("int", stored.get("begin_row", 0)),
        )
    for shard_id, session, epoch, *run in cast("list[tuple[int, str, int, int, int, int]]", record["out"]):
        loader.out[shard_id] = _Out(shard_id, bytes.fromhex(session), epoch, Run(*run))
    for session, call, shard_id in cast("list[tuple[str, int, int]]", record["answered"]):
        loader.answered[bytes.fromhex(session)] = (call, shard_id)
    return loader
