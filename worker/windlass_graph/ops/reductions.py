"""Ops that bring axes to one number: sums, means, extremes, and their inverse, broadcasting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from windlass_graph import functions as F
from windlass_graph.op import FLAT, REQUIRED, Attrs, Backward, Gradient, Op, Run, enter
from windlass_graph.tensor_type import ContradictionError, Shape, TensorType, as_float, broadcast

REDUCTION = {"axis": None, "keepdims": False}


def axes_of(axis: Any, rank: int) -> tuple[int, ...]:
    """The axes meant, from 0 up and in order: None is all of them.

    Raises:
        ContradictionError: there is no such axis, or one is named twice.
    """
    if axis is None:
        return tuple(range(rank))
    listed = axis if isinstance(axis, tuple) else (axis,)
    if any(not -rank <= each < rank for each in listed):
        raise ContradictionError(f"axis {axis} of {rank} axes")
    found = tuple(sorted(each % rank for each in listed))
    if len(set(found)) != len(found):
        raise ContradictionError(f"axis {axis} names one axis twice")
    return found


def reduced(shape: Shape | None, axis: Any, keepdims: bool) -> Shape | None:
    """The shape that is left."""
    if shape is None:
        return () if axis is None and not keepdims else None
    gone = axes_of(axis, len(shape))
    if keepdims:
        return tuple(1 if i in gone else size for i, size in enumerate(shape))
    return tuple(size for i, size in enumerate(shape) if i not in gone)


def _types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(reduced(ins[0].shape, attrs["axis"], attrs["keepdims"]), ins[0].dtype),)


def _total_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    """Integers and truth values are added and multiplied as int64."""
    dtype = ins[0].dtype
    shape = reduced(ins[0].shape, attrs["axis"], attrs["keepdims"])
    return (TensorType(shape, "int64" if dtype is not None and as_float(dtype) != dtype else dtype),)


def _float_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    shape = reduced(ins[0].shape, attrs["axis"], attrs["keepdims"])
    return (TensorType(shape, as_float(ins[0].dtype)),)


def _index_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(reduced(ins[0].shape, attrs["axis"], attrs["keepdims"]), "int64"),)


def _reduction(name: str) -> Any:
    def forward(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        getattr(xp, name)(ins[0], axis=attrs["axis"], keepdims=attrs["keepdims"], out=outs[0])

    def in_float32(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        """A sum of float16 may lie beyond float16 where the mean does not."""
        if outs[0].dtype != "float16":
            forward(xp, attrs, ins, outs, run)
        else:
            outs[0][...] = xp.mean(ins[0], axis=attrs["axis"], keepdims=attrs["keepdims"], dtype="float32")

    return in_float32 if name == "mean" else forward


def _sum(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    """NumPy's, but over an axis (or adjoining ones) between others."""
    x, out = ins[0], outs[0]
    gone = axes_of(attrs["axis"], x.ndim)
    between = bool(gone) and gone[0] > 0 and gone[-1] < x.ndim - 1 and gone[-1] - gone[0] == len(gone) - 1
    if not between or xp.__name__ != "numpy" or not x.size or out.dtype.char not in "fd":
        xp.sum(x, axis=attrs["axis"], keepdims=attrs["keepdims"], out=out)
        return
    from windlass_graph.kernels.middle_sums import sum_middle

    outer, inner = math.prod(x.shape[: gone[0]]), math.prod(x.shape[gone[-1] + 1 :])
    sum_middle(x.reshape(outer, -1, inner), out.reshape(outer, inner))


def _spread(b: Backward, reduced_value: Any) -> Any:
    """A reduced value with its axes back as 1, so that it broadcasts against the input."""
    if b.attrs["keepdims"]:
        return reduced_value
    return F.keep_axes(reduced_value, b.x, axis=b.attrs["axis"])


def _extreme(b: Backward) -> Any:
    """Equal extremes share the gradient."""
    hits = F.cast_like(F.equal(b.x, _spread(b, b.out)), b.g)
    return hits * (_spread(b, b.g) / F.sum(hits, axis=b.attrs["axis"], keepdims=True))


def _product(b: Backward) -> Any:
    return _spread(b, b.g * b.out) / b.x


def _count(b: Backward) -> Any:
    return F.broadcast_like(_spread(b, b.g), b.x) / F.count_like(b.x, axis=b.attrs["axis"])


def _entry(name: str, gradient: Gradient, infer: Any = _types, doc: str = "") -> None:
    forward = _sum if name == "sum" else _reduction(name)
    enter(Op(name, ("x",), infer, forward, gradient, attrs=REDUCTION, doc=doc))


_entry("sum", (lambda b: F.broadcast_like(_spread(b, b.g), b.x),), _total_types, doc="the sum over axes")
_entry("mean", (_count,), _float_types, doc="the mean over axes")
_entry("max", (_extreme,), doc="the largest over axes; equal ones share the gradient")
_entry("min", (_extreme,), doc="the smallest over axes; equal ones share the gradient")
_entry("prod", (_product,), _total_types, doc="the product over axes; its gradient divides by x, which must not be 0")


def _argument(name: str) -> Any:
    def forward(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        outs[0][...] = getattr(xp, name)(ins[0], axis=attrs["axis"], keepdims=attrs["keepdims"])

    return forward


for _name in ("argmax", "argmin"):
    _attrs = {"axis": -1, "keepdims": False}
    enter(Op(_name, ("x",), _index_types, _argument(_name), FLAT, attrs=_attrs, doc="the index of the extreme"))


# What gradients of reductions and of broadcasting are made of.
def _kept_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(reduced(ins[1].shape, attrs["axis"], True), ins[0].dtype),)


def _copy(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = ins[0].reshape(outs[0].shape)


def _broadcast_copy(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = ins[0]


def _like_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(ins[1].shape, ins[0].dtype),)


def _sum_to(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    grad, out = ins[0], outs[0]
    extra = grad.ndim - out.ndim
    axes = tuple(range(extra)) + tuple(
        extra + i for i, size in enumerate(out.shape) if size == 1 and grad.shape[extra + i] != 1
    )
    if not axes:
        out[...] = grad
    else:
        out[...] = xp.sum(grad, axis=axes, keepdims=True).reshape(out.shape)


def _count_forward(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    axes = axes_of(attrs["axis"], ins[0].ndim)
    outs[0][...] = math.prod(ins[0].shape[i] for i in axes)


def _to_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    wanted = attrs["shape"]
    if broadcast([ins[0].shape, wanted]) not in (None, wanted):
        raise ContradictionError(f"{ins[0]} does not broadcast to {wanted}")
    return (TensorType(wanted, ins[0].dtype),)


enter(
    Op(
        "keep_axes",
        ("x", "like"),
        _kept_types,
        _copy,
        (lambda b: F.reshape_like(b.g, b.x), FLAT),
        attrs={"axis": None},
        view=True,
        doc="what a reduction of `like` gave, with the reduced axes as 1",
    ),
    Op(
        "broadcast_like",
        ("x", "like"),
        _like_types,
        _broadcast_copy,
        (lambda b: F.sum_to_like(b.g, b.x), FLAT),
        unread=(1,),
        doc="x broadcast to the shape of `like`",
    ),
    Op(
        "broadcast_to",
        ("x",),
        _to_types,
        _broadcast_copy,
        (lambda b: F.sum_to_like(b.g, b.x),),
        attrs={"shape": REQUIRED},
        doc="x broadcast to a shape",
    ),
    Op(
        "sum_to_like",
        ("x", "like"),
        _like_types,
        _sum_to,
        (lambda b: F.broadcast_like(b.g, b.x), FLAT),
        unread=(1,),
        doc="x summed over the axes along which `like` would broadcast to it",
    ),
    Op(
        "count_like",
        ("x",),
        lambda attrs, ins: (TensorType((), as_float(ins[0].dtype)),),
        _count_forward,
        FLAT,
        attrs={"axis": None},
        unread=(0,),
        doc="how many elements a reduction of x over the axes brings to one",
    ),
)
