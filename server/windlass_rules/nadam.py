"""NAdam: Adam with Nesterov's momentum, whose share mu grows from half of beta1 towards beta1.

    grad    = cut(gscale * g) + weight_decay * w            keep = 1
    grad    = cut(gscale * g)                               keep = 1 - lr * weight_decay     decoupled
    mu(t)   = beta1 * (1 - 0.5 * 0.96^(t * momentum_decay))
    product = mu(1) * ... * mu(step)
    m = beta1 * m + (1 - beta1) * grad
    v = beta2 * v + (1 - beta2) * grad * grad
    w = keep * w - (lr * (1 - mu(step)) / (1 - product) * grad
                    + lr * mu(step + 1) / (1 - product * mu(step + 1)) * m) / (sqrt(v) / sqrt(1 - beta2^step) + eps)

Reference: T. Dozat, "Incorporating Nesterov Momentum into Adam", ICLR 2016 workshop, with the
schedule of mu proposed there.

Where we differ: as torch.optim does, m uses beta1 throughout. The product is recomputed from the step (in
cached runs of _RUN factors, so a restored server needs no history), not kept as state, where torch has it in
float32; hyper-parameters changed live hold as if they always had.
"""

from __future__ import annotations

import functools
import math
from typing import Final

import numpy as np

from windlass_proto.rule_specs import NAdam
from windlass_rules.powers import decay, power
from windlass_rules.rule import Slot, Variant, Vector, clipped

_LN_096: Final = 0.04082199452025517  # -ln(0.96)
_RUN: Final = 256  # factors of a product that are cached as one


def _nadam(
    w: Vector,
    slots: tuple[Vector, Vector],
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, beta1, 1 - beta1, beta2, 1 - beta2, grad_size, m_size, root_scale, eps, weight_decay, keep."""
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
    grad_size = scalars[5]
    m_size = scalars[6]
    root_scale = scalars[7]
    eps = scalars[8]
    weight_decay = scalars[9]
    keep = scalars[10]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        mi = beta1 * m[i] + beta1_rest * grad
        vi = beta2 * v[i] + beta2_rest * (grad * grad)
        wi = keep * w[i] - (grad_size * grad + m_size * mi) / (np.sqrt(vi) * root_scale + eps)
        m[i] = mi
        v[i] = vi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _mu(beta1: float, faded: float, step: int) -> float:
    return beta1 * (1.0 - 0.5 * power(faded, step))


@functools.lru_cache(maxsize=4096)
def _run_of_mu(beta1: float, faded: float, first: int, count: int) -> float:
    product = 1.0
    for step in range(first, first + count):
        product *= beta1 * (1.0 - 0.5 * power.__wrapped__(faded, step))
    return product


@functools.lru_cache(maxsize=256)
def _mu_product(beta1: float, faded: float, step: int) -> float:
    """mu(1) * ... * mu(step); ends early where a smaller product would leave 1 - product as it is."""
    product = 1.0
    for first in range(1, step + 1, _RUN):
        product *= _run_of_mu(beta1, faded, first, min(_RUN, step + 1 - first))
        if product < 2.0**-60:
            break
    return product


def _numbers(spec: NAdam, step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    beta1, beta2 = spec.betas
    faded = decay(spec.momentum_decay * _LN_096)  # 0.96^momentum_decay
    product, following = _mu_product(beta1, faded, step), _mu(beta1, faded, step + 1)
    grad_size = lr * (1.0 - _mu(beta1, faded, step)) / (1.0 - product)
    m_size = lr * following / (1.0 - product * following)
    root_scale = 1.0 / math.sqrt(1.0 - power(beta2, step))
    coupled, keep = (0.0, 1.0 - lr * weight_decay) if spec.decoupled_weight_decay else (weight_decay, 1.0)
    return beta1, 1.0 - beta1, beta2, 1.0 - beta2, grad_size, m_size, root_scale, spec.eps, coupled, keep


_VARIANT = Variant("nadam", (Slot("m", 0.0), Slot("v", 0.0)), _nadam, _numbers)


def variant(_spec: NAdam) -> Variant:
    """The one kernel of the rule."""
    return _VARIANT


def oracle(
    spec: NAdam, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int
) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after 1-based `step`."""
    beta1, beta2 = spec.betas
    grad = clipped(spec, g)
    if spec.decoupled_weight_decay:
        w = w * (1 - spec.lr * spec.weight_decay)
    else:
        grad = grad + spec.weight_decay * w
    m = beta1 * slots[0] + (1 - beta1) * grad
    v = beta2 * slots[1] + (1 - beta2) * grad**2
    mu = beta1 * (1 - 0.5 * 0.96 ** (np.arange(1, step + 2) * spec.momentum_decay))
    ahead = (1 - mu[step - 1]) * grad / (1 - np.prod(mu[:step])) + mu[step] * m / (1 - np.prod(mu))
    return w - spec.lr * ahead / (np.sqrt(v / (1 - beta2**step)) + spec.eps), (m, v)
