"""What each elementwise op does to one element: one expression, which Numba and CUDA C both read.

Invariant: an expression is in the grammar that Python and C share (operators, calls, parentheses), `{0}`, `{1}` are its
operands, all of one type, and `T(...)` is that type. Functions it calls exist for both: `windlass_graph.kernels` for
Numba, a prelude for CUDA. There is no branch: `select(condition, one, other)` takes both.

In which type an op computes and what type it answers in is `types_of`: arithmetic in the widest float among its
operands, else in what NumPy promotes integers to; functions such as exp, and division, in that float, or float32 where
all operands are integers; comparisons answer bool. float16 is computed in float32 and rounded when it is stored. What
holds for NaN is what NumPy does.

Beside the expression stands the same op in NumPy's own functions, for what is not compiled: `numpy(xp, ins, out)`,
where `xp` is numpy or cupy.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal

import numpy as np

Kind = Literal["arithmetic", "float", "compare", "logical", "test", "choice", "cast"]
NumpyForm = Callable[[Any, Sequence[Any], Any], object]

DTYPES: Final = ("bool", "uint8", "int32", "int64", "float16", "float32", "float64")
"""What fused kernels read, compute and write."""

_FLOATS: Final = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True)
class Scalar:
    """One op on one element.

    Args:
        kind: how its types follow from its operands'.
        text: the expression.
        numpy: the same on whole arrays, constants behind the arrays.
        inputs: operands that are arrays.
        constants: operands behind them that are numbers, given when it runs.
        integer: the expression for integers, where it is another one.
    """

    kind: Kind
    text: str
    numpy: NumpyForm
    inputs: int = 1
    constants: int = 0
    integer: str = ""

    def expression(self, dtype: str) -> str:
        """The text for operands of a dtype."""
        return self.integer if self.integer and dtype not in _FLOATS else self.text


def types_of(name: str, dtypes: Sequence[str]) -> tuple[str, str]:
    """The dtype in which an op takes its operands, and the one of its result; `dtypes` are its arrays'."""
    kind = SCALARS[name].kind
    if kind == "logical":
        return "bool", "bool"
    if kind == "choice":
        common = _promoted(dtypes[1:])
        return common, common
    common = _promoted(dtypes)
    if kind == "float":
        common = common if common in _FLOATS else "float32"
        return common, common
    at = "uint8" if common == "bool" else common
    return at, ("bool" if kind in ("compare", "test") else common)


def result_dtype(name: str, dtypes: Sequence[str]) -> str:
    """The dtype of an op's result: see `types_of`. A cast has the one it is asked for."""
    return types_of(name, dtypes)[1]


def _promoted(dtypes: Sequence[str]) -> str:
    floats = [dtype for dtype in dtypes if dtype in _FLOATS]
    return max(floats, key=_FLOATS.index) if floats else np.result_type(*dtypes).name


def _call(name: str) -> NumpyForm:
    """A NumPy function that takes `out=`."""
    return lambda xp, ins, out: getattr(xp, name)(*ins, out=out)


def _whole(compute: Callable[..., Any]) -> NumpyForm:
    """An expression of arrays, copied into `out`."""

    def form(xp: Any, ins: Sequence[Any], out: Any) -> None:
        xp.copyto(out, compute(xp, *ins), casting="unsafe")

    return form


def _erf(xp: Any, x: Any) -> Any:
    """NumPy has none: element by element, which is slow. What runs often runs as a kernel."""
    if xp is not np:
        return importlib.import_module("cupyx.scipy.special").erf(x)
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _sigmoid(xp: Any, x: Any) -> Any:
    z = xp.exp(-xp.abs(x))
    return xp.where(x < 0, z, 1) / (1 + z)


def _softplus(xp: Any, x: Any) -> Any:
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def _where_negative(below: Callable[..., Any]) -> Callable[..., Any]:
    """`below` where x < 0, else x."""
    return lambda xp, x, *constants: xp.where(x < 0, below(xp, x, *constants), x)


_ROOT_HALF: Final = 0.7071067811865476
_ROOT_2_PI: Final = 0.7978845608028654  # sqrt(2 / pi)
_SELU_SCALE: Final = 1.0507009873554805
_SELU_ALPHA: Final = 1.6732632423543772
_SELU_BELOW: Final = _SELU_SCALE * _SELU_ALPHA


def _gelu_tanh(xp: Any, x: Any) -> Any:
    return 0.5 * x * (1 + xp.tanh(_ROOT_2_PI * (x + 0.044715 * x * x * x)))


_GELU_TANH: Final = f"T(0.5) * {{0}} * (T(1) + tanh(T({_ROOT_2_PI}) * ({{0}} + T(0.044715) * {{0}} * {{0}} * {{0}})))"
_SELU: Final = f"select({{0}} < T(0), T({_SELU_BELOW}) * expm1({{0}}), T({_SELU_SCALE}) * {{0}})"


def _two(kind: Kind, text: str, name: str, integer: str = "") -> Scalar:
    return Scalar(kind, text, _call(name), inputs=2, integer=integer)


def _rounding(name: str, numpy: str) -> Scalar:
    form = _whole(lambda xp, x: getattr(xp, numpy)(x) if x.dtype.kind == "f" else x)
    return Scalar("arithmetic", f"{name}({{0}})", form, integer="{0}")


_ARITHMETIC: Final = {
    "add": _two("arithmetic", "{0} + {1}", "add"),
    "subtract": _two("arithmetic", "{0} - {1}", "subtract"),
    "multiply": _two("arithmetic", "{0} * {1}", "multiply"),
    "divide": _two("float", "{0} / {1}", "divide"),
    "power": _two("arithmetic", "power({0}, {1})", "power", integer="integer_power({0}, {1})"),
    "maximum": _two("arithmetic", "select(({0} >= {1}) | ({0} != {0}), {0}, {1})", "maximum"),
    "minimum": _two("arithmetic", "select(({0} <= {1}) | ({0} != {0}), {0}, {1})", "minimum"),
    "mod": _two("arithmetic", "rest({0}, {1})", "remainder", integer="integer_remainder({0}, {1})"),
    "floor_divide": _two(
        "arithmetic", "floor_divide({0}, {1})", "floor_divide", integer="integer_floor_divide({0}, {1})"
    ),
    "negative": Scalar("arithmetic", "-{0}", _call("negative")),
    "absolute": Scalar("arithmetic", "magnitude({0})", _call("absolute"), integer="select({0} < T(0), T(-{0}), {0})"),
    "sign": Scalar("arithmetic", "select({0} > T(0), T(1), select({0} < T(0), T(-1), {0}))", _call("sign")),
    "square": Scalar("arithmetic", "{0} * {0}", _call("square")),
    "reciprocal": Scalar("float", "T(1) / {0}", _whole(lambda _, x: 1 / x)),
    "hypot": _two("float", "hypot({0}, {1})", "hypot"),
    "arctan2": _two("float", "atan2({0}, {1})", "arctan2"),
    "identity": Scalar("arithmetic", "{0}", _whole(lambda _, x: x)),
}  # fmt: skip

_FUNCTIONS: Final = {
    **{
        name: Scalar("float", f"{name}({{0}})", _call(name))
        for name in ("exp", "log", "log1p", "expm1", "sqrt", "sin", "cos", "tan", "sinh", "cosh", "tanh")
    },
    "arcsin": Scalar("float", "asin({0})", _call("arcsin")),
    "arccos": Scalar("float", "acos({0})", _call("arccos")),
    "arctan": Scalar("float", "atan({0})", _call("arctan")),
    "rsqrt": Scalar("float", "T(1) / sqrt({0})", _whole(lambda xp, x: 1 / xp.sqrt(x))),
    "erf": Scalar("float", "erf({0})", _whole(_erf)),
    "floor": _rounding("floor", "floor"),
    "ceil": _rounding("ceil", "ceil"),
    "round": _rounding("rint", "rint"),
    "trunc": _rounding("trunc", "trunc"),
}

_ACTIVATIONS: Final = {
    "sigmoid": Scalar("float", "sigmoid({0})", _whole(_sigmoid)),
    "relu": Scalar("arithmetic", "select({0} < T(0), T(0), {0})", _whole(lambda xp, x: xp.maximum(x, 0))),
    "relu_gradient": Scalar(
        "arithmetic", "select({1} > T(0), {0}, T(0))", _whole(lambda xp, g, out: xp.where(out > 0, g, 0)), inputs=2
    ),
    "leaky_relu": Scalar(
        "float", "select({0} < T(0), {0} * {1}, {0})", _whole(_where_negative(lambda _, x, slope: x * slope)),
        constants=1,
    ),
    "elu": Scalar(
        "float", "select({0} < T(0), {1} * expm1({0}), {0})",
        _whole(_where_negative(lambda xp, x, alpha: alpha * xp.expm1(xp.minimum(x, 0)))), constants=1,
    ),
    "selu": Scalar(
        "float", _SELU,
        _whole(lambda xp, x: xp.where(x < 0, _SELU_BELOW * xp.expm1(xp.minimum(x, 0)), _SELU_SCALE * x)),
    ),
    "gelu": Scalar(
        "float", f"T(0.5) * {{0}} * (T(1) + erf({{0}} * T({_ROOT_HALF})))",
        _whole(lambda xp, x: 0.5 * x * (1 + _erf(xp, x * _ROOT_HALF))),
    ),
    "gelu_tanh": Scalar("float", _GELU_TANH, _whole(_gelu_tanh)),
    "silu": Scalar("float", "{0} * sigmoid({0})", _whole(lambda xp, x: x * _sigmoid(xp, x))),
    "softplus": Scalar("float", "softplus({0})", _whole(_softplus)),
    "softsign": Scalar("float", "{0} / (T(1) + magnitude({0}))", _whole(lambda xp, x: x / (1 + xp.abs(x)))),
    "hard_sigmoid": Scalar(
        "float", "select({0} * {1} + {2} < T(0), T(0), select({0} * {1} + {2} > T(1), T(1), {0} * {1} + {2}))",
        _whole(lambda xp, x, slope, offset: xp.clip(x * slope + offset, 0, 1)), constants=2,
    ),
    "mish": Scalar("float", "{0} * tanh(softplus({0}))", _whole(lambda xp, x: x * xp.tanh(_softplus(xp, x)))),
    "clip": Scalar(
        "arithmetic", "select(select({0} < {1}, {1}, {0}) > {2}, {2}, select({0} < {1}, {1}, {0}))",
        _whole(lambda xp, x, low, high: xp.minimum(xp.maximum(x, low), high)), constants=2,
    ),
}  # fmt: skip

_CHOICES: Final = {
    "equal": _two("compare", "{0} == {1}", "equal"),
    "not_equal": _two("compare", "{0} != {1}", "not_equal"),
    "less": _two("compare", "{0} < {1}", "less"),
    "less_equal": _two("compare", "{0} <= {1}", "less_equal"),
    "greater": _two("compare", "{0} > {1}", "greater"),
    "greater_equal": _two("compare", "{0} >= {1}", "greater_equal"),
    "logical_and": _two("logical", "{0} & {1}", "logical_and"),
    "logical_or": _two("logical", "{0} | {1}", "logical_or"),
    "logical_xor": _two("logical", "{0} ^ {1}", "logical_xor"),
    "logical_not": Scalar("test", "{0} == T(0)", _call("logical_not")),
    "isnan": Scalar("test", "{0} != {0}", _call("isnan")),
    "isinf": Scalar("test", "({0} == {0}) & ({0} - {0} != T(0))", _call("isinf"), integer="{0} != {0}"),
    "isfinite": Scalar("test", "{0} - {0} == T(0)", _call("isfinite"), integer="{0} == {0}"),
    "where": Scalar("choice", "select({0}, {1}, {2})", _whole(lambda xp, c, x, y: xp.where(c, x, y)), inputs=3),
    "cast": Scalar("cast", "{0}", _whole(lambda _, x: x)),
}

SCALARS: Final = MappingProxyType({**_ARITHMETIC, **_FUNCTIONS, **_ACTIVATIONS, **_CHOICES})
"""Every elementwise op by name."""
