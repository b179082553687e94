"""FTRL-Proximal: after each step, the weights that minimise all gradients so far, each step's move and L1.

    grad  = cut(gscale * g)
    n     = n + grad * grad
    size  = beta + sqrt(n) + lr * l2
    z     = held + grad - size / lr * w                     (at step 1: - (beta + sqrt(n)) / lr * w)
    held  = z, cut to [-l1, l1]
    w     = 0 where |z| <= l1, else w - lr / size * (grad + held_before - held)

`held` is what L1 holds back of the gradients: l1 with the sign of -w where w is not 0, and short of that
where it is.

Reference: H. B. McMahan, G. Holt, D. Sculley, M. Young, D. Ebner, J. Grady, L. Nie, T. Phillips, E. Davydov,
D. Golovin, S. Chikkerur, D. Liu, M. Wattenberg, A. Hrafnkelsson, T. Boulos, J. Kubica, "Ad Click
Prediction: a View from the Trenches", KDD 2013, section 3 and algorithm 1.

Where we differ: lr is the paper's alpha. The paper keeps z, from which each step makes w anew; after a step
w * size / lr + z is held, which gives z back, so the same step is taken from the weight. Weights that
were assigned are kept then, a rate or penalty changed live moves none at once, and a rate of 0 is one. The
paper's sigma_1:t = 1 / eta_t holds from step 1 on, so that first values other than 0 are where weights
start (subject to both penalties); algorithm 1 leaves beta out of sigma_1, as it starts from 0.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from windlass_proto.rule_specs import FTRL
from windlass_rules.rule import Slot, Variant, Vector, clipped

_RATE_MIN: Final = 2.0**-100
"""A rate below this counts as 0, so that its inverse is a number in float32 too."""


def _ftrl(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, 1 / lr, live, l1, cut, beta + lr * l2, the same without first, first, zero."""
    n = g.size
    w = w[begin : begin + n]
    held = slots[0][begin : begin + n]
    total = slots[1][begin : begin + n]
    if begin < 0 or w.size != n or held.size != n or total.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    inverse = scalars[2]
    live = scalars[3]
    l1 = scalars[4]
    cut = scalars[5]
    added = scalars[6]
    added_before = scalars[7]
    first = scalars[8]
    zero = scalars[9]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip)
        ni = total[i] + grad * grad
        root = np.sqrt(ni)
        rate = lr / (root + added)
        zi = (held[i] + live * grad) - (root + added_before) * (inverse * w[i])
        hi = min(max(zi, -l1), l1)
        moved = w[i] - rate * ((grad + first * w[i]) + (held[i] - hi))
        wi = zero if abs(zi) <= cut else moved
        held[i] = hi
        total[i] = ni
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: FTRL, step: int, lr: float, l2: float) -> tuple[float, ...]:
    first = l2 if step == 1 else 0.0
    if lr < _RATE_MIN:  # nothing moves: z is what is held, and no weight is cut to 0
        return 0.0, 0.0, 0.0, spec.l1, -1.0, spec.beta, spec.beta, first, 0.0
    return lr, 1.0 / lr, 1.0, spec.l1, spec.l1, spec.beta + lr * l2, spec.beta + lr * (l2 - first), first, 0.0


_VARIANT = Variant("ftrl", (Slot("held", 0.0), Slot("n", 0.0)), _ftrl, _numbers)


def variant(_spec: FTRL) -> Variant:
    """The one kernel of the rule."""
    return _VARIANT


def oracle(spec: FTRL, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int) -> tuple[Vector, tuple[Vector, ...]]:
    """The paper's step, for whole arrays: the new weights and slots after 1-based `step`."""
    grad = clipped(spec, g)
    held, n = slots[0], slots[1] + grad**2
    size = spec.beta + np.sqrt(n) + spec.lr * spec.l2
    z = spec.lr * (held + grad) - (size - (spec.lr * spec.l2 if step == 1 else 0)) * w
    over = np.sign(z) * np.maximum(np.abs(z) - spec.lr * spec.l1, 0)
    return -over / size, ((z - over) / spec.lr if spec.lr else held, n)
