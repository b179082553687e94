"""Numbers that are given out once, also over restarts.

Invariant: a number below a counter's stored ceiling may have been seen; after a restart counting goes on at
the ceiling. So a number costs no write: only every thousandth moves the ceiling, and a restart skips at most
a thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from windlass_scheduler.effects import Persist, Record

_BLOCK: Final = 1000
PREFIX: Final = "counter/"


class Counters:
    """Named counters from 1 on. Owner: whoever owns the cores that take from it."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._ceiling: dict[str, int] = {}
        self._moved: list[Persist] = []

    def restore(self, records: Mapping[str, Record]) -> None:
        for key, record in records.items():
            ceiling = int(str(record["ceiling"]))
            self._next[key.removeprefix(PREFIX)] = self._ceiling[key.removeprefix(PREFIX)] = ceiling

    def take(self, name: str) -> int:
        number = self._next.get(name, 1)
        if number >= self._ceiling.get(name, 0):
            self._ceiling[name] = number + _BLOCK
            self._moved.append(Persist(PREFIX + name, {"ceiling": number + _BLOCK}))
        self._next[name] = number + 1
        return number

    def drain(self) -> list[Persist]:
        """Ceilings that moved since the last call; they are stored before the numbers are seen."""
        moved, self._moved = self._moved, []
        return moved
