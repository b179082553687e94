"""Heavy ball: SGD with momentum whose steps are bounded.

    grad = cut(gscale * g) + weight_decay * w
    buf  = beta * buf + grad
    step = lr * buf, cut to [-step_max, step_max]
    w    = w - step

B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964, with a bound of our own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from windlass_rules.rule import Slot, Variant


@dataclass(frozen=True)
class Spec:
    """What a worker may give: `wl.optim.own("heavy_ball", lr=0.1, beta=0.8)`."""

    lr: float = 1e-2
    beta: float = 0.9
    step_max: float = 0.5
    weight_decay: float = 0.0
    clip_value: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta is in [0, 1), not {self.beta}")
        if not self.step_max > 0:
            raise ValueError(f"step_max is above 0, not {self.step_max}")


def _heavy_ball(w, slots, begin, g, gscale, scalars, out=None):  # type: ignore[no-untyped-def]
    """scalars: clip, lr, weight_decay, beta, step_max."""
    n = g.size
    w = w[begin : begin + n]
    buf = slots[0][begin : begin + n]
    if begin < 0 or w.size != n or buf.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    weight_decay = scalars[2]
    beta = scalars[3]
    step_max = scalars[4]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        bi = beta * buf[i] + grad
        wi = w[i] - min(max(lr * bi, -step_max), step_max)
        buf[i] = bi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(spec: Spec, _step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    """What the kernel finds after `clip`; lr and weight_decay are this step's, with a tensor's multipliers."""
    return lr, weight_decay, spec.beta, spec.step_max


def variant(_spec: Spec) -> Variant:
    """The one kernel of the rule, and its state: a vector as long as the weights."""
    return Variant("heavy_ball", (Slot("momentum", 0.0),), _heavy_ball, _numbers)


def oracle(spec: Spec, w: np.ndarray, slots: tuple[np.ndarray, ...], g: np.ndarray, _step: int):  # type: ignore[no-untyped-def]
    """The equations in NumPy, for tests."""
    grad = g if spec.clip_value is None else np.clip(g, -spec.clip_value, spec.clip_value)
    buf = spec.beta * slots[0] + grad + spec.weight_decay * w
    return w - np.clip(spec.lr * buf, -spec.step_max, spec.step_max), (buf,)
