"""A sparse table as a worker uses it: rows by id, from arrays of ids to entries by band and back.

    ids of the call      7 3 7 9           grads   a b c d
    plan order           3 | 7 9           each id once, vshard after vshard; | is where a band ends
    an entry each band   [3][b]  [7 9][a+c d]
    pull                 rows of 3 | 7 9 -> rows in the order asked: 7 3 7 9

Steps, marks, tickets and retries are those of dense tensors: an entry of a band is an entry of a share.

Invariant: what a ticket sends or receives lies in memory that is the ticket's alone until it is settled. A call larger
than a frame is cut into several entries a band, none of which says that it is the last: the step's mark does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from windlass import row_values
from windlass.arrays import Array
from windlass.data_link import InArena, InFrame
from windlass.dense_table import Span
from windlass.plan import Plan
from windlass.rooms import Room, Rooms
from windlass.row_encoder import RowEncoder, Runs
from windlass.row_values import Policy, Target
from windlass.ticket import Ticket
from windlass_proto import ids as id_kernels
from windlass_proto import limits, row_moves, table_specs
from windlass_proto.consistency import Mode
from windlass_proto.errors import UsageError
from windlass_proto.frames import Op, aligned
from windlass_proto.table_specs import TableSpec

if TYPE_CHECKING:
    from windlass.store import Store

_STATS_BYTES: Final = 64
_SOME_ROWS: Final = 4096

Numbers = npt.NDArray[np.int64]


class Table:
    """Made by `store.table(name, dim, ...)`; see the module. It belongs to its store's lock."""

    def __init__(self, store: Store, spec: TableSpec) -> None:
        self.name = spec.name
        self.dim = spec.dim
        self.dtype = spec.dtype
        self.spec = spec
        self._store = store
        self._held_row_bytes = spec.dim * spec.held.itemsize
        self.encoder: RowEncoder | None = None
        row = self._held_row_bytes
        if spec.up is not None or spec.down is not None:
            exchange = store.exchange
            self.encoder = RowEncoder(
                spec,
                rank=store.member.joined.rank,
                steps_done=lambda: exchange.steps_done(),  # noqa: PLW0108 - said later
            )
            row = max(1, max(self._bytes_up(_SOME_ROWS), self._bytes_down(_SOME_ROWS)) // _SOME_ROWS)
        self._entry_rows = max(1, limits.FRAME_PAYLOAD_BYTES_TARGET // (row + 8))
        self._policy = Policy(spec.transfer.nonfinite, store.exchange.replaced, store.member.joined.rank)
        self._bands: tuple[int, list[range]] = (-1, [])
        self._rooms = Rooms(store.member.heap)
        self._plan_rooms = Rooms(None)

    def __repr__(self) -> str:
        return f"<windlass table {self.name!r} of {self.dim} x {self.spec.dtype_name}>"

    # ---- rows --------------------------------------------------------------------------------------------------------

    def pull(self, ids: Any) -> Ticket:
        """Ask for rows; closes the step if something was pushed in it, as `store.pull` does.

        The ticket's result has the shape ids.shape + (dim,). A row that nobody pushed to is what the initialiser gives,
        and stays absent.

        Args:
            ids: any shape, any integer dtype, not negative; an id may be given more than once.
        """
        return self._store.ask(Op.PULL, functools.partial(self.pull_plan, ids))

    def push(self, ids: Any, grads: Any, *, weight: float = 1.0, priority: int = 0) -> Ticket:
        """Send gradients of rows as part of the current step; those of one id are summed. They are copied.

        Args:
            ids: any shape, any integer dtype, not negative.
            grads: of the shape ids.shape + (dim,) and the table's dtype. Half types are summed as float32.
            weight: this worker's weight in the mean, the same for all pushes of a step. Under "bsp" a row's mean is
                over the workers that pushed to the table in the step; who did not name the row counts as zeros.
        """
        make = functools.partial(self.push_plan, Op.PUSH, ids, grads)
        return self._store.send(Op.PUSH, make, weight=weight, priority=priority)

    def push_pull(self, ids: Any, grads: Any, *, weight: float = 1.0, priority: int = 0) -> Ticket:
        """Push, close the step, and ask for the same rows after it; the result has the shape of `grads`."""
        make = functools.partial(self.push_plan, Op.PUSH_PULL, ids, grads)
        return self._store.send(Op.PUSH_PULL, make, weight=weight, priority=priority)

    def erase(self, ids: Any) -> None:
        """Take rows and their slots away, once the steps before this one are complete; absent ids are no matter.

        Who pulls such an id is given the initialiser's row; who pushes to it makes it anew.
        """
        wanted, _ = row_values.ids_of(self.name, ids)
        if self.encoder is not None and self.encoder.residuals is not None:
            self.encoder.residuals.forget(wanted)
        self._store.send(Op.ERASE, functools.partial(self._erase_plan, wanted)).result()

    def __len__(self) -> int:
        """How many rows the servers hold now. It asks them."""
        return sum(counts[0] for counts in self._stats())

    def figures(self) -> dict[str, int]:
        """What the servers hold of it and have decided, over all of them: it asks them.

        `rows` and their `bytes`; `rows_evicted`, and `pushes_not_admitted` (of single ids), since the servers started
        or a checkpoint came back. Rows that have expired count until their memory is given back, some pushes later.
        Under a codec with feedback also what this worker keeps: of how many ids (`feedback_rows`), in how many bytes,
        and of how many others it had to drop it.
        """
        totals = [sum(counts) for counts in zip(*self._stats(), strict=True)]
        names = ("rows", "bytes", "rows_evicted", "pushes_not_admitted")
        found = dict(zip(names, totals[:1] + totals[2:], strict=True))
        kept = self.encoder.residuals if self.encoder is not None else None
        if kept is None:
            return found
        return found | {
            "feedback_rows": len(kept),
            "feedback_bytes": kept.nbytes,
            "feedback_rows_dropped": kept.dropped,
        }

    def hot(self, n: int = 10) -> list[tuple[int, int]]:
        """The ids that are named most often, and about how many pushes and pulls named each; it asks the servers.

        From one id in 512, so what was named seldom is not among them; older calls count less.

        Args:
            n: how many, 1 to 128.
        """
        if type(n) is not int or not 1 <= n <= limits.HOT_ROWS_MAX:
            raise UsageError("hot was asked for a wrong number of rows", n=n, allowed=f"1..{limits.HOT_ROWS_MAX}")
        found: list[list[int]] = self._store.ask(Op.STATS, functools.partial(self.stats_plan, n)).result()
        pairs = [pair for said in found for pair in zip(said[8::2], said[9::2], strict=True) if pair[1]]
        return sorted(pairs, key=lambda pair: -pair[1])[:n]

    def items(self) -> Iterator[tuple[Array, Array]]:
        """Every row, in runs: (ids, rows) of shapes (n,) and (n, dim). Under "asp" others may push meanwhile."""
        for band, (_, used, *_) in zip(self.bands(), self._stats(), strict=True):
            for begin in range(0, used, self._entry_rows):
                scan = functools.partial(self._scan_plan, band, begin, min(used, begin + self._entry_rows))
                ids, rows = self._store.ask(Op.SCAN, scan).result()
                if ids.size:
                    yield ids, rows

    def bands(self) -> list[range]:
        """The shares of this table as the routing has them: runs of vshards."""
        member = self._store.member
        if self._bands[0] != member.generation:
            found: list[range] = []
            vshards, begin = self.spec.vshards, 0
            for v in range(1, vshards + 1):
                if v == vshards or member.server_of(v) != member.server_of(begin):
                    found += table_specs.bands(range(begin, v), vshards)
                    begin = v
            self._bands = (member.generation, found)
        return self._bands[1]

    # ---- arguments ---------------------------------------------------------------------------------------------------

    def _gradients(self, ids: Any, grads: Any) -> tuple[id_kernels.Ids, tuple[int, ...], Array]:
        wanted, shape = row_values.ids_of(self.name, ids)
        full, dtype = (*shape, self.dim), self.spec.dtype_name
        return wanted, shape, row_values.gradients_of(self.name, grads, wanted, full, dtype, self._policy)

    def _target(self, shape: tuple[int, ...], out: Any, like: Any) -> Target:
        return row_values.target(self.name, (*shape, self.dim), self.spec.dtype_name, out, like)

    def _bytes_up(self, rows: int) -> int:
        return rows * self._held_row_bytes if self.encoder is None else self.encoder.bytes_up(rows)

    def _bytes_down(self, rows: int) -> int:
        return rows * self._held_row_bytes if self.encoder is None else self.encoder.bytes_down(rows)

    # ---- plans -------------------------------------------------------------------------------------------------------

    def _plan(self, ids: id_kernels.Ids) -> tuple[id_kernels.IdPlan, Callable[[], None]]:
        """The ids of a call in plan order, and what to call once that is needed no more."""
        room = self._plan_rooms.take(id_kernels.PLAN_BYTES * ids.size)
        plan = id_kernels.plan(ids, self.spec.seed, self.spec.vshards, room.array)
        return plan, functools.partial(self._plan_rooms.give, room)

    def _cut(self, plan: id_kernels.IdPlan, *, every_band: bool = False) -> list[tuple[range, int, int]]:
        """Runs of the plan, one an entry: its band, begin and end. `every_band`: bands without ids have one too."""
        found = []
        for band in self.bands():
            begin, end = int(plan.begins[band.start]), int(plan.begins[band.stop])
            for at in range(begin, end, self._entry_rows):
                found.append((band, at, min(end, at + self._entry_rows)))
            if begin == end and every_band:
                found.append((band, begin, end))
        return found

    def push_plan(self, op: Op, ids: Any, grads: Any, out: Any = None) -> Plan:
        """Send gradients of rows; with PUSH_PULL the rows come back, into `out` where it is given."""
        wanted, shape, array = self._gradients(ids, grads)
        plan, done = self._plan(wanted)
        runs = self._cut(plan, every_band=self.spec.mean and self._store.modes.at(self._store.clock).mode is Mode.BSP)
        target = self._target(shape, out, grads) if op is Op.PUSH_PULL else None
        room, sent, encode = self._staged(plan, runs, array)
        settle = [lambda: self._rooms.give(room)]
        if target is None:
            if encode:
                encode = (*encode, done)
            else:
                done()
            return self._planned(runs, sent, [None] * len(runs), settle, None, encode)
        return self._planned(runs, sent, *self._received(plan, done, runs, target, settle), encode)

    def pull_plan(self, ids: Any, out: Any = None) -> Plan:
        """Ask for rows, into `out` where it is given."""
        wanted, shape = row_values.ids_of(self.name, ids)
        plan, done = self._plan(wanted)
        runs = self._cut(plan)
        target = self._target(shape, out, ids)
        room, sent, _ = self._staged(plan, runs, None)
        settle = [lambda: self._rooms.give(room)]
        return self._planned(runs, sent, *self._received(plan, done, runs, target, settle))

    def _erase_plan(self, ids: id_kernels.Ids) -> Plan:
        plan, done = self._plan(ids)
        runs = self._cut(plan)
        room, sent, _ = self._staged(plan, runs, None)
        done()
        return self._planned(runs, sent, [None] * len(runs), [lambda: self._rooms.give(room)], None)

    def _planned(
        self,
        runs: Runs,
        sent: list[InFrame | InArena | None],
        outs: list[Any],
        settle: list[Callable[[], None]],
        finish: Callable[[], Any] | None,
        encode: tuple[Callable[[], None], ...] = (),
    ) -> Plan:
        spans = [
            Span((self.spec.table_id, band.start), band.start, 0, end - begin, payload, out)
            for (band, begin, end), payload, out in zip(runs, sent, outs, strict=True)
        ]
        return Plan([spans], tuple(settle), finish, len(spans), encode=encode)

    def _staged(
        self, plan: id_kernels.IdPlan, runs: Runs, grads: Array | None
    ) -> tuple[Room, list[InFrame | InArena | None], tuple[Callable[[], None], ...]]:
        """Each run's ids, and behind them the sums of its gradients, where they are sent from.

        What encodes them comes back with it: a part of the call that is checked later may still be wrong.
        """
        counts = [end - begin for _, begin, end in runs]
        ids_bytes = [8 * count if grads is None else aligned(8 * count) for count in counts]
        rows_bytes = [0 if grads is None else self._bytes_up(count) for count in counts]
        sizes = [a + b for a, b in zip(ids_bytes, rows_bytes, strict=True)]
        room, begins = self._rooms.lay_out(sizes)
        for (_, begin, end), at in zip(runs, begins, strict=True):
            room.array[at : at + 8 * (end - begin)].view(np.uint64)[:] = plan.ids[begin:end]
        sent = [room.values(at, nbytes) for at, nbytes in zip(begins, sizes, strict=True)]
        if grads is None:
            return room, sent, ()
        rows_at = [at + nbytes for at, nbytes in zip(begins, ids_bytes, strict=True)]
        if self.encoder is None or self.encoder.up is None:
            self._sum(plan, grads, self._places(runs, rows_at), room.array.view(self.spec.held))
            return room, sent, ()
        encoder = self.encoder
        sums: Any = np.empty(plan.ids.size * self.dim, np.float32)
        self._sum(plan, grads, _in_line(plan), sums)
        return room, sent, (lambda: encoder.encode(plan.ids, sums, runs, room.array, rows_at),)

    def _sum(self, plan: id_kernels.IdPlan, grads: Array, places: tuple[Numbers, Numbers], out: Any) -> None:
        moves = row_moves.moves(self.spec.held)
        moves.gather_sums(grads, plan.order, plan.places, *places, self.dim, out)

    def _received(
        self,
        plan: id_kernels.IdPlan,
        done: Callable[[], None],
        runs: Runs,
        target: Target,
        settle: list[Callable[[], None]],
    ) -> tuple[list[Any], list[Callable[[], None]], Callable[[], Any]]:
        """Where each run's rows arrive, and what makes the caller's array of them."""
        sizes = [self._bytes_down(end - begin) for _, begin, end in runs]
        room, begins = self._rooms.lay_out(sizes)

        def finish() -> Any:
            moves = row_moves.moves(self.spec.held)
            if self.dtype != self.spec.held:
                self._take_halves(plan, runs, room, begins, target.flat)
            elif self.encoder is None or self.encoder.down is None:
                rows, places = room.array.view(self.dtype), self._places(runs, begins)
                moves.scatter_rows(rows, plan.order, plan.places, *places, self.dim, target.flat)
            else:
                decoded: Any = np.empty(plan.ids.size * self.dim, np.float32)
                for (_, begin, end), at in zip(runs, begins, strict=True):
                    self.encoder.decode(end - begin, room.array[at:], decoded[begin * self.dim : end * self.dim])
                moves.scatter_rows(decoded, plan.order, plan.places, *_in_line(plan), self.dim, target.flat)
            self._rooms.give(room)
            done()
            return target.finish()

        return [room.values(at, nbytes) for at, nbytes in zip(begins, sizes, strict=True)], settle, finish

    def _take_halves(self, plan: id_kernels.IdPlan, runs: Runs, room: Room, begins: list[int], out: Array) -> None:
        """Rows that travelled as the halves they are."""
        rows = np.empty((plan.ids.size, self.dim), self.dtype)
        for (_, begin, end), at in zip(runs, begins, strict=True):
            rows[begin:end] = room.array[at : at + self._bytes_down(end - begin)].view(self.dtype).reshape(-1, self.dim)
        np.take(rows, plan.inverse(), axis=0, out=out.reshape(-1, self.dim), mode="clip")

    def _places(self, runs: Runs, begins: list[int]) -> tuple[Numbers, Numbers]:
        """Where rows of the plan lie, as `row_moves` takes it, in room where those of run i begin at byte begins[i]."""
        itemsize = self.spec.held.itemsize
        moved = [at // itemsize - begin * self.dim for at, (_, begin, _) in zip(begins, runs, strict=True)]
        return np.array([end for _, _, end in runs], np.int64), np.array(moved, np.int64)

    # ---- what the servers hold ---------------------------------------------------------------------------------------

    def _stats(self) -> list[list[int]]:
        """Of each band: rows it holds, row numbers it has used, bytes, rows evicted, pushes not admitted."""
        found: list[list[int]] = self._store.ask(Op.STATS, self.stats_plan).result()
        return [said[:5] for said in found]

    def drop_plan(self) -> Plan:
        """Delete the table on the servers."""
        bands = self.bands()
        return self._planned([(band, 0, 0) for band in bands], [None] * len(bands), [None] * len(bands), [], None)

    def stats_plan(self, hot: int = 0) -> Plan:
        """Ask each band for its figures, and for so many of its hot rows."""
        bands = self.bands()
        counts = np.zeros((len(bands), _STATS_BYTES // 8 + 2 * hot), np.uint64)
        outs = [InFrame((row.view(np.uint8).data,), row.nbytes) for row in counts]
        runs = [(band, 0, hot) for band in bands]
        return self._planned(runs, [None] * len(bands), outs, [], lambda: [said.tolist() for said in counts])

    def _scan_plan(self, band: range, begin: int, end: int) -> Plan:
        count = end - begin
        flags, rows = aligned(8 * count), aligned(8 * count) + aligned(count)
        raw = np.zeros(rows + count * self._held_row_bytes, np.uint8)

        def finish() -> tuple[Array, Array]:
            live = raw[flags : flags + count].view(np.bool_)
            found = raw[rows:].view(self.spec.held).reshape(count, self.dim)[live]
            return raw[: 8 * count].view(np.uint64)[live], self._as_declared(found)

        span = Span((self.spec.table_id, band.start), band.start, begin, end, None, InFrame((raw.data,), raw.nbytes))
        return Plan([[span]], (), finish, 1)

    def _as_declared(self, rows: Array) -> Array:
        """Rows as servers hold them, in the table's dtype."""
        if self.dtype == self.spec.held:
            return rows
        from windlass_proto.codecs import halves

        found = np.empty(rows.size, np.uint16)
        halves.build(self.spec.dtype_name).to_half(np.ascontiguousarray(rows).reshape(-1), found)
        return found.view(self.dtype).reshape(rows.shape)

    # ---- refusals ----------------------------------------------------------------------------------------------------

    def not_finite(self, payload: bytes, count: int) -> str:
        """In words, the ids of a push's entry whose rows are not finite: sums of an id's gradients may overflow."""
        ids = np.frombuffer(payload, np.uint64, count)
        raw = payload[aligned(8 * count) :]
        if self.encoder is not None and self.encoder.up is not None:
            rows: Array = self.encoder.rows_of(raw, count)
        else:
            rows = np.frombuffer(raw, self.spec.held).reshape(count, self.dim)
        return row_values.in_words(ids[~np.isfinite(rows).all(axis=1)])


def _in_line(plan: id_kernels.IdPlan) -> tuple[Numbers, Numbers]:
    """Where rows of the plan lie, as `row_moves` takes it, one after the other."""
    return np.array([plan.ids.size], np.int64), np.zeros(1, np.int64)
