"""What is known of a tensor before it exists: a shape, in which any axis may be unknown, and a dtype.

Invariant: immutable; `None` means unknown, for an axis, for a whole shape, for a dtype. Two facts about one tensor meet
in `unified`, which keeps what either knows and refuses what contradicts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

Shape = tuple[int | None, ...]

_FLOATS: Final = ("float16", "float32", "float64")


class ContradictionError(ValueError):
    """Two facts about one tensor exclude each other. The caller knows the node and says so in a UsageError."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape and dtype (by name), as far as they are known."""

    shape: Shape | None = None
    dtype: str | None = None

    @property
    def is_known(self) -> bool:
        return self.dtype is not None and self.has_shape

    @property
    def has_shape(self) -> bool:
        return self.shape is not None and None not in self.shape

    @property
    def size(self) -> int:
        """Elements; only of a known shape."""
        return math.prod(self.known_shape)

    @property
    def known_shape(self) -> tuple[int, ...]:
        assert self.shape is not None, "the shape is unknown"
        return tuple(axis for axis in self.shape if axis is not None)

    @property
    def known_dtype(self) -> np.dtype[Any]:
        assert self.dtype is not None, "the dtype is unknown"
        return np.dtype(self.dtype)

    @property
    def nbytes(self) -> int:
        return self.size * self.known_dtype.itemsize

    def __str__(self) -> str:
        axes = "?" if self.shape is None else ", ".join("?" if axis is None else str(axis) for axis in self.shape)
        comma = "," if self.shape is not None and len(self.shape) == 1 else ""
        return f"{self.dtype or '?'}({axes}{comma})"


UNKNOWN: Final = TensorType()


_NAMES: Final[dict[Any, str]] = {}


def type_of(array: Any) -> TensorType:
    """The type of a NumPy or CuPy array."""
    dtype = array.dtype
    name = _NAMES.get(dtype)
    if name is None:  # NumPy makes it up anew each time, in 3 us
        name = _NAMES[dtype] = dtype.name
    return TensorType(array.shape, name)


def unified(one: TensorType, other: TensorType) -> TensorType:
    """What both facts say together.

    Raises:
        ContradictionError: they exclude each other.
    """
    if one == other or other == UNKNOWN:
        return one
    if one.dtype and other.dtype and one.dtype != other.dtype:
        raise ContradictionError(f"{one} and {other}")
    return TensorType(_unified_shape(one, other), one.dtype or other.dtype)


def _unified_shape(one: TensorType, other: TensorType) -> Shape | None:
    if one.shape is None or other.shape is None:
        return other.shape if one.shape is None else one.shape
    if len(one.shape) != len(other.shape):
        raise ContradictionError(f"{one} and {other}")
    axes = []
    for a, b in zip(one.shape, other.shape, strict=True):
        if a is not None and b is not None and a != b:
            raise ContradictionError(f"{one} and {other}")
        axes.append(b if a is None else a)
    return tuple(axes)


def broadcast(shapes: Iterable[Shape | None]) -> Shape | None:
    """The shape of an elementwise result, by NumPy's rules; None if any operand's rank is unknown.

    Raises:
        ContradictionError: two axes differ and neither is 1.
    """
    listed = list(shapes)
    if any(shape is None for shape in listed):
        return None
    known = [shape for shape in listed if shape is not None]
    first = known[0]
    if all(shape == first for shape in known):
        return first
    rank = max(len(shape) for shape in known)
    axes: list[int | None] = [1] * rank
    for shape in known:
        for i, axis in enumerate(shape, rank - len(shape)):
            axes[i] = _broadcast_axis(axes[i], axis)
    return tuple(axes)


def _broadcast_axis(a: int | None, b: int | None) -> int | None:
    if a == 1:
        return b
    if b == 1 or b == a:
        return a
    if a is None or b is None:
        return a if b is None else b  # the known one is not 1, so the other can only be it or 1
    raise ContradictionError(f"axes of {a} and {b}")


def promoted(dtypes: Iterable[str | None]) -> str | None:
    """The dtype of an arithmetic result: the widest float among the operands, else what NumPy promotes integers to.

    Unlike NumPy's rule an integer tensor does not widen a float one: int64 * float32 is float32, since what a training
    loop multiplies by labels or counts was meant to stay as it is.
    """
    listed = list(dtypes)
    if not listed or None in listed:
        return None
    names = [name for name in listed if name is not None]
    floats = [name for name in names if name in _FLOATS]
    if floats:
        return max(floats, key=_FLOATS.index)
    return str(np.result_type(*names).name)


def as_float(dtype: str | None) -> str | None:
    """The dtype in which a function such as exp answers: floats stay, everything else becomes float32."""
    return dtype if dtype is None or dtype in _FLOATS else "float32"
