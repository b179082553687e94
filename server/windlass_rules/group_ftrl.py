"""Group FTRL: FTRL-Proximal with one rate a row, and a penalty on the row's length that makes whole rows exactly 0.

    grad  = cut(gscale * g)
    n     = n + mean of grad * grad over the row
    size  = beta + sqrt(n) + lr * l2
    z     = lr * (held + grad) - size * w                   (at a row's first step: - (beta + sqrt(n)) * w)
    over  = z - z cut to [-lr * l1, lr * l1]
    kept  = max(0, 1 - lr * l21 * sqrt(dim) / |over|)       where |over| is the length of the row
    held  = (z - kept * over) / lr
    w     = w - lr * (grad + held_before - held) / size, and 0 where kept * over is

After a step w = - kept * over / size, which minimises over x, with the gradients g_s and the rows w_s of earlier steps,

    sum of g_s x + sum of (1/eta_s - 1/eta_(s-1)) / 2 |x - w_s|^2 + l1 |x|_1 + l2 / 2 |x|^2 + l21 sqrt(dim) |x|

with 1/eta_s = (beta + sqrt(n_s)) / lr. `held` is what the penalties hold back of the gradients.

Reference: H. B. McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, section 3 and algorithm 1
(FTRL); X. Ni, Y. Yu, P. Wu, Y. Li, S. Nie, Q. Que, C. Chen, "Feature Selection for Facebook Feed Ranking System via a
Group-Sparsity-Regularized Training Algorithm", CIKM 2019 (the penalty on rows); M. Yuan, Y. Lin, JRSS B 68, 2006.

Where we differ: KDD's rate is that of a value; with one a row the minimum above has a closed form, and a row costs one
number of state less than a value would. The step is taken from the weight, for the reasons that `ftrl` gives. The l2
penalty is in `size` from each row's first step on, whenever that is: `n` is -1 until then.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from windlass_proto.rule_specs import GroupFTRL
from windlass_rules.row_sums import sum_of_squares
from windlass_rules.rule import Per, Slot, Variant, Vector, clipped

_RATE_MIN: Final = 2.0**-100
"""A rate below this counts as 0, so that its inverse is a number in float32 too."""


def _group_ftrl(
    w: Vector,
    slots: tuple[Vector, Vector],
    dim: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
) -> None:
    """scalars: clip, lr, 1 / lr, frozen, beta, lr * l1, lr * l2, lr * l21, zero."""
    rows = g.size // dim
    held = slots[0]
    total = slots[1]
    if w.size < rows * dim or held.size < rows * dim or total.size < rows:
        raise IndexError("an update has more rows than there are")
    clip = scalars[0]
    lr = scalars[1]
    inverse = scalars[2]
    frozen = scalars[3]
    beta = scalars[4]
    l1_step = scalars[5]
    l2_step = scalars[6]
    zero = scalars[8]
    width = w.dtype.type(dim)
    taken = scalars[7] * np.sqrt(width)
    grad = np.empty(dim, w.dtype)
    z = np.empty(dim, w.dtype)
    over = np.empty(dim, w.dtype)
    for r in range(rows):
        wr = w[r * dim : (r + 1) * dim]
        gr = g[r * dim : (r + 1) * dim]
        hr = held[r * dim : (r + 1) * dim]
        for j in range(dim):
            grad[j] = min(max(gscale * gr[j], -clip), clip)
        first = l2_step if total[r] < zero else zero
        nr = max(total[r], zero) + sum_of_squares(grad, zero) / width
        size = beta + np.sqrt(nr) + l2_step
        for j in range(dim):
            z[j] = lr * (hr[j] + grad[j]) - (size - first) * wr[j]
            over[j] = z[j] - min(max(z[j], -l1_step), l1_step)
        length = np.sqrt(sum_of_squares(over, zero))
        kept = zero if length <= taken else (length - taken) / length
        for j in range(dim):
            hj = inverse * (z[j] - kept * over[j]) + frozen * hr[j]
            moved = wr[j] - (lr * (grad[j] + (hr[j] - hj)) + first * wr[j]) / size
            wr[j] = zero if kept * over[j] == zero else moved
            hr[j] = hj
        total[r] = nr


def _numbers(spec: GroupFTRL, _step: int, lr: float, l2: float) -> tuple[float, ...]:
    inverse, frozen = (1.0 / lr, 0.0) if lr >= _RATE_MIN else (0.0, 1.0)
    lr = 0.0 if frozen else lr
    return lr, inverse, frozen, spec.beta, lr * spec.l1, lr * l2, lr * spec.l21, 0.0


_VARIANT = Variant("group_ftrl", (Slot("held", 0.0), Slot("n", -1.0, Per.ROW)), _group_ftrl, _numbers, by_row=True)


def variant(_spec: GroupFTRL) -> Variant:
    """The one kernel of the rule."""
    return _VARIANT


def oracle(
    spec: GroupFTRL, w: Vector, slots: tuple[Vector, ...], g: Vector, _step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The minimum of the module's objective, for rows in two dimensions: the new rows and slots after a step."""
    grad = clipped(spec, g)
    held, before = slots
    n = np.maximum(before, 0) + (grad**2).mean(axis=1)
    size = (spec.beta + np.sqrt(n) + spec.lr * spec.l2)[:, None]
    first = np.where(before < 0, spec.lr * spec.l2, 0)[:, None]
    z = spec.lr * (held + grad) - (size - first) * w
    over = np.sign(z) * np.maximum(np.abs(z) - spec.lr * spec.l1, 0)
    length = np.sqrt((over**2).sum(axis=1, keepdims=True))
    taken = spec.lr * spec.l21 * np.sqrt(w.shape[1])
    kept = np.where(length > taken, 1 - taken / np.where(length > 0, length, 1), 0.0) * over
    return -kept / size, ((z - kept) / spec.lr if spec.lr else held, n)
