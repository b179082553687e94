"""Lazy rows: the rule of a lazy dense group, run on the rows that a step's pushes name and on no others.

    sources     worker 0: rows 1 4      worker 1: rows 4 7 (of one segment)
    stepped     rows 1 4 7, once each, with the weighted sum of who named them; 0 from who did not

Invariant: a row that is named gets the bits that it would get were its tensor not lazy; one that nobody names keeps its
weights and slots, to the bit, and costs nothing. Updates are counted by segment, not by row: Adam's bias corrections
are those of the tensor (`lazy_update` of MXNet's optimizers, torch.optim.SparseAdam).

Who pushes the whole tensor names every row. Rows lie in host memory. The caller holds the share's lock.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from windlass_proto import limits, row_moves
from windlass_proto.row_pieces import Numbers, RowPieces
from windlass_rules import RuleKernels, reduce
from windlass_rules.rows import RowRule
from windlass_server.dense_memory import Values, Vector
from windlass_server.share_events import Source


class LazyRows:
    """The rule of one group, on rows of its tensors."""

    def __init__(self, kernels: RuleKernels, rule: RowRule) -> None:
        self._kernels = kernels
        self._rule = rule
        self._reductions = reduce.build(rule.dtype)
        self._sum_rows = row_moves.moves(rule.dtype).sum_rows

    def update(
        self,
        w: Vector,
        slots: tuple[Vector, ...],
        begin: int,
        sources: Sequence[Source],
        divisor: float,
        scalars: Vector,
    ) -> None:
        """Step the rows that `sources`, which all name rows, have of the segment at element `begin` of the block."""
        pieces: RowPieces = sources[0].buffer.named.pieces
        if len(sources) == 1:
            rows, gradient, scale = sources[0].buffer.named.rows, sources[0].buffer.array, sources[0].weight / divisor
        else:
            rows, gradient = self._summed(pieces, sources)
            scale = 1.0 / divisor
        cut, width = pieces.cut(rows), pieces.width
        whole = gradient[cut.head : gradient.size - cut.tail]
        low, high = begin + cut.low, begin + cut.high
        step = self._kernels.update
        if cut.head:
            step(w, slots, begin, gradient[: cut.head], scale, scalars)
        if width > limits.ROW_ELEMENTS_MAX:  # too long to be brought together in cache, long enough to be stepped alone
            for i, number in enumerate(cut.near):
                step(w, slots, low + int(number) * width, whole[i * width : (i + 1) * width], scale, scalars)
        elif cut.near.size:
            arrays = (w[low:high], *(slot[low:high] for slot in slots))
            self._rule.update(arrays, cut.near.astype(np.uint32), width, whole, scale, scalars)
        if cut.tail:
            step(w, slots, high, gradient[gradient.size - cut.tail :], scale, scalars)

    def _summed(self, pieces: RowPieces, sources: Sequence[Source]) -> tuple[Numbers, Vector]:
        """Each row that is named, once, with the weighted sum of its pieces in the order of the sources."""
        rows: Numbers = np.unique(np.concatenate([source.buffer.named.rows for source in sources]))
        total: Vector = np.zeros(pieces.elements(rows), self._rule.dtype)
        cut, width = pieces.cut(rows), pieces.width
        begins = np.arange(cut.near.size, dtype=np.int64) * width
        seen = np.zeros(cut.near.size, np.uint8)
        for source in sources:
            values, own = source.buffer.array, pieces.cut(source.buffer.named.rows)
            self._reductions.scaled_add(total[: own.head], values[: own.head], source.weight)
            inverse = np.searchsorted(cut.near, own.near).astype(np.uint32)
            whole = total[cut.head : total.size - cut.tail]
            given = values[own.head : values.size - own.tail]
            self._sum_rows(given, inverse, begins, width, source.weight, whole, seen)
            end = total[total.size - own.tail :], values[values.size - own.tail :]
            self._reductions.scaled_add(*end, source.weight)
        return rows, total


def spread(sources: Sequence[Source], elements: int) -> tuple[Source, ...]:
    """The sources, some of which name rows of a segment of so many elements, as gradients of all of it."""
    return tuple(
        source if source.buffer.named is None else source._replace(buffer=_dense(source.buffer, elements))
        for source in sources
    )


def _dense(values: Values, elements: int) -> Values:
    assert values.named is not None
    whole: Vector = np.zeros(elements, values.array.dtype)
    values.named.pieces.scatter(values.array, values.named.rows, whole)
    return Values(whole, None)
