"""Ops that put elements in other places: padding, repetition, order, running sums, elements by index along an axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from windlass_graph import functions as F
from windlass_graph.op import FLAT, REQUIRED, Attrs, Op, Run, enter
from windlass_graph.ops.indexing import checked_indices
from windlass_graph.ops.reductions import axes_of
from windlass_graph.tensor_type import ContradictionError, Shape, TensorType


def _like(which: int) -> Any:
    def infer(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(ins[which].shape, ins[0].dtype),)

    return infer


def _axis(attrs: Attrs, array: Any) -> int:
    [axis] = axes_of(attrs["axis"], array.ndim)
    return axis


def _same(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    if ins[0].shape is not None:
        axes_of(attrs["axis"], len(ins[0].shape))
    return (ins[0],)


# Padding.
def _checked_widths(attrs: Attrs, shape: Shape) -> Any:
    widths = attrs["widths"]
    pairs = all(isinstance(pair, tuple) and len(pair) == 2 and min(pair) >= 0 for pair in widths)
    if len(widths) != len(shape) or not pairs:
        raise ContradictionError(f"widths {widths} are no (before, after) for each of {len(shape)} axes")
    return widths


def _moved(sign: int) -> Any:
    def infer(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
        shape = ins[0].shape
        if shape is None:
            return (ins[0],)
        widths = _checked_widths(attrs, shape)
        axes = tuple(
            None if size is None else size + sign * sum(pair) for size, pair in zip(shape, widths, strict=True)
        )
        if any(size is not None and size < 0 for size in axes):
            raise ContradictionError(f"{shape} has less than the widths {widths} cut off")
        return (TensorType(axes, ins[0].dtype),)

    return infer


def _inside(widths: Any, shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(before, size - after) for (before, after), size in zip(widths, shape, strict=True))


def _pad(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0].fill(attrs["value"])
    outs[0][_inside(attrs["widths"], outs[0].shape)] = ins[0]


def _crop(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = ins[0][_inside(attrs["widths"], ins[0].shape)]


# Repetition: each axis of an output is that of the input, `repeats` times as a whole or element by element.
def _repeated(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    shape, repeats = ins[0].shape, attrs["repeats"]
    if not isinstance(repeats, int) or repeats < 0:
        raise ContradictionError(f"repeats {repeats} is no count")
    if shape is None:
        return (ins[0],)
    [axis] = axes_of(attrs["axis"], len(shape))
    size = shape[axis]
    return (TensorType((*shape[:axis], None if size is None else size * repeats, *shape[axis + 1 :]), ins[0].dtype),)


def _parts(attrs: Attrs, small: Any, large: Any, *, whole: bool) -> tuple[Any, Any, int]:
    """Both arrays with the repeated axis cut in two, and which of the two counts repetitions."""
    axis, repeats = _axis(attrs, small), attrs["repeats"]
    head, size, tail = small.shape[:axis], small.shape[axis], small.shape[axis + 1 :]
    cut = (repeats, size) if whole else (size, repeats)
    one = (1, size) if whole else (size, 1)
    return small.reshape(*head, *one, *tail), large.reshape(*head, *cut, *tail), axis + (0 if whole else 1)


def _repeat(*, whole: bool) -> Any:
    def forward(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        small, large, _ = _parts(attrs, ins[0], outs[0], whole=whole)
        large[...] = small

    return forward


def _repeat_gradient(*, whole: bool) -> Any:
    def forward(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        small, large, axis = _parts(attrs, outs[0], ins[0], whole=whole)
        xp.sum(large, axis=axis, keepdims=True, out=small)

    return forward


# Order.
def _backwards(axis: int) -> tuple[slice, ...]:
    return (*[slice(None)] * axis, slice(None, None, -1))


def _flip(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = ins[0][_backwards(_axis(attrs, ins[0]))]


def _cumsum(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = xp.cumsum(ins[0], axis=_axis(attrs, ins[0]))


def _order(xp: Any, attrs: Attrs, x: Any) -> Any:
    axis = _axis(attrs, x)
    order = xp.argsort(x, axis=axis)
    return order[_backwards(axis)] if attrs["descending"] else order


def _argsort(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = _order(xp, attrs, ins[0])


def _sort(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[1][...] = _order(xp, attrs, ins[0])
    outs[0][...] = xp.take_along_axis(ins[0], outs[1], axis=_axis(attrs, ins[0]))


def _ordered(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (*_same(attrs, ins), TensorType(ins[0].shape, "int64"))


# Elements by index.
def _along(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, indices = ins[0].shape, ins[1].shape
    if x is not None and indices is not None:
        [axis] = axes_of(attrs["axis"], len(x))
        beside = [(a, b) for i, (a, b) in enumerate(zip(x, indices, strict=False)) if i != axis]
        if len(x) != len(indices) or any(a != b for a, b in beside if None not in (a, b)):
            raise ContradictionError(f"indices of {indices} for {x} differ beside axis {axis}")
    return (TensorType(indices, ins[0].dtype),)


def _take_along(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    axis = _axis(attrs, ins[0])
    indices = checked_indices(xp, ins[1], ins[0].shape[axis], "take_along")
    outs[0][...] = xp.take_along_axis(ins[0], indices, axis=axis)


def _add_at(xp: Any, out: Any, where: Any, values: Any) -> None:
    if xp.__name__ == "numpy":
        xp.add.at(out, where, values)
    else:
        import cupyx

        cupyx.scatter_add(out, where, values)


def _put_along(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    g, indices, out = ins[0], ins[1], outs[0]
    axis = _axis(attrs, out)
    out.fill(0)
    where = [xp.arange(size).reshape(*[1] * i, size, *[1] * (g.ndim - i - 1)) for i, size in enumerate(g.shape)]
    where[axis] = checked_indices(xp, indices, out.shape[axis], "take_along")
    _add_at(xp, out, tuple(where), g)


def _scatter_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, indices, updates = (each.shape for each in ins)
    if x is not None and indices is not None and updates is not None:
        [axis] = axes_of(attrs["axis"], len(x))
        wanted = (*x[:axis], *indices, *x[axis + 1 :])
        if len(wanted) != len(updates) or any(
            a != b for a, b in zip(wanted, updates, strict=True) if None not in (a, b)
        ):
            raise ContradictionError(f"updates of {updates} for places of {wanted}")
    return (ins[0],)


def _scatter_add(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    x, indices, updates = ins
    axis = _axis(attrs, x)
    outs[0][...] = x
    where = (*[slice(None)] * axis, checked_indices(xp, indices, x.shape[axis], "scatter_add"))
    _add_at(xp, outs[0], where, updates)


_WIDTHS = {"widths": REQUIRED}
_REPEATS = {"repeats": REQUIRED, "axis": 0}
_ORDER = {"axis": -1, "descending": False}

enter(
    Op(
        "pad",
        ("x",),
        _moved(1),
        _pad,
        (lambda b: F.crop(b.g, widths=b.attrs["widths"]),),
        attrs={**_WIDTHS, "value": 0.0},
        doc="x with (before, after) elements of `value` around each axis",
    ),
    Op(
        "crop",
        ("x",),
        _moved(-1),
        _crop,
        (lambda b: F.pad(b.g, widths=b.attrs["widths"]),),
        attrs=_WIDTHS,
        doc="x without (before, after) elements of each axis",
    ),
    Op(
        "tile",
        ("x",),
        _repeated,
        _repeat(whole=True),
        (lambda b: F.tile_gradient(b.g, b.x, **b.attrs),),
        attrs=_REPEATS,
        doc="an axis as a whole, so many times",
    ),
    Op(
        "tile_gradient",
        ("g", "like"),
        _like(1),
        _repeat_gradient(whole=True),
        (lambda b: F.tile(b.g, **b.attrs), FLAT),
        attrs=_REPEATS,
        unread=(1,),
        doc="the sum over repetitions of `tile`",
    ),
    Op(
        "repeat",
        ("x",),
        _repeated,
        _repeat(whole=False),
        (lambda b: F.repeat_gradient(b.g, b.x, **b.attrs),),
        attrs=_REPEATS,
        doc="each element of an axis so many times",
    ),
    Op(
        "repeat_gradient",
        ("g", "like"),
        _like(1),
        _repeat_gradient(whole=False),
        (lambda b: F.repeat(b.g, **b.attrs), FLAT),
        attrs=_REPEATS,
        unread=(1,),
        doc="the sum over repetitions of `repeat`",
    ),
    Op("flip", ("x",), _same, _flip, (lambda b: F.flip(b.g, **b.attrs),), attrs={"axis": 0}, doc="an axis backwards"),
    Op(
        "cumsum",
        ("x",),
        _same,
        _cumsum,
        (lambda b: F.flip(F.cumsum(F.flip(b.g, **b.attrs), **b.attrs), **b.attrs),),
        attrs={"axis": 0},
        doc="sums of all elements up to each, along an axis",
    ),
    Op(
        "argsort",
        ("x",),
        lambda attrs, ins: (_ordered(attrs, ins)[1],),
        _argsort,
        FLAT,
        attrs=_ORDER,
        doc="where the elements of an axis lie, in their order",
    ),
    Op(
        "sort",
        ("x",),
        _ordered,
        _sort,
        (lambda b: F.take_along_gradient(b.g, b.outs[1], b.x, axis=b.attrs["axis"]),),
        attrs=_ORDER,
        doc="the elements of an axis in their order",
    ),
    Op(
        "take_along",
        ("x", "indices"),
        _along,
        _take_along,
        (lambda b: F.take_along_gradient(b.g, b.y, b.x, axis=b.attrs["axis"]), FLAT),
        attrs={"axis": -1},
        doc="along an axis the elements at the indices, which have as many axes as x",
    ),
    Op(
        "take_along_gradient",
        ("g", "indices", "like"),
        _like(2),
        _put_along,
        (lambda b: F.take_along(b.g, b.y, axis=b.attrs["axis"]), FLAT, FLAT),
        attrs={"axis": -1},
        unread=(2,),
        doc="zeros like the whole, to which g is added at the indices along an axis",
    ),
    Op(
        "scatter_add",
        ("x", "indices", "updates"),
        _scatter_types,
        _scatter_add,
        (lambda b: b.g, FLAT, lambda b: F.take(b.g, b.y, axis=b.attrs["axis"])),
        attrs={"axis": 0},
        doc="x, to which updates are added at the indices of an axis",
    ),
)
