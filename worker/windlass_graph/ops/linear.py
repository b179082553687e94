"""Products of matrices, batched and not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from windlass_graph import functions as F
from windlass_graph.gradient import unbroadcast
from windlass_graph.op import REQUIRED, Attrs, Backward, Op, Run, enter
from windlass_graph.tensor_type import ContradictionError, Shape, TensorType, as_float, broadcast, promoted

_FLAGS = {"transpose_x": False, "transpose_y": False}


def _flipped(shape: Shape, transpose: bool) -> Shape:
    return (*shape[:-2], shape[-1], shape[-2]) if transpose else shape


def _product_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    dtype = promoted([each.dtype for each in ins])
    if ins[0].shape is None or ins[1].shape is None:
        return (TensorType(None, dtype),)
    if len(ins[0].shape) < 2 or len(ins[1].shape) < 2:
        raise ContradictionError("both factors need two axes or more; use dot for vectors")
    x, y = _flipped(ins[0].shape, attrs["transpose_x"]), _flipped(ins[1].shape, attrs["transpose_y"])
    if x[-1] is not None and y[-2] is not None and x[-1] != y[-2]:
        raise ContradictionError(f"inner axes of {x[-1]} and {y[-2]}")
    batch = broadcast([x[:-2], y[:-2]])
    assert batch is not None, "both ranks are known"
    return (TensorType((*batch, x[-2], y[-1]), dtype),)


def _product(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    x = ins[0].swapaxes(-1, -2) if attrs["transpose_x"] else ins[0]
    y = ins[1].swapaxes(-1, -2) if attrs["transpose_y"] else ins[1]
    xp.matmul(x, y, out=outs[0])


def _by_x(b: Backward) -> Any:
    tx, ty = b.attrs["transpose_x"], b.attrs["transpose_y"]
    if tx:
        return unbroadcast(F.matmul(b.y, b.g, transpose_x=ty, transpose_y=True), b.x)
    return unbroadcast(F.matmul(b.g, b.y, transpose_y=not ty), b.x)


def _by_y(b: Backward) -> Any:
    tx, ty = b.attrs["transpose_x"], b.attrs["transpose_y"]
    if ty:
        return unbroadcast(F.matmul(b.g, b.x, transpose_x=True, transpose_y=tx), b.y)
    return unbroadcast(F.matmul(b.x, b.g, transpose_x=not tx), b.y)


def _dense_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    dtype = as_float(promoted([each.dtype for each in ins]))
    shape, weight = ins[0].shape, ins[1].shape
    if weight is not None and (len(weight) != 2 or weight[0] not in (attrs["units"], None)):
        raise ContradictionError(f"a weight of {weight} for {attrs['units']} units")
    if shape is None:
        return (TensorType((None, attrs["units"]) if attrs["flatten"] else None, dtype),)
    if len(shape) < 2:
        raise ContradictionError(f"x of {shape}: it needs an axis of samples and one of features")
    features = _features(attrs, shape)
    if weight is not None and features is not None and weight[1] not in (features, None):
        raise ContradictionError(f"{features} features for a weight of {weight}")
    kept = shape[:1] if attrs["flatten"] else shape[:-1]
    return (TensorType((*kept, attrs["units"]), dtype),)


def _features(attrs: Attrs, shape: Shape) -> int | None:
    taken = shape[1:] if attrs["flatten"] else shape[-1:]
    return None if None in taken else math.prod(axis for axis in taken if axis is not None)


def _dense_complete(attrs: Attrs, ins: Sequence[TensorType]) -> Sequence[TensorType]:
    features = None if ins[0].shape is None else _features(attrs, ins[0].shape)
    weight = TensorType((attrs["units"], features), ins[1].dtype or as_float(ins[0].dtype))
    bias = [TensorType((attrs["units"],), each.dtype or as_float(ins[0].dtype)) for each in ins[2:]]
    return [ins[0], weight, *bias]


def _rows(attrs: Attrs, array: Any) -> Any:
    """x as a matrix of samples by features: a view, as arrays are contiguous."""
    return array.reshape(array.shape[0], -1) if attrs["flatten"] else array.reshape(-1, array.shape[-1])


def _dense(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    out = outs[0].reshape(-1, attrs["units"])
    xp.matmul(_rows(attrs, ins[0]), ins[1].T, out=out)
    if len(ins) > 2:
        out += ins[2]


def _dense_rule(b: Backward, index: int) -> Any:
    g = F.rows_of(b.g)
    if index == 0:
        return F.reshape_like(F.matmul(g, b.y), b.x)
    if index == 1:
        samples = F.flatten(b.x) if b.attrs["flatten"] else F.rows_of(b.x)
        return F.matmul(g, samples, transpose_x=True)
    return F.sum(g, axis=0)


def _dot_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if any(each.shape is not None and len(each.shape) != 1 for each in ins):
        raise ContradictionError("dot takes two vectors; use matmul or x @ y for matrices")
    sizes = {each.shape[0] for each in ins if each.shape is not None} - {None}
    if len(sizes) > 1:
        raise ContradictionError(f"vectors of {sorted(s for s in sizes if s is not None)}")
    return (TensorType((), promoted([each.dtype for each in ins])),)


def _rows_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    shape = ins[0].shape
    if shape is None:
        return (TensorType((None, None), ins[0].dtype),)
    count = None if None in shape[:-1] else math.prod(axis for axis in shape[:-1] if axis is not None)
    return (TensorType((count, shape[-1]), ins[0].dtype),)


def _copy(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = ins[0].reshape(outs[0].shape)


def _dot(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = xp.dot(ins[0], ins[1])


enter(
    Op(
        "matmul",
        ("x", "y"),
        _product_types,
        _product,
        (_by_x, _by_y),
        attrs=_FLAGS,
        doc="products of matrices, batched over leading axes",
    ),
    Op(
        "fully_connected",
        lambda attrs: ("x", "weight", "bias") if attrs["use_bias"] else ("x", "weight"),
        _dense_types,
        _dense,
        _dense_rule,
        attrs={"units": REQUIRED, "use_bias": True, "flatten": True},
        complete=_dense_complete,
        parameters=frozenset({"weight", "bias"}),
        doc="x @ weight.T + bias, weight of (units, features)",
    ),
    Op(
        "dot",
        ("x", "y"),
        _dot_types,
        _dot,
        (lambda b: b.g * b.y, lambda b: b.g * b.x),
        doc="the product of two vectors",
    ),
    Op(
        "rows_of",
        ("x",),
        _rows_types,
        _copy,
        (lambda b: F.reshape_like(b.g, b.x),),
        view=True,
        doc="all axes but the last as one",
    ),
)
