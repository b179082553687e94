"""FTRL-Proximal: after each step, the weights that minimise all gradients so far, each step's move and L1.

    grad  = cut(gscale * g)
    n_new = n + grad * grad
    sigma = sqrt(n_new) - sqrt(n)                           (and beta more at step 1)
    z     = z + lr * grad - sigma * w
    over  = max(z - lr * l1, 0) + min(z + lr * l1, 0)       z, less by lr * l1, and 0 within
    w     = -over / (beta + sqrt(n_new) + lr * l2)

Reference: H. B. McMahan, G. Holt, D. Sculley, M. Young, D. Ebner, J. Grady, L. Nie, T. Phillips, E. Davydov,
D. Golovin, S. Chikkerur, D. Liu, M. Wattenberg, A. Hrafnkelsson, T. Boulos, J. Kubica, "Ad Click
Prediction: a View from the Trenches", KDD 2013, section 3 and algorithm 1.

Where we differ: z and sigma are the paper's times lr (its alpha). That is the same while lr is constant,
needs no division by it, and a rate changed live changes what gradients weigh from then on instead of
moving every weight at once. The paper's sigma_{1:t} = 1 / eta_t holds from step 1 on, so that first values
other than 0 are where weights start; algorithm 1 leaves beta out of sigma_1, as it starts from 0.
"""

from __future__ import annotations

import numpy as np

from windlass_proto.rule_specs import FTRL
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _ftrl(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, beta, lr * l1, lr * l2, first, zero."""
    n = g.size
    w = w[begin : begin + n]
    z = slots[0][begin : begin + n]
    n_sum = slots[1][begin : begin + n]
    if begin < 0 or w.size != n or z.size != n or n_sum.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    beta = scalars[2]
    l1 = scalars[3]
    l2 = scalars[4]
    first = scalars[5]
    zero = scalars[6]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip)
        old = n_sum[i]
        ni = old + grad * grad
        root = np.sqrt(ni)
        zi = z[i] + lr * grad - (root - np.sqrt(old) + first) * w[i]
        over = max(zi - l1, zero) + min(zi + l1, zero)
        wi = -over / (beta + root + l2)
        z[i] = zi
        n_sum[i] = ni
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: FTRL, step: int, lr: float, l2: float) -> tuple[float, ...]:
    return lr, spec.beta, lr * spec.l1, lr * l2, spec.beta if step == 1 else 0.0, 0.0


_VARIANT = Variant("ftrl", (Slot("z", 0.0), Slot("n", 0.0)), _ftrl, _numbers)


def variant(_spec: FTRL) -> Variant:
    """The one kernel of the rule."""
    return _VARIANT


def oracle(spec: FTRL, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after 1-based `step`."""
    grad = clipped(spec, g)
    n = slots[1] + grad**2
    sigma = np.sqrt(n) - np.sqrt(slots[1]) + (spec.beta if step == 1 else 0)
    z = slots[0] + spec.lr * grad - sigma * w
    over = np.sign(z) * np.maximum(np.abs(z) - spec.lr * spec.l1, 0)
    return -over / (spec.beta + np.sqrt(n) + spec.lr * spec.l2), (z, n)
