"""Reads: which answer's weights a worker's next gradients are made from.

Answers that bring weights carry a number, which the server gives to what it showed (`read_counts` there). Once a caller
has taken them, the number goes back with gradients of the same segments, so that a rate can heed their staleness.

Invariant: a number is that of the newest read that the caller took of a segment. An entry of segments that were read at
different times carries the oldest of their numbers, 0 (unknown) if one of them was not read. The store owns it; a
waiting thread may add to it meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

RUNS_MAX: Final = 64
"""Of a block: tensors pulled one by one. What was read before the newest so many is unknown."""


class Read(NamedTuple):
    """Segments [seg_begin, seg_end) of a block, as one answer showed them."""

    table: int
    block: int
    seg_begin: int
    seg_end: int
    number: int


class Reads:
    """The reads of one store. `tables` are its sparse ones, whose bands are read whole, whatever the ids."""

    def __init__(self, tables: Collection[int]) -> None:
        self._tables = tables
        self._runs: dict[tuple[int, int], tuple[Read, ...]] = {}  # newest first

    def take(self, read: Read) -> None:
        """The caller has these weights."""
        if read.table in self._tables:
            read = read._replace(seg_begin=0, seg_end=1)
        known = self._runs.get((read.table, read.block), ())
        older = [run for run in known if run.seg_begin < read.seg_begin or run.seg_end > read.seg_end]
        self._runs[read.table, read.block] = (read, *older[: RUNS_MAX - 1])

    def number_of(self, table: int, block: int, seg_begin: int, seg_end: int) -> int:
        """What a gradient of these segments was made from."""
        if table in self._tables:
            seg_begin, seg_end = 0, 1
        missing: Sequence[int] = range(seg_begin, seg_end)
        used: list[int] = []
        for run in self._runs.get((table, block), ()):
            if run.seg_begin <= missing[0] and missing[-1] < run.seg_end:
                return min([*used, run.number])
            left = [seg for seg in missing if not run.seg_begin <= seg < run.seg_end]
            if len(left) < len(missing):
                used.append(run.number)
                missing = left
        return 0
