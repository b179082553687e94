"""Ops that move elements and compute nothing: other shapes, other orders of axes, parts and joins."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from windlass_graph import functions as F
from windlass_graph.op import FLAT, REQUIRED, Attrs, Backward, Op, Run, enter
from windlass_graph.ops.reductions import axes_of
from windlass_graph.tensor_type import ContradictionError, Shape, TensorType


def _copy(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = ins[0].reshape(outs[0].shape)


def _reshaped(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(_target(ins[0].shape, attrs["shape"]), ins[0].dtype),)


def _target(shape: Shape | None, wanted: tuple[int, ...]) -> Shape | None:
    """The shape asked for: 0 keeps the axis of that place, -1 is what is left."""
    axes: list[int | None] = []
    for i, axis in enumerate(wanted):
        if axis == 0 and shape is not None and i < len(shape):
            axes.append(shape[i])
        else:
            axes.append(None if axis in (0, -1) else axis)
    if shape is None or None in shape:
        return tuple(axes)
    size = math.prod(axis for axis in shape if axis is not None)
    known = math.prod(axis for axis in axes if axis is not None)
    if axes.count(None) == 1 and known and size % known == 0:
        axes[axes.index(None)] = size // known
    elif None in axes or known != size:
        raise ContradictionError(f"{size} elements of {shape} as {wanted}")
    return tuple(axes)


def _flattened(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    shape = ins[0].shape
    if shape is None:
        return (TensorType((None, None), ins[0].dtype),)
    if not shape:
        raise ContradictionError("a scalar has no first axis to keep")
    rest = None if None in shape[1:] else math.prod(axis for axis in shape[1:] if axis is not None)
    return (TensorType((shape[0], rest), ins[0].dtype),)


def _expanded(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    shape = ins[0].shape
    if shape is None:
        return (TensorType(None, ins[0].dtype),)
    [axis] = axes_of(attrs["axis"], len(shape) + 1)
    return (TensorType((*shape[:axis], 1, *shape[axis:]), ins[0].dtype),)


def _squeezed(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    shape = ins[0].shape
    if shape is None or (attrs["axis"] is None and None in shape):
        return (TensorType(None, ins[0].dtype),)
    gone = (
        [i for i, size in enumerate(shape) if size == 1]
        if attrs["axis"] is None
        else axes_of(attrs["axis"], len(shape))
    )
    if any(shape[i] not in (1, None) for i in gone):
        raise ContradictionError(f"axis {attrs['axis']} of {shape} is not 1")
    return (TensorType(tuple(size for i, size in enumerate(shape) if i not in gone), ins[0].dtype),)


def _view(name: str, infer: Any, attrs: Attrs | None = None, doc: str = "") -> Op:
    rule = (lambda b: F.reshape_like(b.g, b.x),)
    return Op(name, ("x",), infer, _copy, rule, attrs=attrs or {}, view=True, doc=doc)


def _reshape_like(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if ins[0].has_shape and ins[1].has_shape and ins[0].size != ins[1].size:
        raise ContradictionError(f"{ins[0]} as {ins[1]}")
    return (TensorType(ins[1].shape, ins[0].dtype),)


def axis_order(attrs: Attrs, rank: int) -> tuple[int, ...]:
    axes = attrs["axes"]
    if axes is None:
        return tuple(reversed(range(rank)))
    if sorted(axis % rank if rank else axis for axis in axes) != list(range(rank)):
        raise ContradictionError(f"axes {axes} are no order of {rank} axes")
    return tuple(axis % rank for axis in axes)


def _transposed(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    shape = ins[0].shape
    if shape is None:
        return (TensorType(None, ins[0].dtype),)
    return (TensorType(tuple(shape[i] for i in axis_order(attrs, len(shape))), ins[0].dtype),)


def _transpose(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = ins[0].transpose(axis_order(attrs, ins[0].ndim))


def _transpose_rule(b: Backward) -> Any:
    axes = b.attrs["axes"]
    if axes is None:
        return F.transpose(b.g)
    rank = len(axes)
    order = [axis % rank for axis in axes]
    return F.transpose(b.g, axes=tuple(order.index(i) for i in range(rank)))


enter(
    _view("reshape", _reshaped, {"shape": REQUIRED}, "x in another shape: 0 keeps an axis, -1 is what is left"),
    _view("flatten", _flattened, doc="the first axis stays, the others become one"),
    _view("expand_dims", _expanded, {"axis": REQUIRED}, "a new axis of 1"),
    _view("squeeze", _squeezed, {"axis": None}, "axes of 1 go"),
    Op(
        "reshape_like",
        ("x", "like"),
        _reshape_like,
        _copy,
        (lambda b: F.reshape_like(b.g, b.x), FLAT),
        view=True,
        doc="x in the shape of `like`",
    ),
    Op(
        "transpose",
        ("x",),
        _transposed,
        _transpose,
        (_transpose_rule,),
        attrs={"axes": None},
        doc="axes in another order",
    ),
)


def _fill(value: int) -> Any:
    def forward(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        outs[0].fill(value)

    return forward


for _name, _value in (("zeros_like", 0), ("ones_like", 1)):
    enter(
        Op(
            _name,
            ("x",),
            lambda attrs, ins: (ins[0],),
            _fill(_value),
            FLAT,
            unread=(0,),
            same_shape=True,
            doc=f"{_value}s in the shape of x",
        )
    )


# Joins and parts.
def _joined(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    dtype = next((each.dtype for each in ins if each.dtype), None)
    shapes = [each.shape for each in ins if each.shape is not None]
    if len(shapes) != len(ins):
        return (TensorType(None, dtype),)
    rank = len(shapes[0])
    [axis] = axes_of(attrs["axis"], rank)
    axes = list(shapes[0])
    for shape in shapes[1:]:
        if len(shape) != rank or any(
            a not in (b, None) and b is not None for i, (a, b) in enumerate(zip(axes, shape, strict=True)) if i != axis
        ):
            raise ContradictionError(f"{shapes[0]} and {shape} differ beside axis {axis}")
        axes = [b if a is None else a for a, b in zip(axes, shape, strict=True)]
    sizes = [shape[axis] for shape in shapes]
    axes[axis] = None if None in sizes else sum(size for size in sizes if size is not None)
    return (TensorType(tuple(axes), dtype),)


def _join(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    xp.concatenate(ins, axis=attrs["axis"], out=outs[0])


def _join_rule(b: Backward, index: int) -> Any:
    return F.part_like(b.g, *b.ins, axis=b.attrs["axis"], index=index)


def _part_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(ins[1 + attrs["index"]].shape, ins[0].dtype),)


def _part(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    axis, index = attrs["axis"], attrs["index"]
    begin = sum(each.shape[axis] for each in ins[1 : 1 + index])
    where = [slice(None)] * ins[0].ndim
    where[axis] = slice(begin, begin + outs[0].shape[axis])
    outs[0][...] = ins[0][tuple(where)]


def _part_rule(b: Backward, index: int) -> Any:
    if index:
        return F.zeros_like(b.ins[index])
    parts = [F.zeros_like(each) for each in b.ins[1:]]
    parts[b.attrs["index"]] = b.g
    return F.concat(*parts, axis=b.attrs["axis"])


def _slice_bounds(attrs: Attrs, size: int) -> tuple[int, int]:
    begin, end, _ = slice(attrs["begin"], attrs["end"]).indices(size)
    return begin, max(begin, end)


def _sliced(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    shape = ins[0].shape
    if shape is None:
        return (TensorType(None, ins[0].dtype),)
    [axis] = axes_of(attrs["axis"], len(shape))
    size = shape[axis]
    if size is not None:
        begin, end = _slice_bounds(attrs, size)
        size = end - begin
    return (TensorType((*shape[:axis], size, *shape[axis + 1 :]), ins[0].dtype),)


def _where(attrs: Attrs, array: Any) -> tuple[slice, ...]:
    [axis] = axes_of(attrs["axis"], array.ndim)
    begin, end = _slice_bounds(attrs, array.shape[axis])
    return (*[slice(None)] * axis, slice(begin, end))


def _slice(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = ins[0][_where(attrs, ins[0])]


def _unslice(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0].fill(0)
    outs[0][_where(attrs, outs[0])] = ins[0]


_BOUNDS = {"axis": 0, "begin": None, "end": None}

enter(
    Op("concat", ("*data",), _joined, _join, _join_rule, attrs={"axis": 1}, doc="inputs joined along an axis"),
    Op(
        "part_like",
        ("x", "*parts"),
        _part_types,
        _part,
        _part_rule,
        attrs={"axis": REQUIRED, "index": REQUIRED},
        doc="the part of x that came from the input of that index when they were joined",
    ),
    Op(
        "slice_axis",
        ("x",),
        _sliced,
        _slice,
        (lambda b: F.slice_axis_gradient(b.g, b.x, **b.attrs),),
        attrs=_BOUNDS,
        doc="x[begin:end] along one axis",
    ),
    Op(
        "slice_axis_gradient",
        ("g", "like"),
        lambda attrs, ins: (TensorType(ins[1].shape, ins[0].dtype),),
        _unslice,
        (lambda b: F.slice_axis(b.g, **b.attrs), FLAT),
        attrs=_BOUNDS,
        unread=(1,),
        doc="zeros like the whole with g in the slice",
    ),
)
