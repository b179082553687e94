"""Activations beside those that every network has: they compute what their scalar code says, fused or not."""

from __future__ import annotations

from typing import Any, Final

from windlass_graph import functions as F
from windlass_graph.op import FLAT, Backward
from windlass_graph.ops.elementwise import float_of, scalar_entry, truth_of

_ROOT_HALF: Final = 0.7071067811865476
_TWO_BY_ROOT_PI: Final = 1.1283791670955126
_ONE_BY_ROOT_2_PI: Final = 0.3989422804014327
_ROOT_2_BY_PI: Final = 0.7978845608028654
_CUBE: Final = 0.044715
_SELU_SCALE: Final = 1.0507009873554805
_SELU_BELOW: Final = 1.7580993408473766


def _gelu(b: Backward) -> Any:
    below = (F.erf(b.x * _ROOT_HALF) + 1) * 0.5
    return b.g * (below + b.x * F.exp(F.square(b.x) * -0.5) * _ONE_BY_ROOT_2_PI)


def _gelu_tanh(b: Backward) -> Any:
    square = F.square(b.x)
    t = F.tanh(b.x * (square * _CUBE + 1) * _ROOT_2_BY_PI)
    slope = (square * (3 * _CUBE) + 1) * _ROOT_2_BY_PI
    return b.g * ((t + 1) * 0.5 + b.x * 0.5 * (1 - F.square(t)) * slope)


def _silu(b: Backward) -> Any:
    s = F.sigmoid(b.x)
    return b.g * s * (b.x * (1 - s) + 1)


def _mish(b: Backward) -> Any:
    t = F.tanh(F.softplus(b.x))
    return b.g * (t + b.x * F.sigmoid(b.x) * (1 - F.square(t)))


def _hard_sigmoid(b: Backward) -> Any:
    inside = F.logical_and(b.out > 0, b.out < 1)
    return b.g * F.cast_like(inside, b.g) * b.attrs["slope"]


scalar_entry("erf", "x", (lambda b: b.g * F.exp(-F.square(b.x)) * _TWO_BY_ROOT_PI,), float_of, doc="the error function")
scalar_entry("gelu", "x", (_gelu,), float_of, doc="x times the normal distribution's share below x")
scalar_entry("gelu_tanh", "x", (_gelu_tanh,), float_of, doc="gelu, approximated by tanh")
scalar_entry("silu", "x", (_silu,), float_of, doc="x * sigmoid(x)")
scalar_entry("mish", "x", (_mish,), float_of, doc="x * tanh(softplus(x))")
scalar_entry("softsign", "x", (lambda b: b.g / F.square(F.absolute(b.x) + 1),), float_of, doc="x / (1 + |x|)")
scalar_entry(
    "elu",
    "x",
    (lambda b: b.g * F.where(b.x < 0, b.out + b.attrs["alpha"], 1),),
    float_of,
    {"alpha": 1.0},
    "x, alpha * (e ** x - 1) below 0",
)
scalar_entry(
    "selu", "x", (lambda b: b.g * F.where(b.x < 0, b.out + _SELU_BELOW, _SELU_SCALE),), float_of, doc="scaled elu"
)
scalar_entry(
    "hard_sigmoid",
    "x",
    (_hard_sigmoid,),
    float_of,
    {"slope": 0.2, "offset": 0.5},
    "slope * x + offset within [0, 1]",
)
scalar_entry("logical_xor", "x y", FLAT, truth_of)
scalar_entry("isnan", "x", FLAT, truth_of)
scalar_entry("isinf", "x", FLAT, truth_of)
scalar_entry("isfinite", "x", FLAT, truth_of)
scalar_entry("trunc", "x", FLAT, doc="towards 0")
