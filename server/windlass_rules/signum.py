"""Signum and signSGD: every parameter moves by lr, along the sign of a running mean of its gradients.

    grad = cut(gscale * g)
    m    = momentum * m + (1 - momentum) * grad             (signSGD, momentum = 0: m = grad, nothing kept)
    w    = (1 - lr * weight_decay) * w - lr * sign(m)       with sign(0) = 0

Reference: J. Bernstein, Y. Wang, K. Azizzadenesheli, A. Anandkumar, "signSGD: Compressed Optimisation for
Non-Convex Problems", ICML 2018, algorithms 1 and 2.

Where we differ: `weight_decay` (decoupled) is ours. A mean that is not a number makes the weight one too,
so that it is seen.
"""

from __future__ import annotations

import numpy as np

from windlass_proto.rule_specs import Signum
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _plain(
    w: Vector,
    slots: tuple[()],  # noqa: ARG001 - every kernel is called alike
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, keep, zero."""
    n = g.size
    w = w[begin : begin + n]
    if begin < 0 or w.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    keep = scalars[2]
    zero = scalars[3]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip)
        along = lr if grad > zero else (-lr if grad < zero else grad)
        wi = keep * w[i] - along
        w[i] = wi
        if out is not None:
            out[i] = wi


def _with_momentum(
    w: Vector,
    slots: tuple[Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, keep, zero, momentum, 1 - momentum."""
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
    momentum = scalars[4]
    rest = scalars[5]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip)
        mi = momentum * m[i] + rest * grad
        along = lr if mi > zero else (-lr if mi < zero else mi)
        wi = keep * w[i] - along
        m[i] = mi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _plain_numbers(_spec: Signum, _step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    return lr, 1.0 - lr * weight_decay, 0.0


def _momentum_numbers(spec: Signum, _step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    return lr, 1.0 - lr * weight_decay, 0.0, spec.momentum, 1.0 - spec.momentum


_PLAIN = Variant("signum", (), _plain, _plain_numbers)
_MOMENTUM = Variant("signum.momentum", (Slot("momentum", 0.0),), _with_momentum, _momentum_numbers)


def variant(spec: Signum) -> Variant:
    """The kernel for `spec`: signSGD keeps nothing."""
    return _MOMENTUM if spec.momentum else _PLAIN


def oracle(
    spec: Signum, w: Vector, slots: tuple[Vector, ...], g: Vector, _step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after a step."""
    grad = clipped(spec, g)
    m = spec.momentum * slots[0] + (1 - spec.momentum) * grad if spec.momentum else grad
    w = (1 - spec.lr * spec.weight_decay) * w - spec.lr * np.sign(m)
    return w, (m,) if spec.momentum else ()
