"""Ops that pick elements by index: take, pick, one-hot, embedding, and the scatter that is their gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from windlass_graph import functions as F
from windlass_graph.op import FLAT, REQUIRED, Attrs, Backward, Op, Run, enter
from windlass_graph.ops.reductions import axes_of
from windlass_graph.tensor_type import ContradictionError, TensorType
from windlass_proto.errors import UsageError


def _taken(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    shape, indices = ins[0].shape, ins[1].shape
    if shape is None or indices is None:
        return (TensorType(None, ins[0].dtype),)
    [axis] = axes_of(attrs["axis"], len(shape))
    return (TensorType((*shape[:axis], *indices, *shape[axis + 1 :]), ins[0].dtype),)


def checked_indices(xp: Any, indices: Any, size: int, what: str) -> Any:
    """Indices as int64, none beyond the axis. On a GPU they are not looked at: that would wait for it."""
    with np.errstate(invalid="ignore"):  # NaN becomes an index that lies outside
        wide = indices.astype("int64", copy=False)
    if xp.__name__ == "numpy" and wide.size and wide.view("uint64").max() >= size:  # negative ones are large there
        raise UsageError(
            f"an index of {what} lies outside the axis",
            next_move="Indices count from 0.",
            smallest=int(wide.min()),
            largest=int(wide.max()),
            axis=size,
        )
    return wide


def _take(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    [axis] = axes_of(attrs["axis"], ins[0].ndim)
    _gather(xp, ins[0], checked_indices(xp, ins[1], ins[0].shape[axis], "take"), axis, outs[0])


def _gather(xp: Any, x: Any, indices: Any, axis: int, out: Any) -> None:
    """NumPy writes to a buffer first unless it is told what to do with indices beyond the axis; there are none."""
    given = {"mode": "clip"} if xp.__name__ == "numpy" else {}
    xp.take(x, indices, axis=axis, out=out, **given)


def _scatter(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    g, indices, out = ins[0], ins[1], outs[0]
    [axis] = axes_of(attrs["axis"], out.ndim)
    out.fill(0)
    found = checked_indices(xp, indices, out.shape[axis], "take")
    where = (*[slice(None)] * axis, found)
    if xp.__name__ != "numpy":
        import cupyx

        cupyx.scatter_add(out, where, g)
    elif axis == 0 and out.dtype == g.dtype and out.dtype.char in "fd" and out.size:
        from windlass_graph.kernels.rows import add_rows

        length = out.size // len(out)
        add_rows(g.reshape(found.size, length), found.reshape(-1), out.reshape(len(out), length))
    else:
        xp.add.at(out, where, g)


def _embedding_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    weight = (attrs["input_size"], attrs["output_size"])
    if ins[1].shape is not None and ins[1].shape != weight:
        raise ContradictionError(f"a weight of {ins[1].shape} for an embedding of {weight}")
    return (TensorType(None if ins[0].shape is None else (*ins[0].shape, attrs["output_size"]), ins[1].dtype),)


def _embedding_complete(attrs: Attrs, ins: Sequence[TensorType]) -> Sequence[TensorType]:
    return [ins[0], TensorType((attrs["input_size"], attrs["output_size"]), ins[1].dtype)]


def _embedding(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    _gather(xp, ins[1], checked_indices(xp, ins[0], attrs["input_size"], "embedding"), 0, outs[0])


def _picked(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    shape = ins[0].shape
    if shape is None:
        return (TensorType(ins[1].shape, ins[0].dtype),)
    if not shape or (ins[1].shape is not None and len(ins[1].shape) != len(shape) - 1):
        raise ContradictionError(f"one index a row of {ins[0]}, not {ins[1]}")
    return (TensorType(shape[:-1], ins[0].dtype),)


def _pick(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    rows = ins[0].reshape(-1, ins[0].shape[-1])
    columns = checked_indices(xp, ins[1].reshape(-1), rows.shape[1], "pick")
    outs[0].reshape(-1)[...] = rows[xp.arange(len(rows)), columns]


def _hot_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(None if ins[0].shape is None else (*ins[0].shape, attrs["depth"]), attrs["dtype"]),)


def _hot(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0].fill(0)
    rows = outs[0].reshape(-1, attrs["depth"])
    rows[xp.arange(len(rows)), checked_indices(xp, ins[0].reshape(-1), attrs["depth"], "one_hot")] = 1


def _embedding_rule(b: Backward) -> Any:
    return F.take_gradient(b.g, b.x, b.y, axis=0)


enter(
    Op(
        "take",
        ("x", "indices"),
        _taken,
        _take,
        (lambda b: F.take_gradient(b.g, b.y, b.x, axis=b.attrs["axis"]), FLAT),
        attrs={"axis": 0},
        doc="x[..., indices, ...] along an axis",
    ),
    Op(
        "take_gradient",
        ("g", "indices", "like"),
        lambda attrs, ins: (TensorType(ins[2].shape, ins[0].dtype),),
        _scatter,
        (lambda b: F.take(b.g, b.y, axis=b.attrs["axis"]), FLAT, FLAT),
        attrs={"axis": 0},
        unread=(2,),
        doc="zeros like the whole, to which g is added at the indices",
    ),
    Op(
        "embedding",
        ("indices", "weight"),
        _embedding_types,
        _embedding,
        (FLAT, _embedding_rule),
        attrs={"input_size": REQUIRED, "output_size": REQUIRED},
        complete=_embedding_complete,
        parameters=frozenset({"weight"}),
        doc="rows of the weight by index",
    ),
    Op(
        "pick",
        ("x", "indices"),
        _picked,
        _pick,
        (lambda b: F.one_hot_like(b.y, b.x) * F.expand_dims(b.g, axis=-1), FLAT),
        doc="of each row of the last axis the element at its index",
    ),
    Op(
        "one_hot",
        ("indices",),
        _hot_types,
        _hot,
        FLAT,
        attrs={"depth": REQUIRED, "dtype": "float32"},
        doc="1 at each index, else 0, along a new last axis",
    ),
)
