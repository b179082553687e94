"""Adadelta: each step is as large as earlier ones were, measured in the gradient's own unit.

    grad  = cut(gscale * g) + weight_decay * w
    sum   = rho * sum + (1 - rho) * grad * grad
    delta = sqrt(moved + eps) / sqrt(sum + eps) * grad
    moved = rho * moved + (1 - rho) * delta * delta
    w     = w - lr * delta

Reference: M. Zeiler, "ADADELTA: An Adaptive Learning Rate Method", 2012, arXiv:1212.5701, algorithm 1.

Where we differ: as torch.optim does, `lr` multiplies the step (the paper has none: 1) and there is
`weight_decay`. `eps` must be > 0, since with 0 nothing ever moves.
"""

from __future__ import annotations

import numpy as np

from windlass_proto.rule_specs import Adadelta
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _adadelta(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, weight_decay, rho, 1 - rho, eps."""
    n = g.size
    w = w[begin : begin + n]
    total = slots[0][begin : begin + n]
    moved = slots[1][begin : begin + n]
    if begin < 0 or w.size != n or total.size != n or moved.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    weight_decay = scalars[2]
    rho = scalars[3]
    rho_rest = scalars[4]
    eps = scalars[5]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        si = rho * total[i] + rho_rest * (grad * grad)
        delta = np.sqrt(moved[i] + eps) / np.sqrt(si + eps) * grad
        di = rho * moved[i] + rho_rest * (delta * delta)
        wi = w[i] - lr * delta
        total[i] = si
        moved[i] = di
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: Adadelta, _step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    return lr, weight_decay, spec.rho, 1.0 - spec.rho, spec.eps


_VARIANT = Variant("adadelta", (Slot("sum", 0.0), Slot("moved", 0.0)), _adadelta, _numbers)


def variant(_spec: Adadelta) -> Variant:
    """The one kernel of the rule."""
    return _VARIANT


def oracle(
    spec: Adadelta, w: Vector, slots: tuple[Vector, ...], g: Vector, _step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after a step."""
    grad = clipped(spec, g) + spec.weight_decay * w
    total = spec.rho * slots[0] + (1 - spec.rho) * grad**2
    delta = np.sqrt(slots[1] + spec.eps) / np.sqrt(total + spec.eps) * grad
    moved = spec.rho * slots[1] + (1 - spec.rho) * delta**2
    return w - spec.lr * delta, (total, moved)
