"""Step stamps: with which version of the hyper-parameters each session stamps which of its steps.

A session announces "from my step f on, this stamp" on every link, ahead of anything of step f; so whoever is done with
a step has said its stamp for it, also where it pushed nothing. A bsp step is applied with the highest one, which is
thus the same on every server. A session that leaves or ends has said nothing of later steps.

Invariant: a session's announcements rise, in step and in stamp. The share core owns them.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any, Final

ANNOUNCED_MAX: Final = 128
"""Twice the steps that a session may have open (`limits.OPEN_STEPS_MAX`), each with a stamp of its own."""


class StepStamps:
    """Empty (and false) while every step is stamped with what was declared."""

    def __init__(self) -> None:
        self._announced: dict[bytes, list[tuple[int, Any]]] = {}
        self._last: dict[bytes, int] = {}  # session that is gone -> its last step

    def __bool__(self) -> bool:
        return bool(self._announced)

    def announce(self, session: bytes, clock: int, stamp: Any) -> None:
        """From its step `clock` on `session` stamps with `stamp`; it may repeat itself."""
        known = self._announced.setdefault(session, [])
        if known and not known[-1][1] < stamp:
            return
        known.append((max(clock, known[-1][0]) if known else clock, stamp))
        del known[:-ANNOUNCED_MAX]

    def highest(self, clock: int, stamp: Any) -> Any:
        """The highest stamp of step `clock`: `stamp`, or one that a session has announced for it."""
        for session, known in self._announced.items():
            if clock <= self._last.get(session, clock):
                at = bisect_right(known, clock, key=_step)
                if at and stamp < known[at - 1][1]:
                    stamp = known[at - 1][1]
        return stamp

    def end(self, session: bytes, last: int) -> None:
        """`session` is gone; `last` is the last step that it closed."""
        if session in self._announced:
            self._last[session] = min(last, self._last.get(session, last))

    def prune(self, closed_min: int) -> None:
        """Steps below `closed_min` are complete."""
        for session, known in list(self._announced.items()):
            if self._last.get(session, closed_min) < closed_min:
                del self._announced[session], self._last[session]
            else:
                del known[: max(0, bisect_right(known, closed_min, key=_step) - 1)]


def _step(announced: tuple[int, Any]) -> int:
    return announced[0]
