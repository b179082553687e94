"""AdaBelief: Adam that divides by how far gradients lie from their running mean, not by their size.

    grad = cut(gscale * g) + weight_decay * w
    m = beta1 * m + (1 - beta1) * grad
    s = beta2 * s + (1 - beta2) * (grad - m) * (grad - m) + eps
    w = w - lr / (1 - beta1^step) * m / (sqrt(s) / sqrt(1 - beta2^step) + eps)

Reference: J. Zhuang, T. Tang, Y. Ding, S. Tatikonda, N. Dvornek, X. Papademetris, J. Duncan, "AdaBelief
Optimizer: Adapting Stepsizes by the Belief in Observed Gradients", NeurIPS 2020, algorithm 2.

Where we differ: there is `weight_decay`. In Optax both of its `eps` are this one.
"""

from __future__ import annotations

import math

import numpy as np

from windlass_proto.rule_specs import AdaBelief
from windlass_rules.powers import power
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _adabelief(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, beta1, 1 - beta1, beta2, 1 - beta2, step_size, root_scale, eps, weight_decay."""
    n = g.size
    w = w[begin : begin + n]
    m = slots[0][begin : begin + n]
    s = slots[1][begin : begin + n]
    if begin < 0 or w.size != n or m.size != n or s.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    beta1 = scalars[1]
    beta1_rest = scalars[2]
    beta2 = scalars[3]
    beta2_rest = scalars[4]
    step_size = scalars[5]
    root_scale = scalars[6]
    eps = scalars[7]
    weight_decay = scalars[8]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        mi = beta1 * m[i] + beta1_rest * grad
        away = grad - mi
        si = beta2 * s[i] + beta2_rest * (away * away) + eps
        wi = w[i] - step_size * mi / (np.sqrt(si) * root_scale + eps)
        m[i] = mi
        s[i] = si
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: AdaBelief, step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    beta1, beta2 = spec.betas
    step_size = lr / (1.0 - power(beta1, step))
    root_scale = 1.0 / math.sqrt(1.0 - power(beta2, step))
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, step_size, root_scale, spec.eps, weight_decay


_VARIANT = Variant("adabelief", (Slot("m", 0.0), Slot("s", 0.0)), _adabelief, _numbers)


def variant(_spec: AdaBelief) -> Variant:
    """The one kernel of the rule."""
    return _VARIANT


def oracle(
    spec: AdaBelief, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after 1-based `step`."""
    beta1, beta2 = spec.betas
    grad = clipped(spec, g) + spec.weight_decay * w
    m = beta1 * slots[0] + (1 - beta1) * grad
    s = beta2 * slots[1] + (1 - beta2) * (grad - m) ** 2 + spec.eps
    m_hat, s_hat = m / (1 - beta1**step), s / (1 - beta2**step)
    return w - spec.lr * m_hat / (np.sqrt(s_hat) + spec.eps), (m, s)
