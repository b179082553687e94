"""LARS: SGD with momentum and a rate for each tensor, from the norms of its weights and of its gradient.

    grad = cut(gscale * g)                                                                  (measured: |w|, |grad|)
    trust = trust_coefficient * |w| / (|grad| + weight_decay * |w| + eps), or 1 where |w| or |grad| is 0
    buf = momentum * buf + lr * trust * (grad + weight_decay * w)
    w = w - buf

Norms are over a whole tensor.

Reference: Y. You, I. Gitman, B. Ginsburg, "Large Batch Training of Convolutional Networks", arXiv:1708.03888, 2017,
algorithm 1; lr multiplies what enters the buffer, as there.

Where we differ: a norm of 0 gives a trust of 1, as in common implementations, so that weights which begin as zeros
move; biases, for which others leave trust out, go into an `init` of their own with another rule. Optax divides by
|grad + weight_decay * w|, which is the same without decay.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from windlass_proto.rule_specs import LARS
from windlass_rules.norms import CHUNK, EIGHTH, LANES, Lanes, add_squares
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _measure(
    w: Vector,
    slots: tuple[Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    lanes: Lanes,
) -> None:
    """scalars: clip, rate, weight_decay, momentum."""
    n = g.size
    w = w[begin : begin + n]
    if begin < 0 or w.size != n or slots[0][begin : begin + n].size != n:
        raise IndexError("the range of an update leaves its block")
    clip = scalars[0]
    grad = np.empty(CHUNK, scalars.dtype)
    found = np.empty(EIGHTH, np.float64)
    for at in range(0, n, CHUNK):
        end = min(at + CHUNK, n)
        gc = g[at:end]
        for i in range(gc.size):
            grad[i] = min(max(gscale * gc[i], -clip), clip)
        add_squares(w[at:end], None, found, lanes[:LANES])
        add_squares(grad[: gc.size], None, found, lanes[LANES:])


def _lars(
    w: Vector,
    slots: tuple[Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, rate, weight_decay, momentum."""
    n = g.size
    w = w[begin : begin + n]
    buf = slots[0][begin : begin + n]
    if begin < 0 or w.size != n or buf.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    rate = scalars[1]
    weight_decay = scalars[2]
    momentum = scalars[3]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        bi = momentum * buf[i] + rate * grad
        wi = w[i] - bi
        buf[i] = bi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: LARS, _step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    return lr, weight_decay, spec.momentum


def _trust(spec: LARS, w2: float, g2: float, weight_decay: float) -> float:
    weights, gradient = math.sqrt(w2), math.sqrt(g2)
    if weights > 0 and gradient > 0:
        return spec.trust_coefficient * weights / (gradient + weight_decay * weights + spec.eps)
    return 1.0


_VARIANT = Variant("lars", (Slot("momentum", 0.0),), _lars, _numbers, measure=_measure, trust=_trust)


def variant(_spec: LARS) -> Variant:
    """The one variant of the rule."""
    return _VARIANT


def oracle(
    spec: LARS, w: Vector, slots: tuple[Vector, ...], g: Vector, _step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for one whole tensor: the new weights and slots after a step."""
    grad = clipped(spec, g)
    weights, gradient = np.linalg.norm(w), np.linalg.norm(grad)
    trust: np.floating[Any] | float = 1.0
    if weights > 0 and gradient > 0:
        trust = spec.trust_coefficient * weights / (gradient + spec.weight_decay * weights + spec.eps)
    buf = spec.momentum * slots[0] + spec.lr * trust * (grad + spec.weight_decay * w)
    return w - buf, (buf,)
