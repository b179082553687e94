"""Delay-compensated SGD: a late gradient is corrected by how far the weights have moved since its worker read them.

    grad   = cut(gscale * g)
    step   = grad + compensation * grad * grad * (w - copy)                             adaptive=False
    square = alpha * square + (1 - alpha) * grad * grad                                 adaptive=True
    step   = grad + compensation / sqrt(square + eps) * grad * grad * (w - copy)        adaptive=True
    w      = w - lr * (step + weight_decay * w)

`copy` is the weights as the worker that pushes last saw them; the server keeps one for each worker.

Reference: S. Zheng, Q. Meng, T. Wang, W. Chen, N. Yu, Z. Ma, T. Liu, "Asynchronous Stochastic Gradient Descent with
Delay Compensation", ICML 2017, algorithm 2 and equation 10 (DC-ASGD-c), and section 6 (DC-ASGD-a: adaptive).

Where we differ: the paper's lambda is `compensation`, its m is `alpha`. There is `weight_decay`, outside of what is
compensated.
"""

from __future__ import annotations

import numpy as np

from windlass_proto.rule_specs import DCASGD
from windlass_rules.rule import Per, Slot, Variant, Vector, clipped


def _constant(
    w: Vector,
    slots: tuple[Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, weight_decay, compensation."""
    n = g.size
    w = w[begin : begin + n]
    copy = slots[0][begin : begin + n]
    if begin < 0 or w.size != n or copy.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    weight_decay = scalars[2]
    compensation = scalars[3]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip)
        step = grad + compensation * (grad * grad) * (w[i] - copy[i])
        wi = w[i] - lr * (step + weight_decay * w[i])
        w[i] = wi
        if out is not None:
            out[i] = wi


def _adaptive(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, lr, weight_decay, compensation, alpha, 1 - alpha, eps."""
    n = g.size
    w = w[begin : begin + n]
    square = slots[0][begin : begin + n]
    copy = slots[1][begin : begin + n]
    if begin < 0 or w.size != n or square.size != n or copy.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    weight_decay = scalars[2]
    compensation = scalars[3]
    alpha = scalars[4]
    alpha_rest = scalars[5]
    eps = scalars[6]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip)
        gg = grad * grad
        si = alpha * square[i] + alpha_rest * gg
        step = grad + compensation / np.sqrt(si + eps) * gg * (w[i] - copy[i])
        wi = w[i] - lr * (step + weight_decay * w[i])
        square[i] = si
        w[i] = wi
        if out is not None:
            out[i] = wi


def _constant_numbers(spec: DCASGD, _step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    return lr, weight_decay, spec.compensation


def _adaptive_numbers(spec: DCASGD, _step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    return lr, weight_decay, spec.compensation, spec.alpha, 1.0 - spec.alpha, spec.eps


_COPY = Slot("copy", 0.0, Per.WORKER)
_CONSTANT = Variant("dcasgd", (_COPY,), _constant, _constant_numbers)
_ADAPTIVE = Variant("dcasgd.adaptive", (Slot("square", 0.0), _COPY), _adaptive, _adaptive_numbers)


def variant(spec: DCASGD) -> Variant:
    """The kernel for `spec`: a constant compensation needs no mean of squares."""
    return _ADAPTIVE if spec.adaptive else _CONSTANT


def oracle(
    spec: DCASGD, w: Vector, slots: tuple[Vector, ...], g: Vector, _step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after a step."""
    grad = clipped(spec, g)
    late, kept = spec.compensation * grad**2 * (w - slots[-1]), slots[:-1]
    if spec.adaptive:
        square = spec.alpha * slots[0] + (1 - spec.alpha) * grad**2
        late, kept = late / np.sqrt(square + spec.eps), (square,)
    step = grad + late
    return w - spec.lr * (step + spec.weight_decay * w), (*kept, slots[-1])
