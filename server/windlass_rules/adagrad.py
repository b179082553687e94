"""Adagrad: each parameter's rate falls with the root of the sum of its squared gradients.

    grad = cut(gscale * g) + weight_decay * w
    sum  = sum + grad * grad                                (initial_accumulator_value before step 1)
    clr  = lr / (1 + (step - 1) * lr_decay)
    w    = w - clr * grad / (sqrt(sum) + eps)

Reference: J. Duchi, E. Hazan, Y. Singer, "Adaptive Subgradient Methods for Online Learning and Stochastic
Optimization", JMLR 12, 2011, section 1.1 (the diagonal version, without a proximal term).

Where we differ: as torch.optim.Adagrad does, `eps` is added to the root, where the paper adds delta to it
as well but starts from a sum of 0; `lr_decay` and `weight_decay` are torch's.
"""

from __future__ import annotations

import numpy as np

from windlass_proto.rule_specs import Adagrad
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _adagrad(
    w: Vector,
    slots: tuple[Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, clr, weight_decay, eps."""
    n = g.size
    w = w[begin : begin + n]
    total = slots[0][begin : begin + n]
    if begin < 0 or w.size != n or total.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    clr = scalars[1]
    weight_decay = scalars[2]
    eps = scalars[3]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        si = total[i] + grad * grad
        wi = w[i] - clr * grad / (np.sqrt(si) + eps)
        total[i] = si
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: Adagrad, step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    return lr / (1.0 + (step - 1) * spec.lr_decay), weight_decay, spec.eps


def variant(spec: Adagrad) -> Variant:
    """The one kernel of the rule; the slot starts at the spec's value."""
    return Variant("adagrad", (Slot("sum", spec.initial_accumulator_value),), _adagrad, _numbers)


def oracle(
    spec: Adagrad, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after 1-based `step`."""
    grad = clipped(spec, g) + spec.weight_decay * w
    total = slots[0] + grad**2
    clr = spec.lr / (1 + (step - 1) * spec.lr_decay)
    return w - clr * grad / (np.sqrt(total) + spec.eps), (total,)
