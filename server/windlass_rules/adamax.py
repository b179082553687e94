"""Adamax: Adam with a decaying maximum of the gradient's size in place of the second moment's root.

    grad = cut(gscale * g) + weight_decay * w
    m    = beta1 * m + (1 - beta1) * grad
    top  = max(beta2 * top, |grad| + eps)
    w    = w - lr / (1 - beta1^step) * m / top

Reference: D. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, section 7.1,
algorithm 2.

Where we differ: as torch.optim does, `eps` keeps the divisor from being 0, and there is `weight_decay`.
"""

from __future__ import annotations

import numpy as np

from windlass_proto.rule_specs import Adamax
from windlass_rules.powers import power
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _adamax(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, beta1, 1 - beta1, beta2, step_size, eps, weight_decay."""
    n = g.size
    w = w[begin : begin + n]
    m = slots[0][begin : begin + n]
    top = slots[1][begin : begin + n]
    if begin < 0 or w.size != n or m.size != n or top.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    beta1 = scalars[1]
    beta1_rest = scalars[2]
    beta2 = scalars[3]
    step_size = scalars[4]
    eps = scalars[5]
    weight_decay = scalars[6]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        mi = beta1 * m[i] + beta1_rest * grad
        ti = max(abs(grad) + eps, beta2 * top[i])
        wi = w[i] - step_size * mi / ti
        m[i] = mi
        top[i] = ti
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: Adamax, step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    beta1, beta2 = spec.betas
    return beta1, 1.0 - beta1, beta2, lr / (1.0 - power(beta1, step)), spec.eps, weight_decay


_VARIANT = Variant("adamax", (Slot("m", 0.0), Slot("top", 0.0)), _adamax, _numbers)


def variant(_spec: Adamax) -> Variant:
    """The one kernel of the rule."""
    return _VARIANT


def oracle(
    spec: Adamax, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after 1-based `step`."""
    beta1, beta2 = spec.betas
    grad = clipped(spec, g) + spec.weight_decay * w
    m = beta1 * slots[0] + (1 - beta1) * grad
    top = np.maximum(beta2 * slots[1], np.abs(grad) + spec.eps)
    return w - spec.lr / (1 - beta1**step) * m / top, (m, top)
