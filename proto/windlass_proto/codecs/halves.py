"""Half types in integers: float32 to float16 and bfloat16 and back, as IEEE 754 says.

Numba has no half types on the CPU, and NumPy converts 0.7 to 1.3 GB/s. These are exact: round to nearest, ties to even;
subnormals are kept, what is too large becomes an infinity, and a NaN stays one with the upper bits of its payload, so
that all 65,536 halves come back from float32 as they were.

    to_half(values, halves)      float32 -> u16
    to_single(halves, values)    u16 -> float32

Invariant: integer arithmetic and one exact or correctly rounded float32 operation an element; no table, no branch. The
one addition rounds a subnormal half: 0.5's last bit is worth 2**-24, as a subnormal half's is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numba import types
from numba.extending import register_jitable

from windlass_proto import kernel_cache
from windlass_proto.codecs.kernel import FLOAT32, INFINITY, MAGNITUDE, U32
from windlass_proto.errors import UsageError

HALVES: Final = ("float16", "bfloat16")

HALF: Final = np.float32(0.5)
HALF_BITS: Final = U32(0x3F000000)
_ONE: Final = U32(1)
NORMAL_FROM: Final = U32(0x38800000)  # 2**-14, the least normal float16
_INFINITE_FROM: Final = U32(0x477FF000)  # 65,520, halfway to 65,536
_REBIAS: Final = U32(0xC8000FFF)  # (15 - 127) << 23, and just under half of the last kept bit
BIAS: Final = U32(112 << 23)
_UNIT: Final = np.float32(2.0**-24)


@register_jitable(error_model="numpy")
def half_of(value: Any, bits: Any) -> Any:
    """The float16 of `value`, whose bits are `bits`, as u32."""
    magnitude = U32(bits & MAGNITUDE)
    sign = U32(U32(bits >> U32(16)) & U32(0x8000))
    odd = U32(U32(magnitude >> U32(13)) & _ONE)
    normal = U32(U32(U32(magnitude + _REBIAS) + odd) >> U32(13))
    subnormal = U32(np.float32(abs(value) + HALF).view(np.uint32) - HALF_BITS)
    nan = U32(U32(0x7C00) | max(U32(U32(magnitude >> U32(13)) & U32(0x3FF)), _ONE))
    found = normal if magnitude >= NORMAL_FROM else subnormal
    found = U32(0x7C00) if magnitude >= _INFINITE_FROM else found
    found = nan if magnitude > INFINITY else found
    return U32(found | sign)


@register_jitable(error_model="numpy")
def bits_of_half(half: Any) -> Any:
    """The bits of the float32 that equals float16 `half` (as u32)."""
    sign = U32(U32(half & U32(0x8000)) << U32(16))
    magnitude = U32(half & U32(0x7FFF))
    normal = U32(U32(magnitude << U32(13)) + BIAS)
    subnormal = np.float32(np.float32(np.int32(magnitude)) * _UNIT).view(np.uint32)
    found = subnormal if magnitude < U32(0x400) else normal
    found = U32(found + BIAS) if magnitude >= U32(0x7C00) else found
    return U32(found | sign)


@register_jitable(error_model="numpy")
def brief_of(bits: Any) -> Any:
    """The bfloat16 of the float32 with `bits`, as u32."""
    odd = U32(U32(bits >> U32(16)) & _ONE)
    rounded = U32(U32(U32(bits + U32(0x7FFF)) + odd) >> U32(16))
    cut = U32(bits >> U32(16))
    # A NaN whose payload lies in the lower half alone would become an infinity.
    nan = U32(cut | _ONE) if U32(cut & U32(0x7F)) == U32(0) else cut
    return nan if U32(bits & MAGNITUDE) > INFINITY else rounded


def _float16_to_half(values: Any, halves: Any) -> None:
    if values.size != halves.size:
        raise IndexError("halves have another size than their values")
    patterns = values.view(np.uint32)
    for i in range(halves.size):
        halves[i] = np.uint16(half_of(values[i], patterns[i]))


def _float16_to_single(halves: Any, values: Any) -> None:
    if values.size != halves.size:
        raise IndexError("halves have another size than their values")
    patterns = values.view(np.uint32)
    for i in range(patterns.size):
        patterns[i] = bits_of_half(U32(halves[i]))


def _bfloat16_to_half(values: Any, halves: Any) -> None:
    if values.size != halves.size:
        raise IndexError("halves have another size than their values")
    patterns = values.view(np.uint32)
    for i in range(halves.size):
        halves[i] = np.uint16(brief_of(patterns[i]))


def _bfloat16_to_single(halves: Any, values: Any) -> None:
    if values.size != halves.size:
        raise IndexError("halves have another size than their values")
    patterns = values.view(np.uint32)
    for i in range(patterns.size):
        patterns[i] = U32(U32(halves[i]) << U32(16))


@dataclass(frozen=True, slots=True)
class HalfKernels:
    """The module's two functions for one half type; they raise IndexError where sizes differ."""

    to_half: Callable[..., None]
    to_single: Callable[..., None]


_BUILDING = threading.Lock()
_READY: dict[str, HalfKernels] = {}
_FUNCTIONS: Final = {
    "float16": (_float16_to_half, _float16_to_single),
    "bfloat16": (_bfloat16_to_half, _bfloat16_to_single),
}


def build(dtype: str) -> HalfKernels:
    """The kernels of "float16" or "bfloat16", compiled at the first call of a process. Thread-safe.

    Raises:
        UsageError: for another name.
    """
    ready = _READY.get(dtype)
    if ready is not None:
        return ready
    if dtype not in _FUNCTIONS:
        raise UsageError("a half type is not known", dtype=dtype, known=", ".join(HALVES))
    with _BUILDING:
        if dtype not in _READY:
            _READY[dtype] = _compiled(*_FUNCTIONS[dtype])
        return _READY[dtype]


def _compiled(to_half: Callable[..., None], to_single: Callable[..., None]) -> HalfKernels:
    given = kernel_cache.vector_type(FLOAT32, readonly=True)
    values = kernel_cache.vector_type(FLOAT32)
    halves = types.Array(types.uint16, 1, "C")
    received = types.Array(types.uint16, 1, "C", readonly=True)
    return HalfKernels(
        kernel_cache.compiled(to_half, [types.void(given, halves)], FLOAT32),
        kernel_cache.compiled(to_single, [types.void(received, values)], FLOAT32),
    )
