"""Remainders, whole quotients and powers as NumPy defines them, for kernels.

Where NumPy raises or warns, these answer: division by zero gives 0 for integers; an integer to a negative power is what
is left of its reciprocal, 0 but for 1 and -1. Floats call libm (fmod, pow), one element at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
from numba import float32, float64, int64

from windlass_graph.kernels.bits import copysign, floor, fmod, select


def _inlined(function: Callable[..., Any]) -> Any:
    return numba.njit(forceinline=True, error_model="numpy")(function)


@_inlined
def power(base: Any, exponent: Any) -> Any:
    return math.pow(base, exponent)


@_inlined
def _remainder(a: Any, b: Any, zero: Any) -> Any:
    """The remainder with the sign of b."""
    rest = fmod(a, b)
    other_sign = (rest < zero) != (b < zero)
    signed = select(other_sign, rest + b, rest)
    return select(rest == zero, copysign(zero, b), signed)


@_inlined
def _quotient(a: Any, b: Any, zero: Any, one: Any, half: Any) -> Any:
    rest = fmod(a, b)
    whole = (a - rest) / b
    lower = select((rest != zero) & ((rest < zero) != (b < zero)), whole - one, whole)
    near = floor(lower)
    rounded = select(lower - near > half, near + one, near)
    found = select(lower == zero, copysign(zero, a / b), rounded)
    return select(b == zero, a / b, found)


@_inlined
def rest_float32(a: Any, b: Any) -> Any:
    return _remainder(a, b, float32(0))


@_inlined
def rest_float64(a: Any, b: Any) -> Any:
    return _remainder(a, b, float64(0))


@_inlined
def floor_divide_float32(a: Any, b: Any) -> Any:
    return _quotient(a, b, float32(0), float32(1), float32(0.5))


@_inlined
def floor_divide_float64(a: Any, b: Any) -> Any:
    return _quotient(a, b, float64(0), float64(1), float64(0.5))


@_inlined
def integer_floor_divide(a: Any, b: Any) -> Any:
    if b == 0:
        return int64(0)
    if b == -1:  # the processor traps at the smallest integer over -1
        return int64(0) - int64(a)
    return int64(a) // int64(b)


@_inlined
def integer_remainder(a: Any, b: Any) -> Any:
    if b == 0 or b == -1:
        return int64(0)
    return int64(a) % int64(b)


@_inlined
def integer_power(base: Any, exponent: Any) -> Any:
    factor, left, product = int64(base), int64(exponent), int64(1)
    if left < 0:
        return select(factor == 1, int64(1), select(factor == -1, int64(1) - int64(2) * (left & int64(1)), int64(0)))
    while left > 0:
        if left & int64(1):
            product *= factor
        factor *= factor
        left >>= int64(1)
    return product
