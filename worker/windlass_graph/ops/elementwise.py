"""Ops that compute each element from the same element of their broadcast inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from windlass_graph import functions as F
from windlass_graph.op import FLAT, REQUIRED, Attrs, Backward, Forward, Gradient, Op, Run, enter
from windlass_graph.scalar_code import SCALARS
from windlass_graph.tensor_type import ContradictionError, TensorType, as_float, broadcast, promoted

NumpyForm = Callable[[Any, Attrs, Sequence[Any], Any], Any]
"""`form(xp, attrs, ins, out)` writes `out`."""


def _types(result: Callable[[Sequence[str | None]], str | None]) -> Any:
    def infer(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(broadcast([each.shape for each in ins]), result([each.dtype for each in ins])),)

    return infer


def _same(dtypes: Sequence[str | None]) -> str | None:
    return promoted(dtypes)


def float_of(dtypes: Sequence[str | None]) -> str | None:
    """The dtype of exp and its kin."""
    return as_float(promoted(dtypes))


def number_of(dtypes: Sequence[str | None]) -> str | None:
    """The dtype of arithmetic that truth values do not take part in.

    Raises:
        ContradictionError: all operands are truth values.
    """
    found = promoted(dtypes)
    if found == "bool":
        raise ContradictionError('truth values are no numbers: cast them, x.astype("int32")')
    return found


def truth_of(dtypes: Sequence[str | None]) -> str | None:
    """The dtype of a comparison."""
    return "bool"


def _complete(attrs: Attrs, ins: Sequence[TensorType]) -> Sequence[TensorType]:
    """Numbers without a dtype take that of the others."""
    known = promoted([each.dtype for each in ins if each.dtype is not None] or [None])
    if known is None:
        return ins
    return [TensorType(each.shape, each.dtype or known) if each.shape == () else each for each in ins]


def _entry(
    name: str,
    inputs: str,
    form: NumpyForm,
    gradient: Gradient,
    dtype: Callable[[Sequence[str | None]], str | None] = _same,
    attrs: Attrs | None = None,
    doc: str = "",
) -> None:
    def plain(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        form(xp, attrs, ins, outs[0])

    def in_floats(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        form(xp, attrs, floats(ins, outs[0].dtype), outs[0])

    forward = in_floats if dtype is float_of else plain
    names = tuple(inputs.split())
    enter(
        Op(
            name,
            names,
            _types(dtype),
            forward,
            gradient,
            attrs=attrs or {},
            complete=_complete,
            elementwise=True,
            scalar=name,
            inplace=tuple(range(len(names))),
            prepare=form.prepare if isinstance(form, _Ufunc) else None,
            doc=doc,
        )
    )


def scalar_entry(
    name: str,
    inputs: str,
    gradient: Gradient,
    dtype: Callable[[Sequence[str | None]], str | None] = _same,
    attrs: Attrs | None = None,
    doc: str = "",
) -> None:
    """Enter an op that computes what its scalar code says in NumPy."""
    scalar = SCALARS[name]

    def form(xp: Any, attrs: Attrs, ins: Sequence[Any], out: Any) -> None:
        scalar.numpy(xp, [*ins, *attrs.values()], out)

    _entry(name, inputs, form, gradient, dtype, attrs, doc)


def floats(arrays: Sequence[Any], dtype: Any) -> list[Any]:
    """Integers and truth values as floats of that dtype: of small integers NumPy would compute in float16, and of
    bytes differences wrap around."""
    return [array if array.dtype.kind == "f" else array.astype(dtype) for array in arrays]


@dataclass(frozen=True, slots=True)
class _Ufunc:
    """NumPy's or CuPy's function of that name; of one float dtype throughout it is called without looking further."""

    name: str

    def __call__(self, xp: Any, attrs: Attrs, ins: Sequence[Any], out: Any) -> None:
        getattr(xp, self.name)(*ins, out=out, casting="unsafe")

    def prepare(self, xp: Any, attrs: Attrs, ins: Sequence[TensorType], outs: Sequence[TensorType]) -> Forward:
        function = getattr(xp, self.name)
        dtypes = {each.dtype for each in (*ins, *outs)}

        def unary(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
            function(ins[0], out=outs[0])

        def binary(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
            function(ins[0], ins[1], out=outs[0])

        def cast(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
            out = outs[0]
            function(*(floats(ins, out.dtype) if out.dtype.kind == "f" else ins), out=out, casting="unsafe")

        if len(dtypes) > 1 or as_float(outs[0].dtype) != outs[0].dtype:
            return cast
        return unary if len(ins) == 1 else binary


def _composed(compute: Callable[..., Any]) -> NumpyForm:
    """`compute(xp, attrs, *ins)` returns the values."""

    def form(xp: Any, attrs: Attrs, ins: Sequence[Any], out: Any) -> Any:
        out[...] = compute(xp, attrs, *ins)

    return form


def _unary(name: str, rule: Callable[[Backward], Any], dtype: Any = float_of, ufunc: str = "", doc: str = "") -> None:
    _entry(name, "x", _Ufunc(ufunc or name), (rule,), dtype, doc=doc)


# Arithmetic.
_entry("add", "x y", _Ufunc("add"), (lambda b: b.g, lambda b: b.g), doc="x + y")
_entry("subtract", "x y", _Ufunc("subtract"), (lambda b: b.g, lambda b: -b.g), number_of, doc="x - y")
_entry("multiply", "x y", _Ufunc("multiply"), (lambda b: b.g * b.y, lambda b: b.g * b.x), doc="x * y")
_entry("divide", "x y", _Ufunc("divide"), (lambda b: b.g / b.y, lambda b: -(b.g * b.out / b.y)), float_of, doc="x / y")
_entry(
    "power",
    "x y",
    _Ufunc("power"),
    (
        lambda b: b.g * b.y * F.power(b.x, b.y - 1),
        lambda b: b.g * F.where(b.x > 0, b.out * F.log(F.where(b.x > 0, b.x, 1)), 0),
    ),
    number_of,
    doc="x ** y; the gradient by y is 0 where x <= 0",
)
_entry("floor_divide", "x y", _Ufunc("floor_divide"), FLAT, number_of, doc="floor(x / y)")
_entry(
    "mod",
    "x y",
    _Ufunc("mod"),
    (lambda b: b.g, lambda b: -(b.g * F.floor_divide(b.x, b.y))),
    number_of,
    doc="x mod y, of y's sign",
)
_entry(
    "maximum",
    "x y",
    _Ufunc("maximum"),
    (lambda b: b.g * F.cast_like(b.x >= b.y, b.g), lambda b: b.g * F.cast_like(b.x < b.y, b.g)),
    doc="the larger one; equal ones give the gradient to x",
)
_entry(
    "minimum",
    "x y",
    _Ufunc("minimum"),
    (lambda b: b.g * F.cast_like(b.x <= b.y, b.g), lambda b: b.g * F.cast_like(b.x > b.y, b.g)),
    doc="the smaller one; equal ones give the gradient to x",
)
_unary("negative", lambda b: -b.g, number_of, doc="-x")
_unary("absolute", lambda b: b.g * F.sign(b.x), _same, doc="|x|")
_unary("square", lambda b: b.g * b.x * 2, number_of, doc="x * x")
_unary("sqrt", lambda b: b.g * 0.5 / b.out, doc="the square root")
_unary("exp", lambda b: b.g * b.out, doc="e ** x")
_unary("log", lambda b: b.g / b.x, doc="the natural logarithm")
_unary("log1p", lambda b: b.g / (b.x + 1), doc="log(1 + x)")
_unary("expm1", lambda b: b.g * (b.out + 1), doc="e ** x - 1")
_unary("sin", lambda b: b.g * F.cos(b.x))
_unary("cos", lambda b: -(b.g * F.sin(b.x)))
_unary("tanh", lambda b: b.g * (1 - F.square(b.out)))
_entry("sign", "x", _Ufunc("sign"), FLAT, number_of, doc="-1, 0 or 1")
_entry("floor", "x", _Ufunc("floor"), FLAT, number_of)
_entry("ceil", "x", _Ufunc("ceil"), FLAT, number_of)
_entry("round", "x", _Ufunc("rint"), FLAT, number_of, doc="to the nearest integer, halves to the even one")
_entry(
    "reciprocal",
    "x",
    _Ufunc("reciprocal"),
    (lambda b: -(b.g * F.square(b.out)),),
    float_of,
    doc="1 / x",
)
_entry(
    "rsqrt",
    "x",
    _composed(lambda xp, attrs, x: 1 / xp.sqrt(x)),
    (lambda b: b.g * -0.5 * b.out / b.x,),
    float_of,
    doc="1 / sqrt(x)",
)


# Activations.
def _sigmoid(xp: Any, attrs: Attrs, ins: Sequence[Any], out: Any) -> None:
    xp.multiply(ins[0], 0.5, out=out)
    xp.tanh(out, out=out)
    out *= 0.5
    out += 0.5


_entry("sigmoid", "x", _sigmoid, (lambda b: b.g * b.out * (1 - b.out),), float_of, doc="1 / (1 + exp(-x))")
_entry(
    "relu",
    "x",
    lambda xp, attrs, ins, out: xp.maximum(ins[0], 0, out=out),
    (lambda b: F.relu_gradient(b.g, b.out),),
    number_of,
    doc="max(x, 0)",
)
_entry(
    "relu_gradient",
    "g out",
    lambda xp, attrs, ins, out: xp.multiply(ins[0], ins[1] > 0, out=out),
    (lambda b: F.relu_gradient(b.g, b.y), FLAT),
    doc="g where out > 0, else 0",
)
_entry(
    "leaky_relu",
    "x",
    _composed(lambda xp, attrs, x: xp.where(x > 0, x, x * attrs["slope"])),
    (lambda b: b.g * F.where(b.x > 0, F.ones_like(b.x), b.attrs["slope"]),),
    float_of,
    {"slope": 0.01},
    "x, slope * x below 0",
)
_entry(
    "softplus",
    "x",
    _composed(lambda xp, attrs, x: xp.logaddexp(x, xp.zeros((), x.dtype))),
    (lambda b: b.g * F.sigmoid(b.x),),
    float_of,
    doc="log(1 + exp(x))",
)


def _clip(xp: Any, attrs: Attrs, ins: Sequence[Any], out: Any) -> None:
    low, high = attrs["low"], attrs["high"]
    if out.dtype.kind != "f":  # the integers within the bounds
        limits = np.iinfo(out.dtype)
        low = limits.min if low <= limits.min else math.ceil(low)
        high = limits.max if high >= limits.max else math.floor(high)
    xp.clip(ins[0], low, high, out=out)


_entry(
    "clip",
    "x",
    _clip,
    (lambda b: b.g * F.cast_like(F.logical_and(b.x >= b.attrs["low"], b.x <= b.attrs["high"]), b.g),),
    number_of,
    attrs={"low": -math.inf, "high": math.inf},
    doc="x within [low, high]",
)


# Comparisons and choice.
for _name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or"):
    _entry(_name, "x y", _Ufunc(_name), FLAT, truth_of)
_entry("logical_not", "x", _Ufunc("logical_not"), FLAT, truth_of)
_entry(
    "where",
    "condition x y",
    _composed(lambda xp, attrs, condition, x, y: xp.where(condition.astype(bool), x, y)),
    (FLAT, lambda b: F.where(b.ins[0], b.g, 0), lambda b: F.where(b.ins[0], 0, b.g)),
    lambda dtypes: promoted(dtypes[1:]),
    doc="x where the condition holds, else y",
)


# Dtypes and gradients' own.
def _cast_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(ins[0].shape, attrs["dtype"]),)


def _cast(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = ins[0]


enter(
    Op(
        "cast",
        ("x",),
        _cast_types,
        _cast,
        (lambda b: F.cast_like(b.g, b.x),),
        attrs={"dtype": REQUIRED},
        elementwise=True,
        scalar="cast",
        doc="x in another dtype",
    ),
    Op(
        "cast_like",
        ("x", "like"),
        lambda attrs, ins: (TensorType(ins[0].shape, ins[1].dtype),),
        _cast,
        (lambda b: F.cast_like(b.g, b.x), FLAT),
        scalar="cast",
        unread=(1,),
        doc="x in the dtype of `like`",
    ),
    Op(
        "block_grad",
        ("x",),
        lambda attrs, ins: (ins[0],),
        _cast,
        FLAT,
        view=True,
        same_shape=True,
        doc="x, through which no gradient flows",
    ),
    Op(
        "identity",
        ("x",),
        lambda attrs, ins: (ins[0],),
        _cast,
        (lambda b: b.g,),
        view=True,
        same_shape=True,
        doc="x",
    ),
)
