"""Combining gradients before a rule sees them, and refusing those that are not numbers.

    scaled_copy(dst, src, weight)       dst = weight * src
    scaled_add(dst, src, weight)        dst = dst + weight * src
    all_finite(src)                     no element is an infinity or a NaN

Invariant: a sum over workers is scaled_copy of the first and scaled_add of the others, in rank order:
each element has its own chain of IEEE products and sums, so cutting a block anywhere keeps the bits, and
so does any CPU.

`all_finite` looks at exponents as integers (an infinity and a NaN have all ones there): the largest
masked pattern of an array is one vector instruction per load, where `isfinite` and a test per element
take four, and it is exact under any compiler flag.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import types

from windlass_proto import kernel_cache
from windlass_proto.errors import UsageError
from windlass_rules.rule import Vector

_EXPONENT_32: Final = np.int32(0x7F800000)
_EXPONENT_64: Final = np.int64(0x7FF0000000000000)


def _scaled_copy(dst: Vector, src: Vector, weight: float) -> None:
    if dst.size != src.size:
        raise IndexError("a gradient has another size than its sum")
    for i in range(dst.size):
        dst[i] = weight * src[i]


def _scaled_add(dst: Vector, src: Vector, weight: float) -> None:
    if dst.size != src.size:
        raise IndexError("a gradient has another size than its sum")
    for i in range(dst.size):
        dst[i] = dst[i] + weight * src[i]


def _all_finite_32(src: Vector) -> bool:
    patterns = src.view(np.int32)
    largest = np.int32(0)
    for i in range(patterns.size):
        largest = max(largest, patterns[i] & _EXPONENT_32)
    return bool(largest != _EXPONENT_32)


def _all_finite_64(src: Vector) -> bool:
    patterns = src.view(np.int64)
    largest = np.int64(0)
    for i in range(patterns.size):
        largest = max(largest, patterns[i] & _EXPONENT_64)
    return bool(largest != _EXPONENT_64)


@dataclass(frozen=True, slots=True)
class Reductions:
    """The module's three functions as machine code for one dtype; they release the interpreter's lock."""

    scaled_copy: Callable[[Vector, Vector, float], None]
    scaled_add: Callable[[Vector, Vector, float], None]
    all_finite: Callable[[Vector], bool]


_BUILDING = threading.Lock()
_READY: dict[np.dtype[Any], Reductions] = {}
_ALL_FINITE: Final = {np.dtype(np.float32): _all_finite_32, np.dtype(np.float64): _all_finite_64}


def build(dtype: npt.DTypeLike) -> Reductions:
    """The compiled functions for `dtype`, made at the first call of a process. Thread-safe.

    Raises:
        UsageError: if dtype is neither float32 nor float64.
    """
    kind = np.dtype(dtype)
    ready = _READY.get(kind)
    if ready is not None:
        return ready
    if kind not in _ALL_FINITE:
        raise UsageError("gradients of this dtype cannot be summed", dtype=kind.name, known="float32, float64")
    with _BUILDING:
        if kind not in _READY:
            _READY[kind] = Reductions(*(kernel_cache.compiled(*each, kind) for each in kernels(kind)))
        return _READY[kind]


def kernels(dtype: np.dtype[Any]) -> list[tuple[Callable[..., Any], list[Any]]]:
    """Each function of `Reductions` for `dtype`, in order, with its Numba signatures."""
    vector = kernel_cache.vector_type(dtype)
    readable = kernel_cache.vector_type(dtype, readonly=True)
    combine = [types.void(vector, readable, kernel_cache.scalar_type(dtype))]
    return [
        (_scaled_copy, combine),
        (_scaled_add, combine),
        (_ALL_FINITE[dtype], [types.boolean(readable)]),
    ]


def scaled_copy(dst: Vector, src: Vector, weight: float) -> None:
    """dst = weight * src, element by element. `src` may be read-only or `dst` itself.

    Raises:
        IndexError: if the sizes differ; nothing is written then.
    """
    build(dst.dtype).scaled_copy(dst, src, weight)


def scaled_add(dst: Vector, src: Vector, weight: float) -> None:
    """dst = dst + weight * src, element by element, each operation rounded. `src` may be read-only.

    Raises:
        IndexError: if the sizes differ; nothing is written then.
    """
    build(dst.dtype).scaled_add(dst, src, weight)


def all_finite(src: Vector) -> bool:
    """Whether no element of `src` is an infinity or a NaN. True for an empty array."""
    return build(src.dtype).all_finite(src)
