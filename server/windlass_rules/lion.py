"""Lion: every parameter moves by lr, along the sign of a mean of momentum and gradient.

    grad  = cut(gscale * g)
    ahead = beta1 * m + (1 - beta1) * grad
    m     = beta2 * m + (1 - beta2) * grad
    w     = (1 - lr * weight_decay) * w - lr * sign(ahead)  with sign(0) = 0

Reference: X. Chen, C. Liang, D. Huang, E. Real, K. Wang, Y. Liu, H. Pham, X. Dong, T. Luong, C. Hsieh,
Y. Lu, Q. Le, "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023, algorithm 2.

Where we differ: nowhere but in rounding. A mean that is not a number makes the weight one too, so that it
is seen.
"""

from __future__ import annotations

import numpy as np

from windlass_proto.rule_specs import Lion
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _lion(
    w: Vector,
    slots: tuple[Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, keep, zero, beta1, 1 - beta1, beta2, 1 - beta2."""
    n = g.size
    w = w[begin : begin + n]
    m = slots[0][begin : begin + n]
    if begin < 0 or w.size != n or m.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    keep = scalars[2]
    zero = scalars[3]
    beta1 = scalars[4]
    beta1_rest = scalars[5]
    beta2 = scalars[6]
    beta2_rest = scalars[7]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip)
        ahead = beta1 * m[i] + beta1_rest * grad
        along = lr if ahead > zero else (-lr if ahead < zero else ahead)
        mi = beta2 * m[i] + beta2_rest * grad
        wi = keep * w[i] - along
        m[i] = mi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: Lion, _step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    beta1, beta2 = spec.betas
    return lr, 1.0 - lr * weight_decay, 0.0, beta1, 1.0 - beta1, beta2, 1.0 - beta2


_VARIANT = Variant("lion", (Slot("m", 0.0),), _lion, _numbers)


def variant(_spec: Lion) -> Variant:
    """The one kernel of the rule."""
    return _VARIANT


def oracle(
    spec: Lion, w: Vector, slots: tuple[Vector, ...], g: Vector, _step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after a step."""
    beta1, beta2 = spec.betas
    grad = clipped(spec, g)
    ahead = beta1 * slots[0] + (1 - beta1) * grad
    w = (1 - spec.lr * spec.weight_decay) * w - spec.lr * np.sign(ahead)
    return w, (beta2 * slots[0] + (1 - beta2) * grad,)
