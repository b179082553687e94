"""Row-wise Adagrad: Adagrad with one sum, and so one rate, for all values of a row.

    grad = cut(gscale * g) + weight_decay * w
    sum  = sum + mean of grad * grad over the row           (initial_accumulator_value before step 1)
    clr  = lr / (1 + (step - 1) * lr_decay)
    w    = w - clr / (sqrt(sum) + eps) * grad

Reference: J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
Optimization", JMLR 12, 2011, with a proximal function that is one multiple of the identity a row; D. Mudigere et al.,
"Software-Hardware Co-design for Fast and Scalable Training of Deep Learning Recommendation Models", ISCA 2022, for
tables of embeddings.

Where we differ: nothing from torchrec's RowWiseAdagrad, of which the names are. With rows of one value it is Adagrad.
"""

from __future__ import annotations

import numpy as np

from windlass_proto.rule_specs import RowWiseAdagrad
from windlass_rules.row_sums import sum_of_squares
from windlass_rules.rule import Per, Slot, Variant, Vector, clipped


def _rowwise_adagrad(
    w: Vector,
    slots: tuple[Vector],
    dim: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
) -> None:
    """scalars: clip, clr, weight_decay, eps, zero."""
    rows = g.size // dim
    total = slots[0]
    if w.size < rows * dim or total.size < rows:
        raise IndexError("an update has more rows than there are")
    clip = scalars[0]
    clr = scalars[1]
    weight_decay = scalars[2]
    eps = scalars[3]
    zero = scalars[4]
    width = w.dtype.type(dim)
    grad = np.empty(dim, w.dtype)
    for r in range(rows):
        wr = w[r * dim : (r + 1) * dim]
        gr = g[r * dim : (r + 1) * dim]
        for j in range(dim):
            grad[j] = min(max(gscale * gr[j], -clip), clip) + weight_decay * wr[j]
        sr = total[r] + sum_of_squares(grad, zero) / width
        rate = clr / (np.sqrt(sr) + eps)
        for j in range(dim):
            wr[j] = wr[j] - rate * grad[j]
        total[r] = sr


def _numbers(spec: RowWiseAdagrad, step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    return lr / (1.0 + (step - 1) * spec.lr_decay), weight_decay, spec.eps, 0.0


def variant(spec: RowWiseAdagrad) -> Variant:
    """The one kernel of the rule; the slot starts at the spec's value."""
    slot = Slot("sum", spec.initial_accumulator_value, Per.ROW)
    return Variant("rowwise_adagrad", (slot,), _rowwise_adagrad, _numbers, by_row=True)


def oracle(
    spec: RowWiseAdagrad, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for rows in two dimensions: the new rows and slots after 1-based `step`."""
    grad = clipped(spec, g) + spec.weight_decay * w
    total = slots[0] + (grad**2).mean(axis=1)
    clr = spec.lr / (1 + (step - 1) * spec.lr_decay)
    return w - clr * grad / (np.sqrt(total) + spec.eps)[:, None], (total,)
