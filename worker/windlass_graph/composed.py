"""Functions that are several ops: written once, for symbols and arrays alike. Reached as ops are: `wl.nd.stack(a, b)`.

Invariant: nothing here computes; shapes are asked for only where the name says so (`split` needs the axis it cuts).
"""

from __future__ import annotations

from typing import Any

from windlass_graph.functions import function
from windlass_proto.errors import UsageError

__all__ = ["logsumexp", "norm", "split", "stack", "std", "topk", "variance"]


def stack(*operands: Any, axis: int = 0) -> Any:
    """Operands of one shape, side by side along a new axis."""
    return function("concat")(*(function("expand_dims")(each, axis=axis) for each in operands), axis=axis)


def split(x: Any, parts: int, axis: int = 0) -> tuple[Any, ...]:
    """So many equal parts along an axis.

    Raises:
        UsageError: the axis is unknown, or does not come out even.
    """
    size = x.shape[axis] if x.shape is not None else None
    if size is None or parts < 1 or size % parts:
        raise UsageError("an axis is split into equal parts", axis=axis, size=size, parts=parts)
    each, place = size // parts, axis % len(x.shape)
    cut = function("slice_axis")
    return tuple(cut(x, axis=place, begin=i * each, end=(i + 1) * each) for i in range(parts))


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """log(sum(exp(x))) over axes, without overflow."""
    peak = function("block_grad")(function("max")(x, axis=axis, keepdims=True))
    total = function("log")(function("sum")(function("exp")(x - peak), axis=axis, keepdims=True)) + peak
    return total if keepdims else function("sum")(total, axis=axis)


def variance(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The mean square distance from the mean, over axes."""
    centred = x - function("mean")(x, axis=axis, keepdims=True)
    return function("mean")(centred * centred, axis=axis, keepdims=keepdims)


def std(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The square root of the variance."""
    return function("sqrt")(variance(x, axis, keepdims))


def norm(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    """The square root of the sum of squares, over axes."""
    return function("sqrt")(function("sum")(x * x, axis=axis, keepdims=keepdims))


def topk(x: Any, k: int, axis: int = -1) -> tuple[Any, Any]:
    """The k largest elements of an axis, the largest first, and their indices."""
    order = function("argsort")(x, axis=axis, descending=True)
    indices = function("slice_axis")(order, axis=axis, begin=0, end=k)
    return function("take_along")(x, indices, axis=axis), indices
