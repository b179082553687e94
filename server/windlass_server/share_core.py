"""The share core: what a push, a pull or a mark does to one table's part of one vshard.

It is sans-I/O. Each method is one event and returns the effects, in order, that its driver carries out
under the share's lock: `Apply` runs the update rule, `Write` stores given values, `Answer` releases an
answer to whoever waits for it (often another connection), `Release` gives a gradient's buffer back.

Invariants (checked by `validate`):
- A session's operations on this share are admitted in the order of their seq, each exactly once; what was
  admitted before is answered as a duplicate (or with the refusal it met then) and changes nothing; so does
  a hole (`gap`).
- BSP: a segment's step c is applied once, after step c-1, when every session of the roster is done with it (bsp:k=K:
  when K are): by a piece that says LAST or by its mark. Sessions are a set, so a retry never releases a step. What
  comes for a complete step is late, and is told which step is open.
- An answer is released once. A gradient's buffer is released once, after the last use.
- BSP: a step is applied with the highest stamp that a session has given it, SSP and ASP: with the push's own.
- No step that the roster has closed (`clocks.closed_min`) is open, but behind one that is `reducing`.

Contributions stay where they arrived until their step is complete and are then summed in rank order by one pass over
all of them, so a sum's bits depend on ranks alone.

What the driver owes: frames of one session come in the order of its stream, entries before their frame's mark; once a
session's new connection has brought a frame, nothing more of its old one is handed in; a share made while a store is
running is told the marks that its server knows of.

Prior art: the vector clocks of Li et al. (OSDI '14, section 3.4); SSP is Ho et al. (NIPS '13).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from typing import Any

from windlass_proto import limits
from windlass_proto.consistency import Consistency, Mode
from windlass_proto.errors import UsageError, WindlassError
from windlass_proto.frames import Status
from windlass_proto.layout import Block
from windlass_proto.step_modes import StepModes
from windlass_server import gate_runs, share_invariants
from windlass_server.gate_runs import BlockState, Contribution, GateRun, Waiting
from windlass_server.open_answers import OpenAnswers
from windlass_server.reducing import Phases, Reducing, ReducingRun
from windlass_server.roster_clocks import Awaited, RosterClocks
from windlass_server.session_filter import SessionFilter, Verdict, ended_error
from windlass_server.share_events import (
    LEFT,
    Answer,
    Apply,
    Effect,
    Measure,
    Push,
    Release,
    Roster,
    Source,
    Totals,
    Write,
    absent_error,
)
from windlass_server.share_tallies import ShareTallies
from windlass_server.step_stamps import StepStamps

__all__ = ["Answer", "Apply", "Effect", "Push", "Release", "Roster", "ShareCore", "Source", "Write"]


class ShareCore:
    """One table's part of one vshard. The driver holds the share's lock around every call.

    `phases`: of the blocks whose rule needs norms over several blocks (bsp), what goes through `reducing`.
    `factors`: a push that is applied on arrival is multiplied with its weight, which its worker has clipped it by.
    """

    def __init__(
        self,
        consistency: Consistency,
        blocks: list[Block],
        *,
        mean: bool = True,
        phases: Mapping[int, Phases] | None = None,
        factors: bool = False,
    ) -> None:
        self.modes = StepModes(consistency)
        self.mean = mean
        self.factors = factors
        self.clocks = RosterClocks()
        self.sessions = SessionFilter()
        self.stamps = StepStamps()
        self.blocks = {block.index: BlockState.fresh(block) for block in blocks}
        for index, spans in (phases or {}).items():
            self.blocks[index].reducing = Reducing(spans)
        self._reduced = [state for state in self.blocks.values() if state.reducing is not None]
        self.tallies = ShareTallies()
        self.story: deque[tuple[Hashable, ...]] = deque(maxlen=limits.STORY_EVENTS_MAX)
        self._open = OpenAnswers()
        self._gated: dict[int, BlockState] = {}  # blocks with open gates

    # ---- events --------------------------------------------------------------------------------------------

    def push(self, event: Push) -> list[Effect]:
        """A gradient arrives."""
        if self.clocks.is_undecided(event.clock) and self.sessions.judge(event.session, event.seq) is Verdict.NEXT:
            return self.refuse(event)
        if (refusal := self._admit(event)) is not None:
            return refusal
        self.clocks.begin(event.clock)
        bsp = self.modes.at(event.clock).mode is Mode.BSP
        effects = self._contribute(event) if bsp else self._apply_on_arrival(event)
        return self._and_its_mark(event, effects)

    def init(self, event: Push) -> list[Effect]:
        """First values arrive: stored, with fresh slots, unless the tensor has been updated already."""
        if (refusal := self._admit(event, needs_values=False)) is not None:
            return refusal
        state = self.blocks[event.block]
        if LEFT in state.applied[event.seg_begin : event.seg_end]:
            return self._and_its_mark(event, self._consume(event, Status.ERROR, absent_error([LEFT], event.block)))
        updates = max(state.updates[event.seg_begin : event.seg_end])
        if updates:
            error = UsageError(
                "first values came for a tensor that has been updated already",
                block=event.block,
                updates=updates,
                next_move="Use store.assign to overwrite live values.",
            )
            return self._and_its_mark(event, self._consume(event, Status.ERROR, error))
        state.present[event.seg_begin : event.seg_end] = [True] * (event.seg_end - event.seg_begin)
        effects: list[Effect] = [
            Write(event.block, event.seg_begin, event.seg_end, event.buffer, True),
            Release(event.buffer),
            self._answer(event, Status.OK),
        ]
        return self._and_its_mark(event, effects)

    def assign(self, event: Push) -> list[Effect]:
        """Given values replace the weights once the steps before `event.clock` are complete."""
        refusal = self._admit(event)
        if refusal is not None:
            return refusal
        waiting = self._open.wait_for(event, event.clock)
        waiting.write = event.buffer
        state = self.blocks[event.block]
        self._open.park(state, waiting)
        return self._and_its_mark(event, self._release_parked(state))

    def pull(self, origin: Any, clock: int, block: int, seg_begin: int, seg_end: int) -> list[Effect]:
        """Present values are asked for by someone who has closed `clock` steps; 0 never waits."""
        state = self.blocks[block]
        if not all(state.present[seg_begin:seg_end]):
            said = absent_error(state.applied[seg_begin:seg_end], block)
            return [Answer(origin, Status.ERROR, block, seg_begin, seg_end, False, 0, said)]
        waiting = Waiting(origin, b"", 0, clock, block, seg_begin, seg_end, True)
        if self._may_read(state, waiting):
            return [self._answer_of(waiting)]
        self._open.park(state, waiting)
        return []

    def refuse(self, event: Push, status: Status = Status.RETRY) -> list[Effect]:
        """No room for this entry, or its stamp is unknown: it is sent away, unconsumed, to come again; marks wait."""
        if self.sessions.judge(event.session, event.seq) in (Verdict.BEFORE, Verdict.ENDED):
            return self.push(event)  # changes nothing, so it needs no room
        self.sessions.note_refused(event.session, event.seq, event.clock)
        return [Release(event.buffer), self._answer(event, status)]

    def announce(self, session: bytes, clock: int, stamp: Any) -> None:
        """From its step `clock` on `session` stamps with `stamp`. Said before anything of that step."""
        if not self.sessions.has_ended(session):
            self.stamps.announce(session, clock, stamp)

    def mark(self, session: bytes, clock: int, *, leaves: bool = False) -> list[Effect]:
        """`session` has closed step `clock`; it may repeat itself."""
        if self.sessions.has_ended(session):
            return []
        self.clocks.begin(clock)
        if leaves:
            self.stamps.end(session, clock)
        return self._close(session, self.sessions.closed_by(session, LEFT if leaves else clock + 1))

    def set_roster(self, roster: Roster) -> list[Effect]:
        """Another set of sessions counts. What a session that left had not finished is dropped."""
        if roster.version < self.clocks.roster.version:
            return []
        gone = self.clocks.change(roster, self.sessions)
        self.story.append(("roster", roster.version, len(self.clocks.roster.members)))
        effects: list[Effect] = []
        for session in gone:
            effects += self._drop_unfinished(session)
        if roster.modes != self.modes.changes:
            self.modes = StepModes(self.modes.declared, roster.modes)
            effects += self._apply_folded()
        return effects + self._advance()

    def _apply_folded(self) -> list[Effect]:
        """Apply what was folded into a step that is not bsp any more; nothing else can be in its gates."""
        effects: list[Effect] = []
        for index, state in list(self._gated.items()):
            for clock in [clock for clock in sorted(state.gates) if self.modes.at(clock).mode is not Mode.BSP]:
                for run in state.gates.pop(clock):
                    effects += self._finish(state, run, clock)
            if not state.gates:
                del self._gated[index]
        return effects

    def end_session(self, session: bytes) -> list[Effect]:
        """The scheduler has ended `session`: its integers go, nothing waits for it or is taken of it."""
        self._open.end_session(session)
        effects = self._drop_unfinished(session)
        self.sessions.end(session)
        self.stamps.end(session, self.clocks.closed.get(session, 0) - 1)
        self.clocks.end(session)
        self.tallies.end(session)
        self.story.append(("ended", session))
        return effects + self._advance()

    def drop(self, block: int, seg_begin: int, seg_end: int) -> list[Effect]:
        """Tensors are deleted: their segments hold nothing, no step waits for them, and who asks is told so."""
        state = self.blocks[block]
        state.present[seg_begin:seg_end] = [False] * (seg_end - seg_begin)
        effects: list[Effect] = []
        for clock, runs in state.gates.items():
            for run in gate_runs.exactly(runs, seg_begin, seg_end):
                effects += [Release(c.buffer) for c in run.empty()] + self._apply_run(state, run, clock)
                runs.remove(run)
        state.gates = {clock: runs for clock, runs in state.gates.items() if runs}
        if not state.gates:
            self._gated.pop(block, None)
        if state.reducing is not None:
            for reduced in state.reducing.drop(seg_begin, seg_end):
                effects += [Release(c.buffer) for c in reduced.run.empty()]
                effects += self._apply_run(state, reduced.run, reduced.clock)
        state.applied[seg_begin:seg_end] = [LEFT] * (seg_end - seg_begin)
        return effects + self._reduce(state) + self._release_parked(state)

    def reduced(self, block: int, scope: int, clock: int, phase: int, totals: Totals) -> list[Effect]:
        """The total that a `Measure` was part of; one that nobody waits for (any more) changes nothing."""
        state = self.blocks[block]
        if state.reducing is None:
            return []
        effects: list[Effect] = []
        for free in state.reducing.give(scope, clock, phase, totals):
            effects += self._apply_run(state, free.run, clock, free)
        for later in sorted(state.gates):
            effects += self._complete(state, later, 0, len(state.applied))
        return effects + self._reduce(state) + self._release_parked(state)

    def drop_origin(self, connection: Any) -> None:
        """A connection closed: its parked pulls go; the answers of its pushes wait for it to come back."""
        self._open.drop_origin(connection)

    # ---- admission -----------------------------------------------------------------------------------------

    def _admit(self, event: Push, *, needs_values: bool = True) -> list[Effect] | None:
        """Admit `event` by its seq, or return the effects of refusing it."""
        session, seq = event.session, event.seq
        match self.sessions.judge(session, seq):
            case Verdict.ENDED:
                return [Release(event.buffer), self._answer(event, Status.ERROR, error=ended_error())]
            case Verdict.GAP:
                self.sessions.note_refused(session, seq, event.clock)
                return [
                    Release(event.buffer),
                    self._answer(event, Status.GAP, aux=self.sessions.expected(session)),
                ]
            case Verdict.BEFORE:
                return self._repeat(event)
            case Verdict.NEXT:
                self.sessions.admit(session, seq)
        if needs_values and not self._is_present(event):
            error = absent_error(self.blocks[event.block].applied[event.seg_begin : event.seg_end], event.block)
            return self._and_its_mark(event, self._consume(event, Status.ERROR, error))
        return None

    def _repeat(self, event: Push) -> list[Effect]:
        """The entry was admitted before: its answer goes to where it is asked for now."""
        self.tallies.duplicates += 1
        waiting = self._open.find(event)
        if waiting is not None:
            waiting.origin = event.origin
            return [Release(event.buffer)]
        status, error = self.sessions.fate(event.session, event.seq)
        values = event.values and status in (Status.DUPLICATE, Status.LATE) and self._is_present(event)
        return [Release(event.buffer), self._answer(event, status, values=values, error=error)]

    def _is_present(self, event: Push) -> bool:
        return all(self.blocks[event.block].present[event.seg_begin : event.seg_end])

    def _consume(self, event: Push, status: Status, error: WindlassError | None = None) -> list[Effect]:
        """The entry's seq is used up, its values are not; a repetition is told the same."""
        self.sessions.note_fate(event.session, event.seq, status, error)
        return [Release(event.buffer), self._answer(event, status, error=error)]

    def _reject(self, event: Push) -> list[Effect]:
        self.tallies.rejected += 1  # the step goes on without its values
        return self._consume(event, Status.ERROR if event.refusal else Status.REJECTED, event.refusal)

    def _and_its_mark(self, event: Push, effects: list[Effect]) -> list[Effect]:
        """`effects`, and those of the mark that waited for `event`, if it did."""
        return effects + self._close(event.session, self.sessions.settle(event.session))

    def _close(self, session: bytes, closed: int) -> list[Effect]:
        return self._advance() if self.clocks.close(session, closed) else []

    def _answer(
        self,
        event: Push,
        status: Status,
        *,
        values: bool = False,
        aux: int = 0,
        error: WindlassError | None = None,
    ) -> Answer:
        if status is Status.LATE:
            aux = self._open_step(self.blocks[event.block], event)
        elif values:
            aux = self.blocks[event.block].updates[event.seg_begin]
        return Answer(event.origin, status, event.block, event.seg_begin, event.seg_end, values, aux, error)

    # ---- BSP -----------------------------------------------------------------------------------------------

    def _contribute(self, event: Push) -> list[Effect]:
        state = self.blocks[event.block]
        if event.clock < self._open_step(state, event):
            return self._come_late(state, event)
        effects: list[Effect] = []
        waiting = contribution = None
        if event.finite and event.refusal is None:
            waiting = self._open.wait_for(event, event.clock, event.seg_end - event.seg_begin)
            contribution = Contribution.of(event, self.clocks.rank(event.session))
        else:
            effects = self._reject(event)
        runs = self._runs(state, event.clock)
        for run in gate_runs.exactly(runs, event.seg_begin, event.seg_end):
            if contribution is not None and waiting is not None:
                run.contributions.append(contribution)
                contribution.runs += 1
                run.waiting.append(waiting)
            if event.last:
                run.done.add(event.session)
        if event.last:
            completed = self._complete(state, event.clock, event.seg_begin, event.seg_end)
            effects += completed
            if completed and state.parked:
                effects += self._release_parked(state)
        return effects

    def _open_step(self, state: BlockState, event: Push | Waiting) -> int:
        """The first step that is complete on none of the event's segments."""
        return max(self.clocks.closed_min, *state.taken()[event.seg_begin : event.seg_end])

    def _runs(self, state: BlockState, clock: int) -> list[GateRun]:
        """The gates of step `clock`."""
        runs = state.gates.get(clock)
        if runs is None:
            runs = state.gates[clock] = gate_runs.fresh_runs(state.taken(), clock)
            self._gated[state.shape.index] = state
        return runs

    def _come_late(self, state: BlockState, event: Push) -> list[Effect]:
        """The step of `event` is complete. Dropped, or folded into the open one as a contribution of its own."""
        self.tallies.come_late(event.session, event.clock)
        if not (self.modes.at(event.clock).folds and event.finite and event.refusal is None):
            return [Release(event.buffer), *self._say_late(state, event)]
        open_step = self._open_step(state, event)
        self.clocks.begin(open_step)
        contribution = Contribution.of(event, self.clocks.rank(event.session))
        for run in gate_runs.exactly(self._runs(state, open_step), event.seg_begin, event.seg_end):
            run.contributions.append(contribution)
            contribution.runs += 1
        return self._say_late(state, event)

    def _say_late(self, state: BlockState, event: Push) -> list[Effect]:
        """It is told so at once; where values go along, once its step is not only complete but applied."""
        self.sessions.note_fate(event.session, event.seq, Status.LATE)
        begin, end, reducing = event.seg_begin, event.seg_end, state.reducing
        if not event.values or reducing is None or not reducing.holds(state, begin, end, event.clock + 1):
            return [self._answer(event, Status.LATE, values=event.values)]
        waiting = self._open.wait_for(event, event.clock + 1)
        waiting.late = True
        self._open.park(state, waiting)
        return []

    def _complete(self, state: BlockState, clock: int, seg_begin: int, seg_end: int) -> list[Effect]:
        """Apply the runs on [seg_begin, seg_end) that all are done with in step `clock`, and what follows.

        Only what touches these segments is looked at: one tensor among 2,000 does not walk the others.
        """
        effects: list[Effect] = []
        while (runs := state.gates.get(clock)) is not None and self.clocks.may_complete(clock):
            awaited = self.clocks.awaited(clock, self.modes.at(clock))
            first, end = gate_runs.overlapping(runs, seg_begin, seg_end)
            kept = []
            for run in runs[first:end]:
                if self._is_done(run, awaited) and self._is_next(state, run, clock):
                    effects += self._finish(state, run, clock)
                else:
                    kept.append(run)
            if len(kept) == end - first:
                break
            runs[first:end] = kept
            if not runs:
                del state.gates[clock]
                if not state.gates:
                    del self._gated[state.shape.index]
            clock += 1
        return effects + self._reduce(state) if state.reducing is not None else effects

    def _is_done(self, run: GateRun, awaited: Awaited) -> bool:
        return awaited.are(run.done)

    def _is_next(self, state: BlockState, run: GateRun, clock: int) -> bool:
        """Are the steps before `clock` complete on the run? One nobody pushed for is when all closed it."""
        if state.reducing is not None and state.reducing.holds(state, run.seg_begin, run.seg_end, clock):
            return False
        return self.clocks.closed_min >= clock or min(state.applied[run.seg_begin : run.seg_end]) >= clock

    def _finish(self, state: BlockState, run: GateRun, clock: int) -> list[Effect]:
        """All are done with the run: apply it, or what of it needs no norms of other blocks."""
        if not run.contributions:
            return self._apply_run(state, run, clock)
        # A contribution may have come before the roster that names its session's rank.
        run.contributions.sort(key=lambda c: (self.clocks.rank(c.session, c.rank), c.session))
        divisor = sum({(c.session, c.clock): c.weight for c in run.contributions}.values()) if self.mean else 1.0
        stamp = max(c.stamp for c in run.contributions)
        stamp = self.modes.stamp(clock, self.stamps.highest(clock, stamp) if self.stamps else stamp)
        resolved = ReducingRun(run, clock, divisor, stamp)
        if state.reducing is None or divisor <= 0:
            return self._apply_run(state, run, clock, resolved)
        effects: list[Effect] = []
        for free in state.reducing.take(resolved):
            effects += self._apply_run(state, free.run, clock, free)
        return effects

    def _apply_run(
        self, state: BlockState, run: GateRun, clock: int, resolved: ReducingRun | None = None
    ) -> list[Effect]:
        """The run's step is over; `resolved` says what it is applied with, if anything was contributed."""
        seg_begin, seg_end = run.seg_begin, run.seg_end
        released = []
        for waiting in run.waiting:
            waiting.remaining -= seg_end - seg_begin
            if waiting.remaining == 0 and not waiting.forgotten:
                self._open.close(waiting)
                if waiting.origin is not None:
                    released.append(waiting)
        state.applied[seg_begin:seg_end] = [clock + 1] * (seg_end - seg_begin)
        fused = None
        effects: list[Effect] = []
        if resolved is not None:
            fused = next((w for w in released if w.values and (w.seg_begin, w.seg_end) == (seg_begin, seg_end)), None)
            effects += self._applied(gate_runs.applies_of(state, resolved, mean=self.mean), fused)
        effects += [self._answer_of(waiting) for waiting in released if waiting is not fused]
        for contribution in run.contributions:
            contribution.runs -= 1
            if contribution.runs == 0:
                effects.append(Release(contribution.buffer))
        return effects

    def _applied(self, applies: list[Apply], waiting: Waiting | None) -> list[Effect]:
        """The updates, counted, and then the answer, in the same pass where there is one."""
        for apply in applies:
            self.blocks[apply.block].count(apply)
        if waiting is None:
            return [*applies]
        if len(applies) == 1:
            return [applies[0]._replace(answer=self._answer_of(waiting))]
        return [*applies, self._answer_of(waiting)]

    def _reduce(self, state: BlockState) -> list[Effect]:
        """Partials that can be taken now, and what is said of steps that went by."""
        if state.reducing is None:
            return []
        closed_min, index = self.clocks.closed_min, state.shape.index
        effects: list[Effect] = []
        for phase, span, clock, runs in state.reducing.due(state, closed_min):
            parts = tuple(apply for run in runs for apply in gate_runs.applies_of(state, run, mean=self.mean))
            effects.append(Measure(index, span.scope, clock, phase, parts))
        return effects + list(state.reducing.settled(state, closed_min))

    def _advance(self) -> list[Effect]:
        """Marks or the roster changed: complete what that frees, step by step; only then read."""
        if not self.clocks.roster.started:
            return []
        self.clocks.advance(self.modes)
        effects: list[Effect] = []
        for state in list(self._gated.values()):
            for clock in sorted(state.gates):
                effects += self._complete(state, clock, 0, len(state.applied))
        for state in self._reduced:
            effects += self._reduce(state)
        for state in list(self._open.parking.values()):
            effects += self._release_parked(state)
        self.stamps.prune(self.clocks.closed_min)
        return effects

    def _drop_unfinished(self, session: bytes) -> list[Effect]:
        """Take out what `session` contributed to runs it was not done with, and its assigns that wait."""
        effects: list[Effect] = []
        forgotten: list[Waiting] = []
        closed = self.clocks.closed.get(session, 0)
        for state in {**self._gated, **self._open.parking}.values():
            unused, waited = gate_runs.drop_session(state, session, closed)
            effects += [Release(contribution.buffer) for contribution in unused]
            effects += [Release(waiting.write) for waiting in waited if waiting.write is not None]
            forgotten += waited
            self._open.tidy([state])
        for waiting in forgotten:
            if not waiting.forgotten:
                waiting.forgotten = True
                self._open.close(waiting)
                self.sessions.note_fate(session, waiting.seq, Status.LATE)
                if waiting.origin is not None:
                    effects.append(waiting.answer(Status.LATE)._replace(values=False))
        return effects

    # ---- ASP and SSP ---------------------------------------------------------------------------------------

    def _apply_on_arrival(self, event: Push) -> list[Effect]:
        if not event.finite or event.refusal is not None:
            return self._reject(event)
        state = self.blocks[event.block]
        self.tallies.apply(event.clock - self.clocks.closed_min)
        waiting = self._open.wait_for(event, event.clock + 1)
        at_once = not event.values or self._may_read(state, waiting)
        sources = (Source(event.buffer, 0, event.weight if self.factors else 1.0, event.session),)
        fused = waiting if at_once and event.values else None
        stamp = self.modes.stamp(event.clock, event.stamp)
        found = gate_runs.applies(state, event.seg_begin, event.seg_end, sources, 1.0, event.clock, stamp)
        effects = self._applied(found, fused)
        if at_once:
            self._open.close(waiting)
            if fused is None:
                effects.append(self._answer_of(waiting))
        else:
            self._open.park(state, waiting)
        effects.append(Release(event.buffer))
        return effects

    # ---- reads ---------------------------------------------------------------------------------------------

    def _may_read(self, state: BlockState, waiting: Waiting) -> bool:
        if (by_clocks := self.clocks.may_read(waiting.clock, self.modes)) is not None:
            return by_clocks
        if state.reducing is not None and state.reducing.holds(
            state, waiting.seg_begin, waiting.seg_end, waiting.clock
        ):
            return False
        if self.clocks.closed_min >= waiting.clock:
            return True
        return min(state.applied[waiting.seg_begin : waiting.seg_end]) >= waiting.clock

    def _release_parked(self, state: BlockState) -> list[Effect]:
        """Release what is parked on the block and may be read by now."""
        effects: list[Effect] = []
        for waiting in self._open.take(state, self._may_read):
            if waiting.write is not None:
                effects.append(Write(waiting.block, waiting.seg_begin, waiting.seg_end, waiting.write, False))
                effects.append(Release(waiting.write))
            if waiting.origin is not None:
                effects.append(self._answer_of(waiting))
        return effects

    def _answer_of(self, waiting: Waiting) -> Answer:
        state = self.blocks[waiting.block]
        if waiting.late:
            return waiting.answer(Status.LATE, self._open_step(state, waiting))
        return waiting.answer(Status.OK, state.updates[waiting.seg_begin])

    # ---- explanation ---------------------------------------------------------------------------------------

    def parked(self) -> int:
        """Answers that wait for a step or for other workers."""
        return self._open.count()

    def validate(self) -> None:
        """Check the module's invariants (InvariantError)."""
        share_invariants.check(self.blocks, self._gated, self._open, self.clocks, self.sessions)
