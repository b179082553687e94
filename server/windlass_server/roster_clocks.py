"""Roster clocks: which sessions count in a share, and how many steps each has closed.

Invariants:
- `closed_min`, the steps that nobody of the roster is waited for, never falls. Where a step needs K workers, they are
  the steps that K of those who count in them have closed; else those that all have.
- No step from `hold_clock` on completes while a change that begins there is being agreed. Where it is one of the mode,
  nothing of such a step is taken or answered, for nobody knows yet what is due to it.

One share core owns an object; the share's lock guards it.

Prior art: the vector clocks of Li et al. (OSDI '14, section 3.4).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from windlass_proto.consistency import Consistency, Mode
from windlass_proto.step_modes import StepModes
from windlass_server.session_filter import SessionFilter
from windlass_server.share_events import LEFT, Roster

UNRANKED = 1 << 30
"""The rank of a session that no roster has named yet."""


class Awaited(NamedTuple):
    """A step is complete where `quota` of `sessions`, who have not closed it, are done with it."""

    sessions: set[bytes]
    quota: int

    def are(self, done: set[bytes]) -> bool:
        """Are enough of them `done`?"""
        if self.quota == len(self.sessions):
            return done >= self.sessions
        return len(done & self.sessions) >= self.quota


class RosterClocks:
    """See the module."""

    def __init__(self) -> None:
        self.roster = Roster()
        self.closed: dict[bytes, int] = {}
        self.closed_min = 0
        self.begun = -1
        self.hold_clock: int | None = None
        self._hold_proposal = 0
        self._holds_mode = False
        self._ranks: dict[bytes, int] = {}

    # ---- events --------------------------------------------------------------------------------------------

    def begin(self, clock: int) -> None:
        """Something of step `clock` has arrived."""
        self.begun = max(self.begun, clock)

    def close(self, session: bytes, closed: int) -> bool:
        """`session` has closed `closed` steps. Is that more than it had?"""
        if closed <= self.closed.get(session, 0):
            return False
        self.closed[session] = closed
        return True

    def change(self, roster: Roster, sessions: SessionFilter) -> list[bytes]:
        """Another set of sessions counts, those ended in `sessions` left out. Returns who left."""
        members = tuple(member for member in roster.members if not sessions.has_ended(member.session))
        gone = {member.session for member in self.roster.members} - {member.session for member in members}
        self.roster = replace(roster, members=members)
        if self._hold_proposal <= roster.proposal_settled:
            self.hold_clock = None
        self._ranks = {member.session: member.rank for member in members}
        for member in members:
            self.closed[member.session] = max(self.closed.get(member.session, 0), member.join_clock)
        return sorted(gone)

    def prepare(self, clock: int, proposal: int = 0, *, mode: bool = False) -> bool:
        """May the roster (or mode) change from step `clock` on? If so, none completes before `proposal` is settled."""
        if proposal and proposal <= self.roster.proposal_settled:
            return False
        if self.hold_clock == clock and self._hold_proposal == proposal:
            return True
        if self.begun >= clock or self.closed_min > clock or proposal < self._hold_proposal:
            return False
        self.hold_clock, self._hold_proposal, self._holds_mode = clock, proposal, mode
        return True

    def end(self, session: bytes) -> None:
        """The scheduler has ended `session`: it counts no more and its integers go."""
        members = tuple(member for member in self.roster.members if member.session != session)
        self.roster = replace(self.roster, members=members)
        self._ranks.pop(session, None)
        self.closed.pop(session, None)

    def advance(self, modes: StepModes) -> None:
        """Raise `closed_min` to what is closed. Those who left, or nobody at all, finish every step begun."""
        while True:
            end = modes.next_after(self.closed_min)
            reach = self._closed(modes.at(self.closed_min))
            reach = reach if end is None else min(reach, end)
            reach = reach if self.hold_clock is None else min(reach, self.hold_clock)
            if reach <= self.closed_min:
                return
            self.closed_min = reach
            if not modes.changes and not modes.declared.needed:
                return

    def _closed(self, mode: Consistency) -> int:
        """How many steps are closed if all are as step `closed_min` is: in `mode`, with those who count in it."""
        living = [(m.join_clock, clock) for m in self.roster.members if (clock := self.closed[m.session]) < LEFT]
        if not mode.needed or not living:
            return min([clock for _, clock in living], default=self.begun + 1)
        counting = sorted((clock for joined, clock in living if joined <= self.closed_min), reverse=True)
        joining = min((joined for joined, _ in living if joined > self.closed_min), default=LEFT)
        return min(joining, counting[min(mode.needed, len(counting)) - 1]) if counting else joining

    # ---- questions -----------------------------------------------------------------------------------------

    def rank(self, session: bytes, unknown: int = UNRANKED) -> int:
        """The rank that the roster gives `session`."""
        return self._ranks.get(session, unknown)

    def awaited(self, clock: int, mode: Consistency) -> Awaited:
        """Whom step `clock` waits for: nobody once it is closed, though who closed it may have died since."""
        if clock < self.closed_min:
            return Awaited(set(), 0)
        if not mode.needed:
            sessions = {m.session for m in self.roster.members if self.closed[m.session] <= clock}
            return Awaited(sessions, len(sessions))
        counting = [m.session for m in self.roster.members if m.join_clock <= clock and self.closed[m.session] < LEFT]
        sessions = {session for session in counting if self.closed[session] <= clock}
        return Awaited(sessions, max(0, min(mode.needed, len(counting)) - (len(counting) - len(sessions))))

    def may_read(self, clock: int, modes: StepModes) -> bool | None:
        """May who has closed `clock` steps read? None: once the step closed last is complete on what is read."""
        if clock == 0:
            return True
        if self.is_undecided(clock - 1):
            return False
        mode = modes.at(clock - 1)
        if mode.mode is Mode.SSP:
            return self.closed_min >= clock - mode.bound
        return True if mode.mode is Mode.ASP else None

    def is_undecided(self, clock: int) -> bool:
        """Is it being agreed in which mode step `clock` is?"""
        return self.hold_clock is not None and self._holds_mode and clock >= self.hold_clock

    def may_complete(self, clock: int) -> bool:
        """Has the store started, and is no change of the roster being agreed from `clock` on?"""
        return self.roster.started and (self.hold_clock is None or clock < self.hold_clock)
