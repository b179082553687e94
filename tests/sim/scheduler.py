"""The simulated scheduler: the real roster core, its words on the way to each server and back, and leases.

What it says to one server arrives in order; different servers hear it at different times.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.sim.server import Server
from tests.sim.timeline import Timeline
from windlass_proto.consistency import Consistency
from windlass_proto.step_modes import ModeChange
from windlass_scheduler.counters import Counters
from windlass_scheduler.effects import Answer, Effect, Refuse
from windlass_scheduler.roster import ModeWish
from windlass_scheduler.roster import Roster as SchedulerRoster
from windlass_scheduler.roster_core import (
    ChangeMode,
    Enter,
    Entered,
    ModeAccepted,
    ModeDecided,
    Opened,
    PrepareSent,
    RosterChanged,
    Rosters,
    SessionGone,
    Tick,
    Voted,
    Voters,
)
from windlass_server.share_core import Roster
from windlass_server.share_events import Member

STORE = 1
TICK_S = 0.5


class Scheduler:
    """Who counts, as the roster core decides it."""

    def __init__(self, timeline: Timeline, servers: list[Server], declared: int) -> None:
        self.timeline = timeline
        self.servers = servers
        self.declared = declared
        self.rosters = Rosters(Counters(), vote_s=2.0)
        self._waiters: dict[int, Callable[[Entered | None], None]] = {}
        self._wishes = 0
        self._changed: dict[int, Callable[[int], int]] = {}
        self._heard_s = [0.0] * len(servers)
        self._carry_out(self.rosters.step(Opened(STORE, "job", "store")))
        self._carry_out(self.rosters.step(Voters(0.0, frozenset(range(len(servers))))))
        self._tick()

    def enter(self, session: bytes, rank: int, entered: Callable[[Entered | None], None]) -> None:
        """A worker asks to count; `entered` is called with where it begins, or None if it has to ask again."""
        waiter = len(self._waiters) + 1
        self._waiters[waiter] = entered
        now_s = self.timeline.now_s
        self._carry_out(self.rosters.step(Enter(now_s, waiter, STORE, session, rank, "host", self.declared)))

    def change_mode(self, consistency: str, changed: Callable[[int], int]) -> None:
        """Somebody sets another mode. `changed` is told from which step on, and says with which version (0: none)."""
        self._wishes += 1
        wish = ModeWish(-self._wishes, b"", 0, self._wishes, consistency, b"")
        self._changed[self._wishes] = changed
        self._carry_out(self.rosters.step(ChangeMode(self.timeline.now_s, STORE, wish)))

    def end(self, session: bytes) -> None:
        """A session has left, or its lease has run out."""
        for index, server in enumerate(self.servers):
            self._say(index, lambda server=server: server.end_session(session))  # type: ignore[misc]
        self._carry_out(self.rosters.step(SessionGone(self.timeline.now_s, session)))

    def _tick(self) -> None:
        self._carry_out(self.rosters.step(Tick(self.timeline.now_s)))
        self.timeline.after(TICK_S, self._tick)

    def _carry_out(self, effects: list[Effect]) -> None:
        self.rosters.validate()
        for effect in effects:
            if isinstance(effect, RosterChanged):
                roster = _as_servers_see(effect.roster)
                for index, server in enumerate(self.servers):
                    self._say(index, lambda server=server, roster=roster: server.set_roster(roster))  # type: ignore[misc]
            elif isinstance(effect, PrepareSent):
                for index in range(len(self.servers)):
                    self._say(index, lambda index=index, sent=effect: self._prepare(index, sent))  # type: ignore[misc]
            elif isinstance(effect, ModeAccepted):
                version = self._changed[effect.wish.action_id](effect.clock)
                record = bytes([version]) if version else b""
                self._carry_out(self.rosters.step(ModeDecided(self.timeline.now_s, effect, record)))
            elif isinstance(effect, Answer) and isinstance(effect.reply, Entered):
                self._reply(effect.waiter, effect.reply)
            elif isinstance(effect, Refuse) and effect.waiter > 0:
                self._reply(effect.waiter, None)

    def _reply(self, waiter: int, reply: Entered | None) -> None:
        self.timeline.after(self._delay_s(), lambda: self._waiters[waiter](reply))

    def _prepare(self, index: int, sent: PrepareSent) -> None:
        accepted, highest = self.servers[index].prepare(sent.clock, sent.proposal, mode=sent.mode)
        self.timeline.after(self._delay_s(), lambda: self._voted(index, sent.proposal, accepted, highest))

    def _voted(self, index: int, proposal: int, accepted: bool, highest: int) -> None:
        now_s = self.timeline.now_s
        self._carry_out(self.rosters.step(Voted(now_s, index, STORE, proposal, accepted, highest)))

    def _say(self, index: int, word: Callable[[], None]) -> None:
        arrives_s = max(self._heard_s[index], self.timeline.now_s + self._delay_s())
        self._heard_s[index] = self.timeline.at(arrives_s, word)

    def _delay_s(self) -> float:
        rng = self.timeline.rng
        return rng.uniform(0.1, 0.4) if rng.random() < 0.15 else rng.uniform(0.001, 0.03)


def _as_servers_see(roster: SchedulerRoster) -> Roster:
    members = tuple(Member(m.session, m.rank, m.join_clock) for m in roster.members)
    modes = [
        ModeChange(m.clock, Consistency.parse(m.consistency), m.record[0] if m.record else None) for m in roster.modes
    ]
    return Roster(roster.version, roster.started, members, roster.proposal_settled, tuple(modes))
