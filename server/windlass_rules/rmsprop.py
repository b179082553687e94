"""RMSprop: gradients divided by the root of a running mean of their squares, or of their variance.

    grad   = cut(gscale * g) + weight_decay * w
    square = alpha * square + (1 - alpha) * grad * grad
    size   = sqrt(square) + eps
    w      = w - lr * grad / size

    centered:  mean = alpha * mean + (1 - alpha) * grad;  size = sqrt(max(square - mean * mean, 0)) + eps
    momentum:  buf = momentum * buf + grad / size;  w = w - lr * buf

References: T. Tieleman, G. Hinton, "Lecture 6.5: RMSprop", Neural Networks for Machine Learning, 2012;
A. Graves, "Generating Sequences With Recurrent Neural Networks", 2013, arXiv:1308.0850, equations 38 to 41
(centered, with momentum).

Where we differ: as torch.optim does, `eps` is added to the root, where Graves has it under the root. A
variance that rounding has made negative counts as 0; torch.optim takes its root, which is NaN.
"""

from __future__ import annotations

import numpy as np

from windlass_proto.rule_specs import RMSprop
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _plain(
    w: Vector,
    slots: tuple[Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, weight_decay, alpha, 1 - alpha, eps."""
    n = g.size
    w = w[begin : begin + n]
    square = slots[0][begin : begin + n]
    if begin < 0 or w.size != n or square.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    weight_decay = scalars[2]
    alpha = scalars[3]
    alpha_rest = scalars[4]
    eps = scalars[5]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        si = alpha * square[i] + alpha_rest * (grad * grad)
        wi = w[i] - lr * (grad / (np.sqrt(si) + eps))
        square[i] = si
        w[i] = wi
        if out is not None:
            out[i] = wi


def _centered(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, weight_decay, alpha, 1 - alpha, eps, zero."""
    n = g.size
    w = w[begin : begin + n]
    square = slots[0][begin : begin + n]
    mean = slots[1][begin : begin + n]
    if begin < 0 or w.size != n or square.size != n or mean.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    weight_decay = scalars[2]
    alpha = scalars[3]
    alpha_rest = scalars[4]
    eps = scalars[5]
    zero = scalars[6]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        si = alpha * square[i] + alpha_rest * (grad * grad)
        mi = alpha * mean[i] + alpha_rest * grad
        wi = w[i] - lr * (grad / (np.sqrt(max(si - mi * mi, zero)) + eps))
        square[i] = si
        mean[i] = mi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _with_momentum(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, weight_decay, alpha, 1 - alpha, eps, momentum."""
    n = g.size
    w = w[begin : begin + n]
    square = slots[0][begin : begin + n]
    buf = slots[1][begin : begin + n]
    if begin < 0 or w.size != n or square.size != n or buf.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    weight_decay = scalars[2]
    alpha = scalars[3]
    alpha_rest = scalars[4]
    eps = scalars[5]
    momentum = scalars[6]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        si = alpha * square[i] + alpha_rest * (grad * grad)
        bi = momentum * buf[i] + grad / (np.sqrt(si) + eps)
        wi = w[i] - lr * bi
        square[i] = si
        buf[i] = bi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _centered_with_momentum(
    w: Vector,
    slots: tuple[Vector, Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, weight_decay, alpha, 1 - alpha, eps, zero, momentum."""
    n = g.size
    w = w[begin : begin + n]
    square = slots[0][begin : begin + n]
    mean = slots[1][begin : begin + n]
    buf = slots[2][begin : begin + n]
    if begin < 0 or w.size != n or square.size != n or mean.size != n or buf.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    weight_decay = scalars[2]
    alpha = scalars[3]
    alpha_rest = scalars[4]
    eps = scalars[5]
    zero = scalars[6]
    momentum = scalars[7]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        si = alpha * square[i] + alpha_rest * (grad * grad)
        mi = alpha * mean[i] + alpha_rest * grad
        bi = momentum * buf[i] + grad / (np.sqrt(max(si - mi * mi, zero)) + eps)
        wi = w[i] - lr * bi
        square[i] = si
        mean[i] = mi
        buf[i] = bi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: RMSprop, _step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    shared = (lr, weight_decay, spec.alpha, 1.0 - spec.alpha, spec.eps)
    return (*shared, *((0.0,) if spec.centered else ()), *((spec.momentum,) if spec.momentum else ()))


_SQUARE, _MEAN, _BUF = Slot("square", 0.0), Slot("mean", 0.0), Slot("momentum", 0.0)
_VARIANTS = {
    (False, False): Variant("rmsprop", (_SQUARE,), _plain, _numbers),
    (True, False): Variant("rmsprop.centered", (_SQUARE, _MEAN), _centered, _numbers),
    (False, True): Variant("rmsprop.momentum", (_SQUARE, _BUF), _with_momentum, _numbers),
    (True, True): Variant("rmsprop.centered.momentum", (_SQUARE, _MEAN, _BUF), _centered_with_momentum, _numbers),
}


def variant(spec: RMSprop) -> Variant:
    """The kernel for `spec`: what it does not use has no slot."""
    return _VARIANTS[spec.centered, spec.momentum > 0]


def oracle(
    spec: RMSprop, w: Vector, slots: tuple[Vector, ...], g: Vector, _step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after a step."""
    grad = clipped(spec, g) + spec.weight_decay * w
    square = spec.alpha * slots[0] + (1 - spec.alpha) * grad**2
    kept = [square]
    variance = square
    if spec.centered:
        mean = spec.alpha * slots[1] + (1 - spec.alpha) * grad
        kept.append(mean)
        variance = np.maximum(square - mean**2, 0)
    direction = grad / (np.sqrt(variance) + spec.eps)
    if spec.momentum:
        direction = spec.momentum * slots[-1] + direction
        kept.append(direction)
    return w - spec.lr * direction, tuple(kept)
