"""Rows of a dense tensor, in one of its segments: which elements of the segment a list of rows names.

    tensor   | row 0 | row 1 | row 2 | row 3 |          a row is what one index along the first axis selects
    segments |   segment 0  | segment 1  | ...          rows cross the borders of blocks
    pieces   of rows (1, 3) in segment 1: the end of row 1, the beginning of row 3

An entry for rows names one segment and, in ascending order, each row that it is about once; its values are the pieces,
one after the other. So the pieces of neighbouring segments put together are the rows again.

Invariant: pure functions of their arguments; client and server compute the same pieces.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from windlass_proto.layout import GroupLayout, Segment

Vector = npt.NDArray[Any]
Numbers = npt.NDArray[np.uint64]


class RowCut(NamedTuple):
    """Rows of a segment: `head` elements of one begun before it, whole ones, `tail` elements of one that ends after.

    Whole rows lie in elements [low, high) of the segment; `near` are the numbers of those that are meant, 0 at low.
    """

    head: int
    low: int
    high: int
    tail: int
    near: npt.NDArray[np.int64]


class RowPieces(NamedTuple):
    """Elements [begin, end) of a tensor whose rows have `width` elements."""

    begin: int
    end: int
    width: int

    @property
    def rows(self) -> range:
        """The rows that have a piece here."""
        return range(self.begin // self.width, -(-self.end // self.width))

    def span(self, first: int, last: int, count: int) -> tuple[int, int]:
        """Which of the elements of `count` rows, from `first` to `last`, one after the other, lie here."""
        return max(0, self.begin - first * self.width), count * self.width - max(0, (last + 1) * self.width - self.end)

    def elements(self, rows: Numbers) -> int:
        """How many elements their pieces have."""
        if not rows.size:
            return 0
        low, high = self.span(int(rows[0]), int(rows[-1]), rows.size)
        return high - low

    def gather(self, run: Vector, rows: Numbers, values: Vector) -> None:
        """The pieces of `rows`, out of `run` (this segment) into `values`."""
        head, whole, tail, near = self._parts(run, rows)
        values[: head.size] = head
        np.take(whole, near, axis=0, out=values[head.size : values.size - tail.size].reshape(near.size, self.width))
        values[values.size - tail.size :] = tail

    def scatter(self, values: Vector, rows: Numbers, run: Vector) -> None:
        """`values` to the pieces of `rows` in `run`."""
        head, whole, tail, near = self._parts(run, rows)
        head[:] = values[: head.size]
        whole[near] = values[head.size : values.size - tail.size].reshape(near.size, self.width)
        tail[:] = values[values.size - tail.size :]

    def cut(self, rows: Numbers) -> RowCut:
        """How the pieces of `rows` lie in the segment."""
        first, last = -(-self.begin // self.width), self.end // self.width
        low, high = min(first * self.width, self.end) - self.begin, max(first, last) * self.width - self.begin
        begins_before = bool(rows.size) and int(rows[0]) < first
        ends_behind = bool(rows.size) and int(rows[-1]) >= max(first, last)
        near = rows[int(begins_before) : rows.size - int(ends_behind)].astype(np.int64) - first
        tail = self.end - self.begin - high if ends_behind else 0
        return RowCut(low if begins_before else 0, low, max(low, high), tail, near)

    def _parts(self, run: Vector, rows: Numbers) -> tuple[Vector, Vector, Vector, npt.NDArray[np.int64]]:
        """Of `run`: the piece of a row that begins before, whole rows, the piece of one that ends behind; and which."""
        cut = self.cut(rows)
        whole = run[cut.low : cut.high].reshape(-1, self.width)
        return run[: cut.head], whole, run[cut.high : cut.high + cut.tail], cut.near


def of_segment(layout: GroupLayout, segment: Segment) -> RowPieces:
    """The rows of a segment's tensor; a tensor without axes has none."""
    shape = layout.tensors[segment.tensor].shape
    return RowPieces(segment.tensor_begin, segment.tensor_begin + segment.elements, math.prod(shape[1:]))
