"""The share core: what a push, a pull or a mark does to one table's part of one vshard.

It is sans-I/O. Each method is one event and returns the effects, in order, that its driver carries out under the share's
lock: `Apply` runs the update rule, `Write` stores given values, `Answer` releases an answer to whoever waits for it (often
another connection), `Release` gives a gradient's buffer back.

Invariants (checked by `validate`):
- A session's operations on this share are admitted in the order of their seq, each exactly once; what was admitted before is
  answered as a duplicate and changes nothing; a hole is answered `gap` and changes nothing.
- BSP: a segment's step c is applied once, after step c-1, when every session of the roster is done with it: by a piece that
  says LAST or by its mark. Sessions are a set, so a retry never releases a step.
- An answer is released once. A gradient's buffer is released once, after the last use.

A step of a block is kept as *gate runs*: neighbouring segments in the same state are one run, cut only where a contribution
begins or ends. A whole-model push is one run a block, however many tensors it has.

Contributions stay where they arrived until their step is complete and are then summed in rank order by one pass over all of
them, so a sum's bits depend on ranks alone. (A running sum would free buffers earlier at the price of reading and writing
the sum once more for each worker.)

Prior art: the vector clocks of Li et al. (OSDI '14, section 3.4); SSP is Ho et al. (NIPS '13).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from windlass_proto import limits
from windlass_proto.consistency import Consistency, Mode
from windlass_proto.errors import InvariantError, UsageError, WindlassError
from windlass_proto.frames import Status
from windlass_proto.layout import Block

LEFT: Final = 1 << 62
"""The clock of a session that will close no further step."""


class Member(NamedTuple):
    """A worker that counts in steps from `join_clock` on."""

    session: bytes
    rank: int
    join_clock: int


@dataclass(frozen=True, slots=True)
class Roster:
    """Who counts in a store's steps. Steps complete only once it has started."""

    version: int = 0
    started: bool = False
    members: tuple[Member, ...] = ()


class Source(NamedTuple):
    """A gradient for a run: its buffer, the element at which the run begins in it, and its weight."""

    buffer: Any
    begin: int
    weight: float


class Answer(NamedTuple):
    """Release the answer to `origin`; with `values`, the present weights of the segments go along."""

    origin: Any
    status: Status
    block: int
    seg_begin: int
    seg_end: int
    values: bool
    aux: int = 0
    error: WindlassError | None = None


class Apply(NamedTuple):
    """Run the rule on segments [seg_begin, seg_end) of a block with the weighted sum of `sources` over `divisor`.

    `update` is the 1-based number of this update of the segments. `answer`, if given, covers exactly these segments: the
    kernel may write its values in the same pass.
    """

    block: int
    seg_begin: int
    seg_end: int
    sources: tuple[Source, ...]
    divisor: float
    update: int
    stamp: int
    answer: Answer | None


class Write(NamedTuple):
    """Store given values; `fresh` also resets the slots."""

    block: int
    seg_begin: int
    seg_end: int
    buffer: Any
    fresh: bool


class Release(NamedTuple):
    """The buffer of a gradient is used no more."""

    buffer: Any


Effect = Answer | Apply | Write | Release


class Push(NamedTuple):
    """One entry that writes. `clock` is the step it belongs to; `finite` says whether its values may be applied."""

    origin: Any
    session: bytes
    seq: int
    clock: int
    block: int
    seg_begin: int
    seg_end: int
    buffer: Any
    weight: float = 1.0
    stamp: int = 0
    last: bool = True
    values: bool = True
    finite: bool = True


@dataclass(slots=True)
class _Waiting:
    """An answer that is not released yet, and how many of its segments still wait for their step."""

    origin: Any
    session: bytes
    seq: int
    clock: int
    block: int
    seg_begin: int
    seg_end: int
    values: bool
    remaining: int
    write: Any = None  # the values of an assign that waits for the steps before it


@dataclass(slots=True)
class _Contribution:
    session: bytes
    rank: int
    buffer: Any
    seg_begin: int
    weight: float
    stamp: int
    runs: int = 1


@dataclass(slots=True)
class _GateRun:
    """Segments [seg_begin, seg_end) of one block in one step, all in the same state."""

    seg_begin: int
    seg_end: int
    contributions: list[_Contribution] = field(default_factory=list)
    done: set[bytes] = field(default_factory=set)
    waiting: list[_Waiting] = field(default_factory=list)

    def cut(self, seg: int) -> _GateRun:
        """Cut this run at `seg` and return its right part."""
        right = _GateRun(seg, self.seg_end, list(self.contributions), set(self.done), list(self.waiting))
        self.seg_end = seg
        for contribution in self.contributions:
            contribution.runs += 1
        return right


@dataclass(slots=True)
class _BlockState:
    shape: Block
    applied: list[int]  # per segment: steps completed (BSP)
    updates: list[int]  # per segment: updates applied
    present: list[bool]  # per segment: holds values
    gates: dict[int, list[_GateRun]] = field(default_factory=dict)  # step -> runs, in segment order


class ShareCore:
    """One table's part of one vshard. The driver holds the share's lock around every call."""

    def __init__(self, consistency: Consistency, blocks: list[Block], *, mean: bool = True) -> None:
        self.consistency = consistency
        self.mean = mean
        self.roster = Roster()
        self.hold_clock: int | None = None
        self.admitted: dict[bytes, int] = {}
        self.closed: dict[bytes, int] = {}
        self.closed_min = 0
        self.blocks = {
            block.index: _BlockState(
                block, [0] * len(block.segments), [0] * len(block.segments), [False] * len(block.segments)
            )
            for block in blocks
        }
        self._ranks: dict[bytes, int] = {}
        self._answers: dict[tuple[bytes, int], _Waiting] = {}
        self._parked: list[_Waiting] = []
        self.clock_begun = -1
        self.late = 0
        self.rejected = 0
        self.duplicates = 0
        self.staleness: dict[int, int] = {}
        self.story: deque[tuple[Hashable, ...]] = deque(maxlen=limits.STORY_EVENTS_MAX)

    # ---- events ------------------------------------------------------------------------------------------------------

    def push(self, event: Push) -> list[Effect]:
        """A gradient arrives."""
        refusal = self._admit(event)
        if refusal is not None:
            return refusal
        self.clock_begun = max(self.clock_begun, event.clock)
        if self.consistency.mode is Mode.BSP:
            return self._contribute(event)
        return self._apply_on_arrival(event)

    def init(self, event: Push) -> list[Effect]:
        """First values arrive: they are stored and the slots start afresh, unless the block has been updated already."""
        refusal = self._admit(event, needs_values=False)
        if refusal is not None:
            return refusal
        state = self.blocks[event.block]
        if any(state.updates[event.seg_begin : event.seg_end]):
            error = UsageError(
                "first values came for a tensor that has been updated already",
                block=event.block,
                updates=max(state.updates[event.seg_begin : event.seg_end]),
                next_move="Use store.assign to overwrite live values.",
            )
            return [Release(event.buffer), self._answer(event, Status.ERROR, error=error)]
        state.present[event.seg_begin : event.seg_end] = [True] * (event.seg_end - event.seg_begin)
        return [
            Write(event.block, event.seg_begin, event.seg_end, event.buffer, True),
            Release(event.buffer),
            self._answer(event, Status.OK),
        ]

    def assign(self, event: Push) -> list[Effect]:
        """Given values replace the weights before step `event.clock`, once the steps before it are complete."""
        refusal = self._admit(event)
        if refusal is not None:
            return refusal
        waiting = self._wait_for(event)
        waiting.write = event.buffer
        return self._release_parked([waiting])

    def pull(self, origin: Any, clock: int, block: int, seg_begin: int, seg_end: int) -> list[Effect]:
        """Present values are asked for by someone who has closed `clock` steps; 0 never waits."""
        state = self.blocks[block]
        if not all(state.present[seg_begin:seg_end]):
            return [Answer(origin, Status.ERROR, block, seg_begin, seg_end, False, 0, _no_values(block))]
        waiting = _Waiting(origin, b"", 0, clock, block, seg_begin, seg_end, True, 0)
        if self._may_read(waiting):
            return [self._release(waiting)]
        self._parked.append(waiting)
        return []

    def mark(self, session: bytes, clock: int, *, leaves: bool = False) -> list[Effect]:
        """`session` has closed step `clock`; it may repeat itself."""
        self.closed[session] = max(self.closed.get(session, 0), LEFT if leaves else clock + 1)
        self.clock_begun = max(self.clock_begun, clock)
        return self._advance()

    def set_roster(self, roster: Roster) -> list[Effect]:
        """Another set of sessions counts. What a session that left had not finished is dropped."""
        if roster.version < self.roster.version:
            return []
        gone = {member.session for member in self.roster.members} - {member.session for member in roster.members}
        self.roster = roster
        self.hold_clock = None
        self._ranks = {member.session: member.rank for member in roster.members}
        for member in roster.members:
            self.closed[member.session] = max(self.closed.get(member.session, 0), member.join_clock)
        self.story.append(("roster", roster.version, len(roster.members)))
        effects: list[Effect] = []
        for session in gone:
            effects += self._drop_unfinished(session)
        return effects + self._advance()

    def prepare(self, clock: int) -> bool:
        """May the roster change from step `clock` on? If so, no such step completes before the next `set_roster`."""
        if self.clock_begun >= clock:
            return False
        self.hold_clock = clock
        return True

    def end_session(self, session: bytes) -> list[Effect]:
        """The scheduler has ended `session`: its integers go and nothing waits for it."""
        effects = self._drop_unfinished(session)
        if session in self._ranks:
            members = tuple(member for member in self.roster.members if member.session != session)
            self.roster = Roster(self.roster.version, self.roster.started, members)
            del self._ranks[session]
        self.admitted.pop(session, None)
        self.closed.pop(session, None)
        self._answers = {key: waiting for key, waiting in self._answers.items() if key[0] != session}
        return effects + self._advance()

    def drop_origin(self, connection: Any) -> None:
        """A connection closed: its parked pulls go; the answers of its pushes wait for it to come back."""
        self._parked = [w for w in self._parked if w.session or w.origin is None or w.origin[0] is not connection]
        for waiting in self._answers.values():
            if waiting.origin is not None and waiting.origin[0] is connection:
                waiting.origin = None

    # ---- admission ---------------------------------------------------------------------------------------------------

    def _admit(self, event: Push, *, needs_values: bool = True) -> list[Effect] | None:
        """Admit `event` by its seq, or return the effects of refusing it."""
        state = self.blocks[event.block]
        if needs_values and not all(state.present[event.seg_begin : event.seg_end]):
            # Not consumed: the client stops this session's pushes and says what to do.
            return [Release(event.buffer), self._answer(event, Status.ERROR, error=_no_values(event.block))]
        admitted = self.admitted.get(event.session, 0)
        if event.seq == admitted + 1:
            self.admitted[event.session] = event.seq
            return None
        if event.seq > admitted:
            return [Release(event.buffer), self._answer(event, Status.GAP, aux=admitted + 1)]
        self.duplicates += 1
        waiting = self._answers.get((event.session, event.seq))
        if waiting is not None:
            waiting.origin = event.origin
            return [Release(event.buffer)]
        return [Release(event.buffer), self._answer(event, Status.DUPLICATE, values=event.values)]

    def _answer(
        self,
        event: Push,
        status: Status,
        *,
        values: bool = False,
        aux: int = 0,
        error: WindlassError | None = None,
    ) -> Answer:
        return Answer(event.origin, status, event.block, event.seg_begin, event.seg_end, values, aux, error)

    def _wait_for(self, event: Push) -> _Waiting:
        """Register an answer that is released later; `remaining` counts segments whose step is open."""
        waiting = _Waiting(
            event.origin,
            event.session,
            event.seq,
            event.clock,
            event.block,
            event.seg_begin,
            event.seg_end,
            event.values,
            event.seg_end - event.seg_begin,
        )
        self._answers[event.session, event.seq] = waiting
        return waiting

    # ---- BSP ---------------------------------------------------------------------------------------------------------

    def _contribute(self, event: Push) -> list[Effect]:
        state = self.blocks[event.block]
        if event.clock < self.closed_min or event.clock < max(state.applied[event.seg_begin : event.seg_end]):
            self.late += 1
            return [Release(event.buffer), self._answer(event, Status.LATE, values=event.values)]
        effects: list[Effect] = []
        waiting = contribution = None
        if event.finite:
            waiting = self._wait_for(event)
            rank = self._ranks.get(event.session, 1 << 30)
            contribution = _Contribution(
                event.session, rank, event.buffer, event.seg_begin, event.weight, event.stamp, 0
            )
        else:
            self.rejected += 1
            effects = [Release(event.buffer), self._answer(event, Status.REJECTED)]
        for run in self._runs(state, event.clock, event.seg_begin, event.seg_end):
            if contribution is not None and waiting is not None:
                run.contributions.append(contribution)
                contribution.runs += 1
                run.waiting.append(waiting)
            if event.last:
                run.done.add(event.session)
        return effects + self._complete(state)

    def _runs(self, state: _BlockState, clock: int, seg_begin: int, seg_end: int) -> list[_GateRun]:
        """The runs that cover exactly [seg_begin, seg_end) of step `clock`, cutting those that cross its borders."""
        runs = state.gates.get(clock)
        if runs is None:
            runs = state.gates[clock] = self._fresh_runs(state, clock)
        if len(runs) == 1 and runs[0].seg_begin == seg_begin and runs[0].seg_end == seg_end:
            return runs[:]
        for border in (seg_begin, seg_end):
            for i, run in enumerate(runs):
                if run.seg_begin < border < run.seg_end:
                    runs.insert(i + 1, run.cut(border))
                    break
        return [run for run in runs if seg_begin <= run.seg_begin and run.seg_end <= seg_end]

    def _fresh_runs(self, state: _BlockState, clock: int) -> list[_GateRun]:
        """One run for each stretch of segments that has not completed `clock` yet."""
        runs: list[_GateRun] = []
        if max(state.applied) <= clock:
            return [_GateRun(0, len(state.applied))]
        for seg, applied in enumerate(state.applied):
            if applied > clock:
                continue
            if runs and runs[-1].seg_end == seg:
                runs[-1].seg_end = seg + 1
            else:
                runs.append(_GateRun(seg, seg + 1))
        return runs

    def _complete(self, state: _BlockState) -> list[Effect]:
        """Apply every run of the block whose step everyone is done with, lowest step first; then the pulls it frees."""
        if not self.roster.started or not self.roster.members:
            return []
        effects: list[Effect] = []
        for clock in sorted(state.gates):
            if self.hold_clock is not None and clock >= self.hold_clock:
                break
            runs = state.gates[clock]
            ready = [run for run in runs if self._is_complete(state, run, clock)]
            if not ready:
                break
            for run in ready:
                effects += self._apply_run(state, run, clock)
            if len(ready) == len(runs):
                del state.gates[clock]
            else:
                state.gates[clock] = [run for run in runs if run not in ready]
        if effects and self._parked:
            effects += self._release_parked([])
        return effects

    def _is_complete(self, state: _BlockState, run: _GateRun, clock: int) -> bool:
        closed = self.closed
        for member in self.roster.members:
            if closed[member.session] <= clock and member.session not in run.done:
                return False
        applied = min(state.applied[run.seg_begin : run.seg_end])
        return applied >= clock or self.closed_min >= clock or not self._open_below(state, run, clock)

    def _open_below(self, state: _BlockState, run: _GateRun, clock: int) -> bool:
        """Is a step before `clock` open on a segment of `run`?"""
        return any(
            earlier < clock
            and any(other.seg_begin < run.seg_end and run.seg_begin < other.seg_end for other in runs)
            for earlier, runs in state.gates.items()
        )

    def _apply_run(self, state: _BlockState, run: _GateRun, clock: int) -> list[Effect]:
        seg_begin, seg_end = run.seg_begin, run.seg_end
        effects: list[Effect] = []
        released = []
        for waiting in run.waiting:
            waiting.remaining -= seg_end - seg_begin
            if waiting.remaining == 0:
                del self._answers[waiting.session, waiting.seq]
                released.append(waiting)
        fused = self._fusible(released, seg_begin, seg_end) if run.contributions else None
        if run.contributions:
            effects += self._apply_sources(state, run, fused)
        state.applied[seg_begin:seg_end] = [clock + 1] * (seg_end - seg_begin)
        effects += [self._answer_of(waiting) for waiting in released if waiting is not fused]
        for contribution in run.contributions:
            contribution.runs -= 1
            if contribution.runs == 0:
                effects.append(Release(contribution.buffer))
        return effects

    def _fusible(self, released: list[_Waiting], seg_begin: int, seg_end: int) -> _Waiting | None:
        for waiting in released:
            if waiting.values and waiting.seg_begin == seg_begin and waiting.seg_end == seg_end:
                return waiting
        return None

    def _apply_sources(self, state: _BlockState, run: _GateRun, fused: _Waiting | None) -> list[Effect]:
        ordered = sorted(run.contributions, key=lambda c: c.rank)
        base = state.shape.segments[run.seg_begin].begin
        sources = tuple(
            Source(c.buffer, base - state.shape.segments[c.seg_begin].begin, c.weight) for c in ordered
        )
        divisor = sum({c.session: c.weight for c in ordered}.values()) if self.mean else 1.0
        stamp = max(c.stamp for c in ordered)
        answer = self._answer_of(fused) if fused is not None else None
        return self._applies(state, run.seg_begin, run.seg_end, sources, divisor, stamp, answer)

    def _applies(
        self,
        state: _BlockState,
        seg_begin: int,
        seg_end: int,
        sources: tuple[Source, ...],
        divisor: float,
        stamp: int,
        answer: Answer | None,
    ) -> list[Effect]:
        """One Apply, or one for each stretch of segments that has been updated equally often."""
        updates = state.updates
        update = updates[seg_begin] + 1
        if updates[seg_begin:seg_end].count(update - 1) == seg_end - seg_begin:
            updates[seg_begin:seg_end] = [update] * (seg_end - seg_begin)
            return [Apply(state.shape.index, seg_begin, seg_end, sources, divisor, update, stamp, answer)]
        effects: list[Effect] = []
        base, at = state.shape.segments[seg_begin].begin, seg_begin
        while at < seg_end:
            end = at + 1
            while end < seg_end and updates[end] == updates[at]:
                end += 1
            moved = state.shape.segments[at].begin - base
            shifted = tuple(Source(s.buffer, s.begin + moved, s.weight) for s in sources)
            update = updates[at] + 1
            updates[at:end] = [update] * (end - at)
            effects.append(Apply(state.shape.index, at, end, shifted, divisor, update, stamp, None))
            at = end
        if answer is not None:
            effects.append(answer)
        return effects

    def _advance(self) -> list[Effect]:
        """Marks or the roster changed: complete what that frees."""
        members = self.roster.members
        if not self.roster.started or not members:
            return []
        lowest = min([self.closed[member.session] for member in members])
        effects: list[Effect] = []
        if self.consistency.mode is Mode.BSP:
            for state in self.blocks.values():
                if state.gates:
                    effects += self._complete(state)
        held = self.hold_clock is not None and lowest > self.hold_clock
        self.closed_min = max(self.closed_min, self.hold_clock if held and self.hold_clock is not None else lowest)
        if self._parked:
            effects += self._release_parked([])
        return effects

    def _drop_unfinished(self, session: bytes) -> list[Effect]:
        """Take out what `session` contributed to runs it was not done with."""
        effects: list[Effect] = []
        for state in self.blocks.values():
            for clock, runs in state.gates.items():
                if self.closed.get(session, 0) > clock:
                    continue
                for run in runs:
                    if session in run.done:
                        continue
                    for contribution in [c for c in run.contributions if c.session == session]:
                        run.contributions.remove(contribution)
                        contribution.runs -= 1
                        if contribution.runs == 0:
                            effects.append(Release(contribution.buffer))
                    run.waiting = [w for w in run.waiting if w.session != session]
        dropped = [w for w in self._parked if w.session == session]
        effects += [Release(w.write) for w in dropped if w.write is not None]
        self._parked = [w for w in self._parked if w.session != session]
        return effects

    # ---- ASP and SSP -------------------------------------------------------------------------------------------------

    def _apply_on_arrival(self, event: Push) -> list[Effect]:
        if not event.finite:
            self.rejected += 1
            return [Release(event.buffer), self._answer(event, Status.REJECTED)]
        state = self.blocks[event.block]
        lag = max(0, event.clock - self.closed_min)
        self.staleness[lag] = self.staleness.get(lag, 0) + 1
        waiting = _Waiting(
            event.origin,
            event.session,
            event.seq,
            event.clock + 1,
            event.block,
            event.seg_begin,
            event.seg_end,
            event.values,
            0,
        )
        at_once = not event.values or self._may_read(waiting)
        answer = self._answer_of(waiting) if at_once else None
        fused = answer if event.values else None
        effects = self._applies(
            state,
            event.seg_begin,
            event.seg_end,
            (Source(event.buffer, 0, 1.0),),
            1.0,
            event.stamp,
            fused,
        )
        if answer is not None and fused is None:
            effects.append(answer)
        if not at_once:
            self._answers[event.session, event.seq] = waiting
            self._parked.append(waiting)
        effects.append(Release(event.buffer))
        return effects

    # ---- reads -------------------------------------------------------------------------------------------------------

    def _may_read(self, waiting: _Waiting) -> bool:
        mode = self.consistency.mode
        if mode is Mode.ASP or waiting.clock == 0:
            return True
        if mode is Mode.SSP:
            return self.closed_min >= waiting.clock - self.consistency.bound
        if self.closed_min >= waiting.clock:
            return True
        applied = self.blocks[waiting.block].applied
        return min(applied[waiting.seg_begin : waiting.seg_end]) >= waiting.clock

    def _release_parked(self, more: list[_Waiting]) -> list[Effect]:
        effects: list[Effect] = []
        kept = []
        for waiting in self._parked + more:
            if not self._may_read(waiting):
                kept.append(waiting)
                continue
            if waiting.write is not None:
                effects.append(Write(waiting.block, waiting.seg_begin, waiting.seg_end, waiting.write, False))
                effects.append(Release(waiting.write))
            self._answers.pop((waiting.session, waiting.seq), None)
            effects.append(self._release(waiting))
        self._parked = kept
        return effects

    def _release(self, waiting: _Waiting) -> Answer:
        return self._answer_of(waiting)

    def _answer_of(self, waiting: _Waiting) -> Answer:
        version = self.blocks[waiting.block].updates[waiting.seg_begin]
        return Answer(
            waiting.origin,
            Status.OK,
            waiting.block,
            waiting.seg_begin,
            waiting.seg_end,
            waiting.values,
            version,
        )

    # ---- explanation -------------------------------------------------------------------------------------------------

    def waiting_for(self) -> set[bytes]:
        """The sessions that an open step or a parked pull waits for."""
        late: set[bytes] = set()
        for state in self.blocks.values():
            for clock, runs in state.gates.items():
                for run in runs:
                    late |= {
                        m.session
                        for m in self.roster.members
                        if self.closed[m.session] <= clock and m.session not in run.done
                    }
        if self._parked and self.roster.members:
            lowest = min(self.closed[m.session] for m in self.roster.members)
            late |= {m.session for m in self.roster.members if self.closed[m.session] == lowest}
        return late

    def parked(self) -> int:
        """Answers that wait for a step or for other workers."""
        return len(self._parked) + sum(1 for w in self._answers.values() if w not in self._parked)

    def validate(self) -> None:
        """Check the module's invariants.

        Raises:
            InvariantError: if one does not hold.
        """
        for state in self.blocks.values():
            uses: dict[int, int] = {}
            counts: dict[int, int] = {}
            for clock, runs in state.gates.items():
                end = 0
                for run in runs:
                    if not end <= run.seg_begin < run.seg_end <= len(state.applied):
                        raise InvariantError("gate runs overlap", block=state.shape.index, clock=clock)
                    end = run.seg_end
                    if max(state.applied[run.seg_begin : run.seg_end]) > clock:
                        raise InvariantError("an open step was applied", block=state.shape.index, clock=clock)
                    for contribution in run.contributions:
                        uses[id(contribution)] = uses.get(id(contribution), 0) + 1
                        counts[id(contribution)] = contribution.runs
            if uses != counts:
                raise InvariantError("a contribution's uses are miscounted", block=state.shape.index)
        for key, waiting in self._answers.items():
            if key != (waiting.session, waiting.seq) or self.admitted.get(waiting.session, 0) < waiting.seq:
                raise InvariantError("an answer waits for what was not admitted", seq=waiting.seq)


def _no_values(block: int) -> UsageError:
    return UsageError(
        "a tensor has no values yet",
        block=block,
        next_move="Call store.init with it on every worker before pushing or pulling.",
    )
