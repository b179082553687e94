"""Bugs that were made, or could be, planted one at a time: the simulator must catch each within the suite's seeds.

Each is a part put in place of a real one; the product knows nothing of it. `caught_by` lists the checks that may speak.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.sim.cluster import Parts
from tests.sim.server import Server
from windlass.lane import Lane
from windlass.window_core import WRITES, Request, Stamp, WindowCore
from windlass_proto.consistency import Consistency
from windlass_proto.frames import Status
from windlass_proto.layout import Block
from windlass_proto.step_modes import StepModes
from windlass_server.gate_runs import BlockState, GateRun
from windlass_server.reducing import Reducing, ReducingRun
from windlass_server.reduction_core import ReductionCore, Told
from windlass_server.roster_clocks import Awaited, RosterClocks
from windlass_server.session_filter import SessionFilter, Verdict
from windlass_server.share_core import Answer, Effect, Push, Roster, ShareCore
from windlass_server.share_events import Totals
from windlass_server.step_stamps import StepStamps


class SeqAtSubmit(WindowCore):
    """A seq is given when the push is submitted; priorities then send another first."""

    def submit(self, request: Request) -> int:
        if request.op in WRITES:
            request.seq = self.seqs[request.share] = self.seqs.get(request.share, 0) + 1
        return super().submit(request)

    def _freeze(self, lane: Any, request: Request) -> None:
        given, last = request.seq, self.seqs.get(request.share, 0)
        super()._freeze(lane, request)
        if request.op in WRITES:
            sent = self._unanswered[request.share]
            sent[given] = sent.pop(request.seq)
            request.seq, self.seqs[request.share] = given, last

    def validate(self) -> None:
        """Says nothing: the cluster must notice."""


class HighestSeq(SessionFilter):
    """Remembers the highest seq and takes any above it, so a hole is never noticed."""

    def judge(self, session: bytes, seq: int) -> Verdict:
        verdict = super().judge(session, seq)
        return Verdict.NEXT if verdict is Verdict.GAP else verdict


class NoMark(WindowCore):
    """Closing a step sends nothing."""

    def close_step(
        self, store: int, clock: int, servers: Iterable[int], *, leaves: bool = False, stamp: Stamp | None = None
    ) -> None:
        """Sends no mark."""


class MarkBeforeEntries(WindowCore):
    """A mark goes out at once, before the entries of its step."""

    def _is_due(self, lane: Any, mark: Any) -> bool:
        return True


class NewSeqOnRetry(WindowCore):
    """What is sent again after a broken link gets new numbers."""

    def link_down(self, server: int) -> None:
        super().link_down(server)
        for request in self.lanes[server].again:
            if request.op in WRITES:
                sent = self._unanswered[request.share]
                del sent[request.seq]
                request.seq = self.seqs[request.share] = self.seqs[request.share] + 1
                sent[request.seq] = request


class _Overtaken(Lane):
    __slots__ = ()

    def _hurry(self, beside: list[Request], last: Request) -> None:
        """Nothing."""


class OvertakesItsOwn(WindowCore):
    """The last push of a step overtakes what was pushed before it to the same tensor."""

    def _lane(self, server: int) -> Lane:
        return self.lanes.setdefault(server, _Overtaken())


class ClosesAtLast(ShareCore):
    """The last push for some segments is taken as the last of the step."""

    def push(self, event: Push) -> list[Effect]:
        effects = super().push(event)
        return effects + (self.mark(event.session, event.clock) if event.last else [])


class KeepsHalves(ShareCore):
    """What a dead worker had begun counts as if it were finished."""

    def _drop_unfinished(self, session: bytes) -> list[Effect]:
        for state in self._gated.values():
            for run in (run for runs in state.gates.values() for run in runs):
                if any(c.session == session for c in run.contributions):
                    run.done.add(session)
        return super()._drop_unfinished(session)


class Counting(ShareCore):
    """A step is released by a count of those who said they were done; a repetition counts again."""

    def _repeat(self, event: Push) -> list[Effect]:
        for run in self.blocks[event.block].gates.get(event.clock, []):
            if event.last and event.seg_begin <= run.seg_begin < event.seg_end:
                run.done.add(event.session + bytes([len(run.done)]))
        return super()._repeat(event)

    def _is_done(self, run: GateRun, awaited: Awaited) -> bool:
        if awaited.quota < len(awaited.sessions):  # not all are needed
            return super()._is_done(run, awaited)
        closed = {m.session for m in self.clocks.roster.members} - awaited.sessions - run.done
        return len(run.done) + len(closed) >= len(self.clocks.roster.members)


class OutOfOrder(ShareCore):
    """A step completes without looking whether the one before it has."""

    def _is_next(self, state: Any, run: GateRun, clock: int) -> bool:
        return True


class AckOnReceipt(ShareCore):
    """A push is acknowledged when it arrives, not when it is applied."""

    def push(self, event: Push) -> list[Effect]:
        effects = super().push(event)
        waiting = self._open.find(event)
        if waiting is not None and waiting.origin is not None:
            effects.append(waiting.answer(Status.OK))
            waiting.origin = None
        return effects


class _VotesWithoutHold(RosterClocks):
    def prepare(self, clock: int, proposal: int = 0, *, mode: bool = False) -> bool:
        self.hold_clock, accepted = None, super().prepare(clock, proposal, mode=mode)
        self.hold_clock = None
        return accepted


class NoHold(ShareCore):
    """Votes for a newcomer's clock and then completes that step without it."""

    def __init__(self, consistency: Consistency, blocks: list[Block], **how: Any) -> None:
        super().__init__(consistency, blocks, **how)
        self.clocks = _VotesWithoutHold()


class AnswersLost(ShareCore):
    """An answer that was on its way when the link broke stays with the old connection."""

    def _repeat(self, event: Push) -> list[Effect]:
        waiting = self._open.find(event)
        before = waiting.origin if waiting is not None else None
        effects = super()._repeat(event)
        if waiting is not None:
            waiting.origin = before
        return effects


class EagerMarks(SessionFilter):
    """A mark counts although entries before it were sent away."""

    def closed_by(self, session: bytes, closed: int) -> int:
        return closed


class ReadsEarly(ShareCore):
    """A pull waits for one step less than it should."""

    def _may_read(self, state: Any, waiting: Any) -> bool:
        waiting.clock -= 1
        try:
            return waiting.clock < 0 or super()._may_read(state, waiting)
        finally:
            waiting.clock += 1


class OneTooFew(RosterClocks):
    """Of the K workers that a step needs it waits for one less."""

    def awaited(self, clock: int, mode: Consistency) -> Awaited:
        sessions, quota = super().awaited(clock, mode)
        return Awaited(sessions, max(0, quota - 1) if mode.needed else quota)


class Undecided(RosterClocks):
    """While a mode is being agreed it goes on taking and answering what belongs to the steps in question."""

    def is_undecided(self, clock: int) -> bool:
        return False


class OldStamps(StepModes):
    """A mode's hyper-parameters hold where a worker has heard of them."""

    def stamp(self, clock: int, stamp: Any) -> Any:
        return stamp


class ForgetsModes(ShareCore):
    """A push is taken in the mode that holds at last, whichever step it belongs to."""

    def set_roster(self, roster: Roster) -> list[Effect]:
        modes = tuple(change._replace(clock=0) for change in roster.modes[-1:])
        return super().set_roster(dataclasses.replace(roster, modes=modes))


class DropsLate(ShareCore):
    """What is to be folded is dropped."""

    def _come_late(self, state: Any, event: Push) -> list[Effect]:
        return super()._come_late(state, event._replace(finite=False))


class TakesLate(ShareCore):
    """A push for a step that is complete is taken as if it were open."""

    def _open_step(self, state: Any, event: Any) -> int:
        clock: int = event.clock
        return clock


class Unreleased(ShareCore):
    """Forgets to give a buffer back when a push comes twice."""

    def _repeat(self, event: Push) -> list[Effect]:
        return [effect for effect in super()._repeat(event) if isinstance(effect, Answer)]


class LowestStamp(StepStamps):
    """A step is applied with the lowest stamp that a session has given it."""

    def highest(self, clock: int, stamp: int) -> int:
        given: list[int] = [stamp]
        for said in self._announced.values():
            if at := bisect_right(said, (clock, 1 << 32)):
                given.append(said[at - 1][1])
        return min(given)


class OnlyPushed(StepStamps):
    """Who pushed nothing has no say in a step's stamp, so servers differ."""

    def highest(self, clock: int, stamp: int) -> int:
        return stamp


class NoStampOnMarks(WindowCore):
    """A mark goes out without its step's record."""

    def close_step(
        self, store: int, clock: int, servers: Iterable[int], *, leaves: bool = False, stamp: Stamp | None = None
    ) -> None:
        super().close_step(store, clock, servers, leaves=leaves)


class TotalTwice(Reducing):
    """A total that has been taken is taken again when it comes once more."""

    def give(self, scope: int, clock: int, phase: int, totals: Totals) -> list[ReducingRun]:
        runs = list(self.runs)
        free = super().give(scope, clock, phase, totals)
        self.runs = runs
        return free


class ReadsBeforeTheTotal(Reducing):
    """What is closed may be read while it is reduced."""

    def holds(self, state: BlockState, seg_begin: int, seg_end: int, clock: int) -> bool:
        """The core asks of gates for the step that they are of, of reads for one that is over."""
        asks_gates = clock in state.gates
        return asks_gates and super().holds(state, seg_begin, seg_end, clock)


class MeasuresEarly(Reducing):
    """A block speaks for a step before all its segments can."""

    def _is_whole(self, *_: Any) -> bool:
        return True


class OfAnotherStep(ReductionCore):
    """A partial counts for whatever step of its scope is open."""

    def partial(self, scope: int, block: int, clock: int, phase: int, sums: Totals, origin: Any) -> list[Told]:
        for open_scope, step, _ in self.awaited():
            if open_scope == scope:
                return super().partial(scope, block, step, phase, sums, origin)
        return super().partial(scope, block, clock, phase, sums, origin)


class WithoutWaiting(ReductionCore):
    """A total is made of the partials that happen to be there."""

    def partial(self, scope: int, block: int, clock: int, phase: int, sums: Totals, origin: Any) -> list[Told]:
        told = super().partial(scope, block, clock, phase, sums, origin)
        return told or [Told(origin, scope, block, clock, phase, sums)]


class NeverSettled(ReductionCore):
    """Blocks that have nothing to say are waited for."""

    def settled(self, scope: int, block: int, clock: int) -> list[Told]:
        return []


def _with_reducing(kind: Callable[..., Reducing]) -> Callable[[Server], None]:
    def rebuild(server: Server) -> None:
        for core in server.cores.values():
            for state in core.blocks.values():
                if state.reducing is not None:
                    state.reducing = kind(state.reducing.phases)

    return rebuild


def _with_stamps(kind: Callable[[], StepStamps]) -> Callable[[Server], None]:
    def rebuild(server: Server) -> None:
        for core in server.cores.values():
            core.stamps = kind()

    return rebuild


def _one_filter_a_vshard(server: Server) -> None:
    filters: dict[int, SessionFilter] = {}
    for (_, vshard), core in server.cores.items():
        core.sessions = filters.setdefault(vshard, core.sessions)


class _StampsOfWorkers(ShareCore):
    def set_roster(self, roster: Roster) -> list[Effect]:
        effects = super().set_roster(roster)
        self.modes = OldStamps(self.modes.declared, self.modes.changes)
        return effects


def _with_clocks(kind: Callable[[], RosterClocks]) -> Callable[[Server], None]:
    def rebuild(server: Server) -> None:
        for core in server.cores.values():
            core.clocks = kind()

    return rebuild


def _with_filter(kind: Callable[[], SessionFilter]) -> Callable[[Server], None]:
    def rebuild(server: Server) -> None:
        for core in server.cores.values():
            core.sessions = kind()

    return rebuild


@dataclass(frozen=True, slots=True)
class Bug:
    name: str
    parts: Parts
    caught_by: frozenset[str]


def _bug(name: str, parts: Parts, *caught_by: str) -> Bug:
    return Bug(name, parts, frozenset(caught_by))


BUGS = (
    _bug(
        "a seq is given in push",
        Parts(make_window=SeqAtSubmit, rebuild=_with_filter(HighestSeq)),
        "lost", "read-your-writes", "staleness",
    ),
    _bug(
        "a step is released by a count",
        Parts(make_core=Counting),
        "bound", "staleness", "acknowledged", "exact", "stamp",
    ),
    _bug("no mark is sent", Parts(make_window=NoMark), "liveness"),
    _bug("one filter for a whole vshard", Parts(rebuild=_one_filter_a_vshard), "acknowledged", "lost"),
    _bug(
        "a mark overtakes its step's entries",
        Parts(make_window=MarkBeforeEntries),
        "acknowledged", "staleness", "exact", "read-your-writes",
    ),
    _bug(
        "a retry gets a new seq",
        Parts(make_window=NewSeqOnRetry, rebuild=_with_filter(HighestSeq)),
        "frozen", "doubled", "read-your-writes",
    ),
    _bug("a hole is not noticed", Parts(rebuild=_with_filter(HighestSeq)), "lost", "read-your-writes", "exact"),
    _bug(
        "a last push overtakes others of its step",
        Parts(make_window=OvertakesItsOwn),
        "acknowledged", "exact", "read-your-writes", "same-clock", "staleness",
    ),
    _bug(
        "a last push for some segments closes the step",
        Parts(make_core=ClosesAtLast),
        "acknowledged", "bound", "staleness", "invariant", "exact",
    ),
    _bug("half a step of a dead worker is applied", Parts(make_core=KeepsHalves), "torn"),
    _bug("a step completes before the one before it", Parts(make_core=OutOfOrder), "invariant", "acknowledged"),
    _bug("an answer comes before the apply", Parts(make_core=AckOnReceipt), "read-your-writes", "bound", "same-clock"),
    _bug("a newcomer's step completes without it", Parts(make_core=NoHold), "bound", "same-clock", "acknowledged"),
    _bug("an answer goes to the old connection", Parts(make_core=AnswersLost), "liveness", "acknowledged"),
    _bug(
        "a mark counts although entries were sent away",
        Parts(rebuild=_with_filter(EagerMarks)),
        "acknowledged", "staleness", "exact", "read-your-writes",
    ),
    _bug("a pull waits for one step less", Parts(make_core=ReadsEarly), "bound", "staleness", "read-your-writes"),
    _bug("a repeated push keeps its buffer", Parts(make_core=Unreleased), "buffers"),
    _bug("a step takes the lowest stamp", Parts(rebuild=_with_stamps(LowestStamp)), "stamp"),
    _bug("a stamp counts only where something was pushed", Parts(rebuild=_with_stamps(OnlyPushed)), "stamp"),
    _bug("a total is taken twice", Parts(rebuild=_with_reducing(TotalTwice)), "invariant", "driver"),
    _bug(
        "a step is read before its total has come",
        Parts(rebuild=_with_reducing(ReadsBeforeTheTotal)),
        "staleness", "same-clock", "read-your-writes", "exact",
    ),
    _bug("a block measures before its segments are there", Parts(rebuild=_with_reducing(MeasuresEarly)), "norm"),
    _bug("a partial counts for another step", Parts(make_reduction=OfAnotherStep), "norm", "liveness"),
    _bug("a total is made without all partials", Parts(make_reduction=WithoutWaiting), "norm"),
    _bug("a block that has nothing is waited for", Parts(make_reduction=NeverSettled), "liveness"),
    _bug("a mark goes out without its record", Parts(make_window=NoStampOnMarks), "stamp"),
    _bug("a step needs one worker less", Parts(rebuild=_with_clocks(OneTooFew)), "bound", "staleness"),
    _bug(
        "steps whose mode is undecided are taken",
        Parts(rebuild=_with_clocks(Undecided)),
        "same-clock", "bound", "staleness", "stamp", "acknowledged", "invariant",
    ),
    _bug("a mode's hyper-parameters come later than it", Parts(make_core=_StampsOfWorkers), "stamp"),
    _bug(
        "a mode holds for steps before it",
        Parts(make_core=ForgetsModes),
        "same-clock", "bound", "staleness", "acknowledged", "invariant", "stamp", "liveness",
    ),
    _bug("what is to be folded is dropped", Parts(make_core=DropsLate), "lost"),
    _bug("a push for a complete step is taken", Parts(make_core=TakesLate), "invariant", "liveness"),
)  # fmt: skip
