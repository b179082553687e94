"""FTML, follow the moving leader: FTRL in which earlier steps fade, with Adam's rates.

    grad  = cut(gscale * g) + weight_decay * w
    v     = beta2 * v + (1 - beta2) * grad * grad
    d_new = (1 - beta1^step) * (sqrt(v) / sqrt(1 - beta2^step) + eps)
    z     = beta1 * z + (1 - beta1) * lr * grad - (d_new - beta1 * d) * w
    d     = d_new
    w     = -z / d

Reference: S. Zheng, J. Kwok, "Follow the Moving Leader in Deep Learning", ICML 2017, algorithm 1.

Where we differ: d and z are the paper's times lr. That is the same while lr is constant, needs no division
by it, and a rate changed live changes what gradients weigh from then on instead of moving every weight at
once. There is `weight_decay`.
"""

from __future__ import annotations

import math

import numpy as np

from windlass_proto.rule_specs import FTML
from windlass_rules.powers import power
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _ftml(
    w: Vector,
    slots: tuple[Vector, Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, beta1, beta2, 1 - beta2, (1 - beta1) * lr, 1 - beta1^step, root_scale, eps, weight_decay."""
    n = g.size
    w = w[begin : begin + n]
    d = slots[0][begin : begin + n]
    v = slots[1][begin : begin + n]
    z = slots[2][begin : begin + n]
    if begin < 0 or w.size != n or d.size != n or v.size != n or z.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    beta1 = scalars[1]
    beta2 = scalars[2]
    beta2_rest = scalars[3]
    grad_size = scalars[4]
    bias = scalars[5]
    root_scale = scalars[6]
    eps = scalars[7]
    weight_decay = scalars[8]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        vi = beta2 * v[i] + beta2_rest * (grad * grad)
        di = bias * (np.sqrt(vi) * root_scale + eps)
        zi = beta1 * z[i] + grad_size * grad - (di - beta1 * d[i]) * w[i]
        wi = -zi / di
        d[i] = di
        v[i] = vi
        z[i] = zi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: FTML, step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    beta1, beta2 = spec.betas
    root_scale = 1.0 / math.sqrt(1.0 - power(beta2, step))
    bias = 1.0 - power(beta1, step)
    return beta1, beta2, 1.0 - beta2, (1.0 - beta1) * lr, bias, root_scale, spec.eps, weight_decay


_VARIANT = Variant("ftml", (Slot("d", 0.0), Slot("v", 0.0), Slot("z", 0.0)), _ftml, _numbers)


def variant(_spec: FTML) -> Variant:
    """The one kernel of the rule."""
    return _VARIANT


def oracle(spec: FTML, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after 1-based `step`."""
    beta1, beta2 = spec.betas
    grad = clipped(spec, g) + spec.weight_decay * w
    v = beta2 * slots[1] + (1 - beta2) * grad**2
    d = (1 - beta1**step) * (np.sqrt(v / (1 - beta2**step)) + spec.eps)
    z = beta1 * slots[2] + (1 - beta1) * spec.lr * grad - (d - beta1 * slots[0]) * w
    return -z / d, (d, v, z)
