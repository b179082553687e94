"""Plain accumulation: what is pushed is added to what is there.

    w = w + scale * cut(gscale * g)

`scale` comes multiplied by the tensor's lr_mult; there is no weight decay.
"""

from __future__ import annotations

from windlass_proto.rule_specs import Sum
from windlass_rules.rule import Variant, Vector, clipped


def _sum(
    w: Vector,
    slots: tuple[()],  # noqa: ARG001 - every kernel is called alike
    begin: int,
    g: Vector,
    gscale: float,
    scalars: Vector,
    out: Vector | None = None,
) -> None:
    """scalars: clip, scale."""
    n = g.size
    w = w[begin : begin + n]
    if begin < 0 or w.size != n:
        raise IndexError("the range of an update leaves its block")
    if out is not None and out.size != n:
        raise IndexError("an update's out has another size than its gradient")
    clip = scalars[0]
    scale = scalars[1]
    for i in range(n):
        wi = w[i] + scale * min(max(gscale * g[i], -clip), clip)
        w[i] = wi
        if out is not None:
            out[i] = wi


def _numbers(_spec: Sum, _step: int, scale: float, _weight_decay: float) -> tuple[float, ...]:
    return (scale,)


_VARIANT = Variant("sum", (), _sum, _numbers)


def variant(_spec: Sum) -> Variant:
    """The one kernel of the rule."""
    return _VARIANT


def oracle(spec: Sum, w: Vector, slots: tuple[Vector, ...], g: Vector, _step: int) -> tuple[Vector, tuple[Vector, ...]]:
    """The module's equation in NumPy, for whole arrays: the new weights after a step, and no slots."""
    return w + spec.scale * clipped(spec, g), slots
