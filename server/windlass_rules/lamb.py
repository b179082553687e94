"""LAMB: Adam's direction, and a step that is lr times the norm of each tensor.

    grad = cut(gscale * g)
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad * grad
    u = m / (1 - beta1^step) / (sqrt(v) / sqrt(1 - beta2^step) + eps) + weight_decay * w        (measured: |w|, |u|)
    w = w - lr * trust * u              trust = |w| / |u|, or 1 where one of them is 0

Norms are over a whole tensor. The first pass over memory writes m and v and takes both norms, the second makes u once
more from m, v and w, which is cheaper than to keep it.

Reference: Y. You, J. Li, S. Reddi et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
ICLR 2020, algorithm 2.

Where we differ: the paper's phi, which bounds the norm of the weights, is the identity, as in its experiments; a norm
of 0 gives a trust of 1, as in its authors' code. Biases, for which others leave trust out, go into an `init` of their
own with another rule.
"""

from __future__ import annotations

import math

import numpy as np

from windlass_proto.rule_specs import LAMB
from windlass_rules.norms import CHUNK, EIGHTH, LANES, Lanes, add_squares
from windlass_rules.powers import power
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _measure(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    lanes: Lanes,
) -> None:
    """scalars: clip, beta1, 1 - beta1, beta2, 1 - beta2, mean_scale, root_scale, eps, weight_decay, rate."""
    n = g.size
    w = w[begin : begin + n]
    m = slots[0][begin : begin + n]
    v = slots[1][begin : begin + n]
    if begin < 0 or w.size != n or m.size != n or v.size != n:
        raise IndexError("the range of an update leaves its block")
    clip = scalars[0]
    beta1 = scalars[1]
    beta1_rest = scalars[2]
    beta2 = scalars[3]
    beta2_rest = scalars[4]
    mean_scale = scalars[5]
    root_scale = scalars[6]
    eps = scalars[7]
    weight_decay = scalars[8]
    u = np.empty(CHUNK, scalars.dtype)
    found = np.empty(EIGHTH, np.float64)
    for at in range(0, n, CHUNK):
        end = min(at + CHUNK, n)
        wc = w[at:end]
        mc = m[at:end]
        vc = v[at:end]
        gc = g[at:end]
        for i in range(wc.size):
            grad = min(max(gscale * gc[i], -clip), clip)
            mi = beta1 * mc[i] + beta1_rest * grad
            vi = beta2 * vc[i] + beta2_rest * (grad * grad)
            mc[i] = mi
            vc[i] = vi
            u[i] = mi * mean_scale / (np.sqrt(vi) * root_scale + eps) + weight_decay * wc[i]
        add_squares(wc, None, found, lanes[:LANES])
        add_squares(u[: wc.size], None, found, lanes[LANES:])


def _lamb(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,  # noqa: ARG001 - every kernel is called alike
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, beta1, 1 - beta1, beta2, 1 - beta2, mean_scale, root_scale, eps, weight_decay, rate."""
    n = g.size
    w = w[begin : begin + n]
    m = slots[0][begin : begin + n]
    v = slots[1][begin : begin + n]
    if begin < 0 or w.size != n or m.size != n or v.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    mean_scale = scalars[5]
    root_scale = scalars[6]
    eps = scalars[7]
    weight_decay = scalars[8]
    rate = scalars[9]
    for i in range(n):
        u = m[i] * mean_scale / (np.sqrt(v[i]) * root_scale + eps) + weight_decay * w[i]
        wi = w[i] - rate * u
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: LAMB, step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    beta1, beta2 = spec.betas
    mean_scale = 1.0 / (1.0 - power(beta1, step))
    root_scale = 1.0 / math.sqrt(1.0 - power(beta2, step))
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, mean_scale, root_scale, spec.eps, weight_decay, lr


def _trust(_spec: LAMB, w2: float, u2: float, _weight_decay: float) -> float:
    weights, moved = math.sqrt(w2), math.sqrt(u2)
    return weights / moved if weights > 0 and moved > 0 else 1.0


_VARIANT = Variant("lamb", (Slot("m", 0.0), Slot("v", 0.0)), _lamb, _numbers, measure=_measure, trust=_trust)


def variant(_spec: LAMB) -> Variant:
    """The one variant of the rule."""
    return _VARIANT


def oracle(spec: LAMB, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for one whole tensor: the new weights and slots after 1-based `step`."""
    beta1, beta2 = spec.betas
    grad = clipped(spec, g)
    m = beta1 * slots[0] + (1 - beta1) * grad
    v = beta2 * slots[1] + (1 - beta2) * grad**2
    u = m / (1 - beta1**step) / (np.sqrt(v / (1 - beta2**step)) + spec.eps) + spec.weight_decay * w
    weights, moved = np.linalg.norm(w), np.linalg.norm(u)
    trust = weights / moved if weights > 0 and moved > 0 else 1.0
    return w - spec.lr * trust * u, (m, v)
