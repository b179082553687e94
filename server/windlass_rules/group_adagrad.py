"""Group Adagrad: row-wise Adagrad, and after each step the row comes nearer to 0, or becomes 0 (a group lasso).

    grad  = cut(gscale * g) + weight_decay * w
    sum   = sum + mean of grad * grad over the row          (initial_accumulator_value before step 1)
    rate  = lr / (sqrt(sum) + eps)
    u     = w - rate * grad
    w     = max(0, 1 - rate * l21 * sqrt(dim) / |u|) * u    where |u| is the length of the row u

The last line is the row that minimises |x - u|^2 / (2 * rate) + l21 * sqrt(dim) * |x|.

Reference: J. Duchi, Y. Singer, "Efficient Online and Batch Learning Using Forward Backward Splitting", JMLR 10, 2009,
section 5 (the step in two parts, and its closed form for a length); M. Yuan, Y. Lin, "Model selection and estimation
in regression with grouped variables", JRSS B 68, 2006 (the penalty, sqrt(dim) in it); Y. Yue et al., "Adaptive
Optimizers with Sparse Group Lasso for Neural Networks in CTR Prediction", ECML PKDD 2021 (its use for embeddings).

Where we differ: Yue et al. keep a rate for each value and measure a row's length with those rates, which has a closed
form too; here a row has one rate, so its length is its length, and a row costs one number of state. The penalty acts
when a row is updated: rows that no push names keep their values.
"""

from __future__ import annotations

import numpy as np

from windlass_proto.rule_specs import GroupAdagrad
from windlass_rules.row_sums import sum_of_squares
from windlass_rules.rule import Per, Slot, Variant, Vector, clipped


def _group_adagrad(
    w: Vector,
    slots: tuple[Vector],
    dim: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
) -> None:
    """scalars: clip, lr, weight_decay, eps, l21, zero."""
    rows = g.size // dim
    total = slots[0]
    if w.size < rows * dim or total.size < rows:
        raise IndexError("an update has more rows than there are")
    clip = scalars[0]
    lr = scalars[1]
    weight_decay = scalars[2]
    eps = scalars[3]
    zero = scalars[5]
    width = w.dtype.type(dim)
    penalty = scalars[4] * np.sqrt(width)
    grad = np.empty(dim, w.dtype)
    for r in range(rows):
        wr = w[r * dim : (r + 1) * dim]
        gr = g[r * dim : (r + 1) * dim]
        for j in range(dim):
            grad[j] = min(max(gscale * gr[j], -clip), clip) + weight_decay * wr[j]
        sr = total[r] + sum_of_squares(grad, zero) / width
        rate = lr / (np.sqrt(sr) + eps)
        for j in range(dim):
            grad[j] = wr[j] - rate * grad[j]
        length = np.sqrt(sum_of_squares(grad, zero))
        taken = rate * penalty
        kept = zero if length <= taken else (length - taken) / length
        for j in range(dim):
            wr[j] = kept * grad[j]
        total[r] = sr


def _numbers(spec: GroupAdagrad, _step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    return lr, weight_decay, spec.eps, spec.l21, 0.0


def variant(spec: GroupAdagrad) -> Variant:
    """The one kernel of the rule; the slot starts at the spec's value."""
    slot = Slot("sum", spec.initial_accumulator_value, Per.ROW)
    return Variant("group_adagrad", (slot,), _group_adagrad, _numbers, by_row=True)


def oracle(
    spec: GroupAdagrad, w: Vector, slots: tuple[Vector, ...], g: Vector, _step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for rows in two dimensions: the new rows and slots after a step."""
    grad = clipped(spec, g) + spec.weight_decay * w
    total = slots[0] + (grad**2).mean(axis=1)
    rate = (spec.lr / (np.sqrt(total) + spec.eps))[:, None]
    u = w - rate * grad
    length = np.sqrt((u**2).sum(axis=1, keepdims=True))
    taken = rate * spec.l21 * np.sqrt(w.shape[1])
    kept = np.where(length > taken, 1 - taken / np.where(length > 0, length, 1), 0.0)
    return kept * u, (total,)
