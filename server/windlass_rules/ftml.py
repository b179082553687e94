"""FTML, follow the moving leader: FTRL in which earlier steps fade, with Adam's rates.

    grad = cut(gscale * g) + weight_decay * w
    v    = beta2 * v + (1 - beta2) * grad * grad
    w    = w - lr * (1 - beta1) / (1 - beta1^step) * grad / (sqrt(v) / sqrt(1 - beta2^step) + eps)

Reference: S. Zheng, J. Kwok, "Follow the Moving Leader in Deep Learning", ICML 2017, algorithm 1.

Where we differ: the paper also keeps d = (1 - beta1^step) / lr * (sqrt(v) / sqrt(1 - beta2^step) + eps) and
z, from which w = -z / d. Weights are not confined to a set here, so z = -d * w before every step as well, and
z = beta1 * z + (1 - beta1) * grad - (d - beta1 * d_before) * w is (1 - beta1) * grad - d * w: the step above.
It needs a third of the state, allows a rate of 0, and leaves a weight without gradient alone, where the
quotient of z and d moved it by 4e-5 of its size in 20,000 steps of float32. There is `weight_decay`.
"""

from __future__ import annotations

import math

import numpy as np

from windlass_proto.rule_specs import FTML
from windlass_rules.powers import power
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _ftml(
    w: Vector,
    slots: tuple[Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, beta2, 1 - beta2, step_size, root_scale, eps, weight_decay."""
    n = g.size
    w = w[begin : begin + n]
    v = slots[0][begin : begin + n]
    if begin < 0 or w.size != n or v.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    beta2 = scalars[1]
    beta2_rest = scalars[2]
    step_size = scalars[3]
    root_scale = scalars[4]
    eps = scalars[5]
    weight_decay = scalars[6]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        vi = beta2 * v[i] + beta2_rest * (grad * grad)
        wi = w[i] - step_size * grad / (np.sqrt(vi) * root_scale + eps)
        v[i] = vi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: FTML, step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    beta1, beta2 = spec.betas
    step_size = lr * (1.0 - beta1) / (1.0 - power(beta1, step))
    root_scale = 1.0 / math.sqrt(1.0 - power(beta2, step))
    return beta2, 1.0 - beta2, step_size, root_scale, spec.eps, weight_decay


_VARIANT = Variant("ftml", (Slot("v", 0.0),), _ftml, _numbers)


def variant(_spec: FTML) -> Variant:
    """The one kernel of the rule."""
    return _VARIANT


def oracle(spec: FTML, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after 1-based `step`."""
    beta1, beta2 = spec.betas
    grad = clipped(spec, g) + spec.weight_decay * w
    v = beta2 * slots[0] + (1 - beta2) * grad**2
    d = (1 - beta1**step) * (np.sqrt(v / (1 - beta2**step)) + spec.eps)
    return w - spec.lr * (1 - beta1) * grad / d, (v,)
