"""Live modes: which consistency mode each step of a store is in, as far as this worker has heard.

A roster says it. Under asp and ssp workers are at different clocks, so a worker that hears of another mode goes on with
that mode's first step at once: else the fastest would wait for the slowest to take all the steps between them.

Invariant: of two rosters the one with the higher version counts. Rosters come in the watch thread and with answers to
calls; readers see one or the next, whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from windlass_proto import step_modes
from windlass_proto.consistency import Consistency, Mode
from windlass_proto.step_modes import StepModes

if TYPE_CHECKING:
    from windlass.member import Member


class LiveModes:
    """One store's; `declared` is the mode that it was opened with."""

    def __init__(self, member: Member, store_id: int, declared: str) -> None:
        self.declared = Consistency.parse(declared)
        self._member = member
        self._store_id = store_id
        self._known: tuple[int, StepModes] = (-1, StepModes(self.declared))

    def steps(self) -> StepModes:
        """What is known now."""
        roster = self._member.rosters.get(self._store_id)
        version, known = self._known
        if roster is None or roster.version == version:
            return known
        known = StepModes(self.declared, step_modes.changes_of(roster.modes))
        self._known = (roster.version, known)
        return known

    def at(self, clock: int) -> Consistency:
        """The mode of step `clock`."""
        return self.steps().at(clock)

    def newest(self) -> Consistency:
        """The mode that holds at last."""
        return self.steps().newest.consistency

    def reach(self, clock: int) -> int:
        """With which step a worker goes on whose next one is `clock`."""
        modes = self.steps()
        if modes.newest.clock <= clock or modes.at(clock).mode is Mode.BSP:
            return clock
        return modes.newest.clock
