"""`x[...]` of operands: integers, slices of step 1, an index array, None and Ellipsis, as compositions of ops."""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass_graph.functions import function
from windlass_proto.errors import UsageError


def getitem(operand: Any, key: Any) -> Any:
    """The part of `operand` that the key names.

    Raises:
        UsageError: the key has a step, a mask, two index arrays, or more axes than there are.
    """
    parts = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in [part for part in parts if part is Ellipsis]:
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        named = sum(part is not None for part in parts) - 1
        parts[at : at + 1] = [slice(None)] * (len(operand.shape) - named)
    axis, result = 0, operand
    gone: list[int] = []
    for part in parts:
        result, axis = _step(result, part, axis, gone)
    return function("squeeze")(result, axis=tuple(gone)) if gone else result


def _step(operand: Any, part: Any, axis: int, gone: list[int]) -> tuple[Any, int]:
    """One part of the key: the operand so far, and the axis at which the next part stands."""
    if part is None:
        return function("expand_dims")(operand, axis=axis), axis + 1
    if isinstance(part, slice):
        if part.step not in (None, 1):
            raise UsageError("slices of operands have step 1", next_move="Use take with indices.", step=part.step)
        if part == slice(None):
            return operand, axis + 1
        return function("slice_axis")(operand, axis=axis, begin=part.start, end=part.stop), axis + 1
    if isinstance(part, int | np.integer) and not isinstance(part, bool):
        gone.append(axis)
        return _one(operand, int(part), axis), axis + 1
    if getattr(part, "dtype", None) in (np.dtype(bool), "bool") or isinstance(part, bool):
        raise UsageError(
            "a mask is no index: how many elements it takes is not known beforehand",
            next_move="Multiply by it, or use where(mask, x, 0).",
        )
    if hasattr(part, "dtype") or isinstance(part, list):
        return function("take")(operand, part, axis=axis), axis + len(np.shape(part))
    raise UsageError(
        "this is no index", next_move="Use integers, slices or arrays of integers.", got=type(part).__name__
    )


def _one(operand: Any, index: int, axis: int) -> Any:
    size = operand.shape[axis] if axis < len(operand.shape) else 0
    if size is not None and not -size <= index < size:
        raise UsageError("an index lies outside its axis", index=index, axis=axis, size=size)
    return function("slice_axis")(operand, axis=axis, begin=index, end=index + 1 if index != -1 else None)
