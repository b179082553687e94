"""float16 to float32 and back in integer arithmetic, for kernels: exact one way, rounded to nearest even the other.

Invariant: no branch and no call, so loops are vectorised on any CPU; hardware instructions for it are not everywhere.
A float16 is held as the uint16 of its bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np
from numba import float32, int32, uint16

from windlass_graph.kernels.bits import bits_of, float_of, select

_REBIAS: Final = np.float32(2.0**112)
_HALF: Final = np.float32(0.5)
_HALF_BITS: Final = np.int32(0x3F000000)
_SIGN: Final = np.int32(0x8000)
_MAGNITUDE: Final = np.int32(0x7FFF)
_ALL_BUT_SIGN: Final = np.int32(0x7FFFFFFF)
_EXPONENT: Final = np.int32(0x7C00)
_WIDE_INFINITY: Final = np.int32(0x7F800000)
_NAN: Final = np.int32(0x7E00)
_SMALLEST_NORMAL: Final = np.int32(0x38800000)  # 2^-14
_BEYOND: Final = np.int32(0x47800000)  # 2^16, behind the largest
_BIAS_DIFFERENCE: Final = np.int32(112 << 10)


def _inlined(function: Callable[..., Any]) -> Any:
    return numba.njit(forceinline=True, error_model="numpy")(function)


@_inlined
def float_of_half(half: Any) -> Any:
    """The float32 that a float16's bits stand for."""
    bits = int32(half)
    sign = int32(int32(bits & _SIGN) << int32(16))
    wide = int32(int32(bits & _MAGNITUDE) << int32(13))
    finite = bits_of(float32(float_of(wide) * _REBIAS))
    special = int32(bits & _EXPONENT) == _EXPONENT
    return float_of(int32(select(special, int32(wide | _WIDE_INFINITY), finite) | sign))


@_inlined
def half_of_float(value: Any) -> Any:
    """The bits of the nearest float16."""
    bits = bits_of(value)
    sign = int32(int32(bits >> int32(16)) & _SIGN)
    size = int32(bits & _ALL_BUT_SIGN)
    odd = int32(int32(size >> int32(13)) & int32(1))
    rounded = int32(int32(int32(size + int32(0xFFF)) + odd) >> int32(13))
    normal = int32(rounded - _BIAS_DIFFERENCE)
    small = int32(bits_of(float32(float_of(size) + _HALF)) - _HALF_BITS)  # in units of 2^-24, the smallest
    finite = select(size < _SMALLEST_NORMAL, small, normal)
    bounded = select(size >= _BEYOND, _EXPONENT, finite)
    return uint16(int32(select(size > _WIDE_INFINITY, _NAN, bounded) | sign))
