"""Which mode each step of a store is in."""

from __future__ import annotations

from windlass_proto.consistency import Consistency
from windlass_proto.step_modes import ModeChange, StepModes

BSP, ASP, SSP = map(Consistency.parse, ("bsp", "asp", "ssp:2"))


def test_what_was_declared_holds_until_another_mode_does() -> None:
    modes = StepModes(BSP, (ModeChange(5, ASP), ModeChange(9, SSP)))
    assert [modes.at(clock) for clock in (0, 4, 5, 8, 9, 10**9)] == [BSP, BSP, ASP, ASP, SSP, SSP]
    assert [modes.next_after(clock) for clock in (0, 5, 8, 9)] == [5, 9, 9, None]
    assert modes.newest == ModeChange(9, SSP)


def test_without_changes_there_is_one_mode() -> None:
    modes = StepModes(SSP)
    assert modes.at(0) == modes.at(10**9) == SSP
    assert modes.next_after(0) is None
    assert modes.newest.consistency == SSP
