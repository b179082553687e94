"""A named group of measurements, and how long a run gives it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.report import Row
from benchmarks.rounds import FULL, QUICK, Pace


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured. `quick` keeps every code path and leaves out large loads."""

    quick: bool
    pace: Pace

    def sizes(self, *payload_bytes: int) -> tuple[int, ...]:
        """Those of the loads that this run measures."""
        limit = QUICK_BYTES_MAX if self.quick else max(payload_bytes)
        return tuple(size for size in payload_bytes if size <= limit) or payload_bytes[:1]


QUICK_BYTES_MAX = 1 << 20
WHOLE = Extent(quick=False, pace=FULL)
SMOKE = Extent(quick=True, pace=QUICK)


@dataclass(frozen=True, slots=True)
class Case:
    name: str
    sentence: str
    rows: Callable[[Extent], Iterator[Row]]


def count_text(workers: int) -> str:
    return "1 worker" if workers == 1 else f"{workers} workers"


def size_text(payload_bytes: int) -> str:
    """1048576 -> "1 MiB", 102228128 -> "97.5 MiB"."""
    for unit, scale in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if payload_bytes >= scale:
            return f"{payload_bytes / scale:.3g} {unit}"
    return f"{payload_bytes} B"
