"""Gate runs: who is done with which segments of one step of one block.

Neighbouring segments in the same state are one run, cut only where a contribution begins or ends, so a
whole-model push is one run a block however many tensors it has. Runs are kept in segment order and found
by bisection: 2,000 tensors pushed one by one cost 2,000 bisections, not 2,000 walks.

Invariant: the runs of a step do not overlap, and a contribution knows in how many runs it lies, so that
its buffer is given back once, after the last use. The share core owns all of it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from windlass_proto.errors import InvariantError
from windlass_proto.frames import Status
from windlass_proto.layout import Block
from windlass_server.share_events import Answer, Apply, Push, Source, Totals

if TYPE_CHECKING:
    from windlass_server.reducing import Reducing, ReducingRun


@dataclass(slots=True, eq=False)
class Waiting:
    """An answer that is not released yet, and how many of its segments still wait for their step."""

    origin: Any
    session: bytes
    seq: int
    clock: int
    block: int
    seg_begin: int
    seg_end: int
    values: bool
    remaining: int = 0
    write: Any = None  # the values of an assign that waits for the steps before it
    late: bool = False  # it came when its step was complete, and is answered when that is applied
    forgotten: bool = False  # its session is gone: nobody is to be answered

    @classmethod
    def of(cls, push: Push, clock: int, remaining: int) -> Waiting:
        return cls(
            push.origin,
            push.session,
            push.seq,
            clock,
            push.block,
            push.seg_begin,
            push.seg_end,
            push.values,
            remaining,
        )

    def answer(self, status: Status, version: int = 0) -> Answer:
        return Answer(self.origin, status, self.block, self.seg_begin, self.seg_end, self.values, version)


@dataclass(slots=True, eq=False)
class Contribution:
    """`clock` is the step that its worker made it for; a later step's runs hold it where it was folded into that."""

    session: bytes
    rank: int
    clock: int
    buffer: Any
    seg_begin: int
    weight: float
    stamp: Any
    runs: int = 0

    @classmethod
    def of(cls, push: Push, rank: int) -> Contribution:
        return cls(push.session, rank, push.clock, push.buffer, push.seg_begin, push.weight, push.stamp)


@dataclass(slots=True, eq=False)
class GateRun:
    """Segments [seg_begin, seg_end) of one block in one step, all in the same state."""

    seg_begin: int
    seg_end: int
    contributions: list[Contribution] = field(default_factory=list)
    done: set[bytes] = field(default_factory=set)
    waiting: list[Waiting] = field(default_factory=list)

    def cut(self, seg: int) -> GateRun:
        """Cut this run at `seg` and return its right part."""
        right = GateRun(seg, self.seg_end, list(self.contributions), set(self.done), list(self.waiting))
        self.seg_end = seg
        for contribution in self.contributions:
            contribution.runs += 1
        return right

    def empty(self) -> list[Contribution]:
        """Take out all contributions; returns those that are now unused."""
        taken, self.contributions = self.contributions, []
        for contribution in taken:
            contribution.runs -= 1
        return [contribution for contribution in taken if contribution.runs == 0]

    def drop(self, session: bytes, clock: int) -> tuple[list[Contribution], list[Waiting]]:
        """Take out what `session` contributed to this step, `clock`; returns what is now unused, and who waited.

        What was folded into it is whole, and has been acknowledged.
        """
        mine = [c for c in self.contributions if c.session == session and c.clock == clock]
        waiting = [w for w in self.waiting if w.session == session]
        self.contributions = [c for c in self.contributions if c.session != session or c.clock != clock]
        self.waiting = [w for w in self.waiting if w.session != session]
        for contribution in mine:
            contribution.runs -= 1
        return [c for c in mine if c.runs == 0], waiting


@dataclass(slots=True)
class BlockState:
    """What a share knows of one of its blocks."""

    shape: Block
    applied: list[int]  # per segment: steps completed (BSP)
    updates: list[int]  # per segment: updates applied
    present: list[bool]  # per segment: holds values
    gates: dict[int, list[GateRun]] = field(default_factory=dict)  # step -> runs, in segment order
    parked: list[Waiting] = field(default_factory=list)
    reducing: Reducing | None = None  # of a rule that needs norms of tensors which lie in several blocks

    @classmethod
    def fresh(cls, shape: Block) -> BlockState:
        """A block that holds no values yet."""
        segments = len(shape.segments)
        return cls(shape, [0] * segments, [0] * segments, [False] * segments)

    def count(self, apply: Apply) -> None:
        """An update is carried out."""
        self.updates[apply.seg_begin : apply.seg_end] = [apply.update] * (apply.seg_end - apply.seg_begin)

    def taken(self) -> list[int]:
        """Per segment: steps that take no further contribution."""
        return self.applied if self.reducing is None else self.reducing.taken(self.applied)


def fresh_runs(applied: list[int], clock: int) -> list[GateRun]:
    """One run for each stretch of segments that has not completed step `clock` yet."""
    if max(applied) <= clock:
        return [GateRun(0, len(applied))]
    runs: list[GateRun] = []
    for seg, steps in enumerate(applied):
        if steps > clock:
            continue
        if runs and runs[-1].seg_end == seg:
            runs[-1].seg_end = seg + 1
        else:
            runs.append(GateRun(seg, seg + 1))
    return runs


def drop_session(state: BlockState, session: bytes, closed: int) -> tuple[list[Contribution], list[Waiting]]:
    """Take out what `session`, which has closed `closed` steps, left unfinished; what is now unused, and who waited."""
    unused: list[Contribution] = []
    waited: list[Waiting] = []
    for clock, runs in state.gates.items():
        for run in runs if clock >= closed else ():
            if session not in run.done:
                contributions, waiting = run.drop(session, clock)
                unused += contributions
                waited += waiting
    waited += [w for w in state.parked if w.session == session]
    state.parked = [w for w in state.parked if w.session != session]
    return unused, waited


def overlapping(runs: list[GateRun], seg_begin: int, seg_end: int) -> tuple[int, int]:
    """Positions [first, end) of the runs that share a segment with [seg_begin, seg_end)."""
    first = bisect_right(runs, seg_begin, key=lambda run: run.seg_end)
    return first, bisect_left(runs, seg_end, lo=first, key=lambda run: run.seg_begin)


def exactly(runs: list[GateRun], seg_begin: int, seg_end: int) -> list[GateRun]:
    """The runs that cover [seg_begin, seg_end), cutting those that cross its borders."""
    for border in (seg_begin, seg_end):
        at = bisect_right(runs, border, key=lambda run: run.seg_end)
        if at < len(runs) and runs[at].seg_begin < border:
            runs.insert(at + 1, runs[at].cut(border))
    first, end = overlapping(runs, seg_begin, seg_end)
    return runs[first:end]


def stretches(counts: Sequence[int], seg_begin: int, seg_end: int) -> Iterator[tuple[int, int]]:
    """Cut [seg_begin, seg_end) into the longest stretches of equal counts."""
    at = seg_begin
    while at < seg_end:
        end = at + 1
        while end < seg_end and counts[end] == counts[at]:
            end += 1
        yield at, end
        at = end


def sources(state: BlockState, run: GateRun, *, mean: bool) -> tuple[Source, ...]:
    """The contributions of `run`, in their order, from its first segment on."""
    segments = state.shape.segments
    base = segments[run.seg_begin].begin
    return tuple(
        Source(c.buffer, base - segments[c.seg_begin].begin, c.weight if mean else 1.0, c.session)
        for c in run.contributions
    )


def applies(
    state: BlockState,
    seg_begin: int,
    seg_end: int,
    sources: tuple[Source, ...],
    divisor: float,
    clock: int,
    stamp: Any,
    totals: tuple[Totals | None, ...] = (),
) -> list[Apply]:
    """One Apply, or one for each stretch of segments that have been updated equally often."""
    updates, segments, index = state.updates, state.shape.segments, state.shape.index
    update = updates[seg_begin] + 1
    if updates[seg_begin:seg_end].count(update - 1) == seg_end - seg_begin:
        return [Apply(index, seg_begin, seg_end, sources, divisor, update, clock, stamp, None, totals)]
    found = []
    base = segments[seg_begin].begin
    for at, end in stretches(updates, seg_begin, seg_end):
        moved = segments[at].begin - base
        shifted = tuple(s._replace(begin=s.begin + moved) for s in sources)
        found.append(Apply(index, at, end, shifted, divisor, updates[at] + 1, clock, stamp, None, totals))
    return found


def applies_of(state: BlockState, resolved: ReducingRun, *, mean: bool) -> list[Apply]:
    """What a resolved run is applied as; nothing where its weights are of nothing: there is no mean."""
    run, divisor = resolved.run, resolved.divisor
    if divisor <= 0:
        return []
    given = sources(state, run, mean=mean)
    totals = resolved.totals
    return applies(state, run.seg_begin, run.seg_end, given, divisor, resolved.clock, resolved.stamp, totals)


def validate(gates: dict[int, list[GateRun]], applied: list[int], reducing: Sequence[GateRun] = ()) -> None:
    """Check the module's invariant, over the runs that are reduced as well, and that no open step was applied.

    Raises:
        InvariantError: if one does not hold.
    """
    uses: dict[int, int] = {}
    found: dict[int, Contribution] = {}
    for clock, runs in gates.items():
        end = 0
        for run in runs:
            if not end <= run.seg_begin < run.seg_end <= len(applied):
                raise InvariantError("gate runs overlap", clock=clock)
            end = run.seg_end
            if max(applied[run.seg_begin : run.seg_end]) > clock:
                raise InvariantError("an open step was applied", clock=clock)
    for run in [*(run for runs in gates.values() for run in runs), *reducing]:
        for contribution in run.contributions:
            uses[id(contribution)] = uses.get(id(contribution), 0) + 1
            found[id(contribution)] = contribution
    for key, contribution in found.items():
        if uses[key] != contribution.runs:
            raise InvariantError("a contribution's uses are miscounted", uses=uses[key], runs=contribution.runs)
