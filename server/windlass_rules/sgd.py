"""Stochastic gradient descent, with Polyak's or Nesterov's momentum.

    grad = cut(gscale * g) + weight_decay * w
    buf  = momentum * buf + (1 - dampening) * grad          (buf = grad at step 1)
    w    = w - lr * grad                                    without momentum
    w    = w - lr * buf                                     with momentum
    w    = w - lr * (grad + momentum * buf)                 with nesterov

Reference: I. Sutskever, J. Martens, G. Dahl, G. Hinton, "On the importance of initialization and momentum
in deep learning", ICML 2013, section 2, equations 1 to 4.

Where we differ: as torch.optim.SGD does, the buffer holds gradients and `lr` multiplies what leaves it,
while in the paper it multiplies what enters. The two are equal while lr is constant. torch multiplies by
weight_decay only when it is not 0; here it is always multiplied, which changes the result only where w is
infinite already.
"""

from __future__ import annotations

from windlass_proto.rule_specs import SGD
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
    """scalars: clip, lr, weight_decay."""
    n = g.size
    w = w[begin : begin + n]
    if begin < 0 or w.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    lr = scalars[1]
    weight_decay = scalars[2]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        wi = w[i] - lr * grad
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
    """scalars: clip, lr, weight_decay, momentum, grad_into_buf, grad_share, buf_share."""
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
    momentum = scalars[3]
    grad_into_buf = scalars[4]
    grad_share = scalars[5]
    buf_share = scalars[6]
    for i in range(n):
        grad = min(max(gscale * g[i], -clip), clip) + weight_decay * w[i]
        bi = momentum * buf[i] + grad_into_buf * grad
        wi = w[i] - lr * (grad_share * grad + buf_share * bi)
        buf[i] = bi
        w[i] = wi
        if out is not None:
            out[i] = wi


def _plain_numbers(_spec: SGD, _step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    return lr, weight_decay


def _momentum_numbers(spec: SGD, step: int, lr: float, weight_decay: float) -> tuple[float, ...]:
    # The buffer starts at 0 and holds grad after step 1.
    grad_into_buf = 1.0 if step == 1 else 1.0 - spec.dampening
    if spec.nesterov:
        return lr, weight_decay, spec.momentum, grad_into_buf, 1.0, spec.momentum
    return lr, weight_decay, spec.momentum, grad_into_buf, 0.0, 1.0


_PLAIN = Variant("sgd", (), _plain, _plain_numbers)
_MOMENTUM = Variant("sgd.momentum", (Slot("momentum", 0.0),), _with_momentum, _momentum_numbers)


def variant(spec: SGD) -> Variant:
    """The kernel for `spec`: without momentum there is no buffer to read and write."""
    return _MOMENTUM if spec.momentum else _PLAIN


def oracle(spec: SGD, w: Vector, slots: tuple[Vector, ...], g: Vector, step: int) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equations in NumPy, for whole arrays: the new weights and slots after 1-based `step`."""
    grad = clipped(spec, g) + spec.weight_decay * w
    if not spec.momentum:
        return w - spec.lr * grad, ()
    buf = grad if step == 1 else spec.momentum * slots[0] + (1 - spec.dampening) * grad
    direction = grad + spec.momentum * buf if spec.nesterov else buf
    return w - spec.lr * direction, (buf,)
