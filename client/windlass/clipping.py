"""Clipping by norms where a push is applied when it comes: by the norm of its worker's own gradient.

Under bsp the servers take norms of a step's mean. Under asp and ssp there is no step to take one of over several
blocks, but the worker has its gradient whole: it measures what the servers will apply (under a codec what arrives, with
what was kept back in it) and says with each entry what it is to be multiplied with. So a bound holds for what is
applied, and the result is that of one server, bit for bit, for its sums are made in the same order.

`clip_norm` bounds each tensor of a call, `clip_global_norm` all of one call and one declared group together: a gradient
that is pushed layer by layer is bounded layer by layer.

Invariant: nothing of a gradient is changed or copied here. An entry holds segments of one factor. A gradient whose norm
is no number has the factor NaN where such gradients are rejected, so that none of its entries is applied.

Owner: the store's lock.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from windlass_proto import finite, gradient_norms
from windlass_proto.codecs import halves
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import HALVES
from windlass_proto.rule_records import RuleRecord
from windlass_proto.rule_specs import RuleSpec
from windlass_proto.transfer_specs import Nonfinite

if TYPE_CHECKING:
    from windlass.exchange import Exchange
    from windlass.plan import Plan, Squares

Vector = npt.NDArray[Any]
Borders = frozenset[tuple[int, int]]
"""(block, segment): an entry begins here, though its tensors follow on those before."""

_RUN: Final = 64 * gradient_norms.CHUNK  # 256 KiB of float32 stay in cache between conversion and squares


class Clipping:
    """How pushes to one group are clipped; `present`: the hyper-parameters of this worker's present step."""

    def __init__(self, spec: GroupSpec, present: Callable[[], RuleRecord]) -> None:
        layout = spec.layout
        self._present = present
        self.layout = layout
        self.rule = spec.rule
        self.is_global = getattr(spec.rule, "clip_global_norm", None) is not None
        self._policy = spec.transfer.nonfinite
        self._squares = gradient_norms.build_squares(layout.held)
        self._halves = halves.build(layout.dtype_name) if layout.dtype_name in HALVES else None
        self._finite = finite.build(layout.held)
        self._scratch = np.empty(_RUN, layout.held)

    def squares_of(self, vectors: Mapping[int, Vector]) -> dict[tuple[int, int, int], float]:
        """The sums of squares of tensors' segments."""
        found = {}
        for number, vector in vectors.items():
            flat = vector.reshape(-1)
            for block, s in self.layout.segments_of[number]:
                segment = self.layout.blocks[block].segments[s]
                values = flat[segment.tensor_begin : segment.tensor_begin + segment.elements]
                found[self.layout.table_id, block, s] = self.segment_sum(values)
        return found

    def segment_sum(self, values: Vector) -> float:
        """The sum of squares of one segment's values, as a server has them once they have arrived."""
        lanes = np.zeros(gradient_norms.LANES)
        for begin in range(0, values.size, _RUN):
            self._squares(self._arrived(values[begin : begin + _RUN]), 1.0, lanes)
        (total,) = gradient_norms.folded(lanes)
        return total

    def _arrived(self, run: Vector) -> Vector:
        """Widened, and cleaned where the policy says so."""
        if self._halves is not None:
            wide = self._scratch[: run.size]
            self._halves.to_single(np.ascontiguousarray(run).view(np.uint16), wide)
            run = wide
        if self._policy in (Nonfinite.ZERO, Nonfinite.CLIP) and not self._finite.all_finite(run):
            cleaned = self._scratch[: run.size]
            self._finite.cleaned(run, cleaned, self._policy)
            return cleaned
        return run

    def factors(self, squares: Squares) -> dict[int, float]:
        """What each tensor of a call is multiplied with; of this group's among `squares`."""
        sums: dict[int, float] = {}
        blocks: dict[int, float] = {}
        for table_id, block, s in sorted(squares):
            if table_id == self.layout.table_id:
                number, found = self.layout.blocks[block].segments[s].tensor, squares[table_id, block, s]
                sums[number] = sums.get(number, 0.0) + found
                blocks[block] = blocks.get(block, 0.0) + found
        whole, record = sum(blocks.values()), self._present()
        return {
            number: self._factor(record.rule_of(*self._named(number)), whole if self.is_global else own)
            for number, own in sums.items()
        }

    def borders_ahead(self, numbers: tuple[int, ...]) -> Borders:
        """Where entries begin of what is measured after it was cut into them: wherever factors may differ."""
        if not self.is_global:
            return self.borders({number: float(number) for number in numbers})
        record = self._present()
        return self.borders({number: self._bound(record.rule_of(*self._named(number))) for number in numbers})

    def _named(self, number: int) -> tuple[int, str, RuleSpec]:
        return self.layout.table_id, self.layout.tensors[number].name, self.rule

    def _factor(self, rule: RuleSpec, square_sum: float) -> float:
        if self._policy is Nonfinite.REJECT and not math.isfinite(square_sum):
            return math.nan
        return 1.0 / gradient_norms.clipping_divisor(self._bound(rule), square_sum, 1.0)

    def _bound(self, rule: RuleSpec) -> float:
        bound: float = getattr(rule, "clip_global_norm" if self.is_global else "clip_norm")
        return bound

    def borders(self, factors: Mapping[int, float]) -> Borders:
        """Between neighbouring tensors whose factors are not the same."""
        if len(set(factors.values())) <= 1:
            return frozenset()
        return frozenset(
            (block.index, s)
            for block in self.layout.blocks
            for s, (before, here) in enumerate(itertools.pairwise(block.segments), 1)
            if factors.get(before.tensor) != factors.get(here.tensor)
        )


def weighed(exchange: Exchange, plan: Plan) -> Plan:
    """`plan` with a factor for each entry of tensors that were measured."""
    if not plan.squares:
        return plan
    spans = []
    for of_table in plan.spans:
        clipping = exchange.clippings.get(of_table[0].share[0]) if of_table else None
        if clipping is None:
            spans.append(of_table)
            continue
        blocks, factors = clipping.layout.blocks, clipping.factors(plan.squares)
        spans.append(
            [span._replace(factor=factors[blocks[span.block].segments[span.seg_begin].tensor]) for span in of_table]
        )
    return plan._replace(spans=spans)
