"""Adam and AdamW: steps of about the size lr, from running means of the gradient and of its square.

    Adam:   grad = cut(gscale * g) + weight_decay * w            keep = 1
    AdamW:  grad = cut(gscale * g)                               keep = 1 - lr * weight_decay
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad * grad
    w = keep * w - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)

With amsgrad, `top = max(top, v)` takes the place of v in the last line.

References: D. Kingma, J. Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015, algorithm 1 (with
the order of section 2's last paragraph, which needs fewer operations); I. Loshchilov, F. Hutter,
"Decoupled Weight Decay Regularization", ICLR 2019, algorithm 2; S. Reddi, S. Kale, S. Kumar, "On the
Convergence of Adam and Beyond", ICLR 2018, algorithm 2 (AMSGrad).

Where we differ: as in torch.optim, `eps` is added to the corrected root, AdamW's decay is multiplied by lr,
and AMSGrad corrects biases. One kernel serves both rules: the one that does not use a term gets 0 or 1 for
it, which is exact wherever w is finite. Division by sqrt(1 - beta2^step) is a multiplication by its
reciprocal (one rounding of float64 more, at the step, not per parameter).
"""

from __future__ import annotations

import math

import numpy as np

from windlass_proto.rule_specs import Adam, AdamW
from windlass_rules.powers import power
from windlass_rules.rule import Slot, Variant, Vector, clipped


def _adam(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, beta1, 1 - beta1, beta2, 1 - beta2, step_size, root_scale, eps, weight_decay, keep."""
    n = g.size
    w = w[begin : begin + n]
    m = slots[0][begin : begin + n]
    v = slots[1][begin : begin + n]
    if begin < 0 or w.size != n or m.size != n or v.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    beta1 = scalars[1]
    beta1_rest = scalars[2]
    beta2 = scalars[3]
    beta2_rest = scalars[4]
    step_size = scalars[5]
    root_scale = scalars[6]
    eps = scalars[7]
    weight_decay = scalars[8]
    keep = scalars[9]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        mi = beta1 * m[i] + beta1_rest * grad
        vi = beta2 * v[i] + beta2_rest * (grad * grad)
        wi = keep * w[i] - step_size * mi / (np.sqrt(vi) * root_scale + eps)
        m[i] = mi
        v[i] = vi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _amsgrad(
    w: Vector,
    slots: tuple[Vector, Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, beta1, 1 - beta1, beta2, 1 - beta2, step_size, root_scale, eps, weight_decay, keep."""
    n = g.size
    w = w[begin : begin + n]
    m = slots[0][begin : begin + n]
    v = slots[1][begin : begin + n]
    top = slots[2][begin : begin + n]
    if begin < 0 or w.size != n or m.size != n or v.size != n or top.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    beta1 = scalars[1]
    beta1_rest = scalars[2]
    beta2 = scalars[3]
    beta2_rest = scalars[4]
    step_size = scalars[5]
    root_scale = scalars[6]
    eps = scalars[7]
    weight_decay = scalars[8]
    keep = scalars[9]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        mi = beta1 * m[i] + beta1_rest * grad
        vi = beta2 * v[i] + beta2_rest * (grad * grad)
        ti = max(vi, top[i])
        wi = keep * w[i] - step_size * mi / (np.sqrt(ti) * root_scale + eps)
        m[i] = mi
        v[i] = vi
        top[i] = ti
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: Adam | AdamW, step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    beta1, beta2 = spec.betas
    step_size = lr / (1.0 - power(beta1, step))
    root_scale = 1.0 / math.sqrt(1.0 - power(beta2, step))
    if type(spec) is AdamW:
        coupled, keep = 0.0, 1.0 - lr * weight_decay
    else:
        coupled, keep = weight_decay, 1.0
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, step_size, root_scale, spec.eps, coupled, keep


_MOMENTS = (Slot("m", 0.0), Slot("v", 0.0))
_ADAM = Variant("adam", _MOMENTS, _adam, _numbers)
_AMSGRAD = Variant("adam.amsgrad", (*_MOMENTS, Slot("top", 0.0)), _amsgrad, _numbers)


def variant(spec: Adam | AdamW) -> Variant:
    """The kernel for `spec`, the same for both rules: AMSGrad keeps a third vector."""
    return _AMSGRAD if spec.amsgrad else _ADAM


def oracle(
    spec: Adam | AdamW, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after 1-based `step`."""
    beta1, beta2 = spec.betas
    decoupled = isinstance(spec, AdamW)
    grad = clipped(spec, g) + (0.0 if decoupled else spec.weight_decay) * w
    if decoupled:
        w = w * (1 - spec.lr * spec.weight_decay)
    m = beta1 * slots[0] + (1 - beta1) * grad
    v = beta2 * slots[1] + (1 - beta2) * grad**2
    m_hat = m / (1 - beta1**step)
    top = np.maximum(v, slots[2]) if spec.amsgrad else v
    w = w - spec.lr * m_hat / (np.sqrt(top / (1 - beta2**step)) + spec.eps)
    return w, (m, v, top) if spec.amsgrad else (m, v)
