"""Elementary functions that are inlined and vectorised in loops: their machine code holds no call and no branch.

float32 functions are polynomials between exact steps of exponent arithmetic, in products and sums that are each
rounded once (nothing is fused), so their bits are the same on every CPU. Against the true value they are off by at
most 4 units in the last place (the tests say each one's figure), subnormal arguments and results included. Infinities,
zeros, overflow and NaN are answered as NumPy does, but for the sign of a zero.

float64 functions call libm one element at a time: gradient checks and statistics use them, training does not, and a
polynomial good to 52 bits costs three times these.

Coefficients: least squares on Chebyshev points, weights adapted until the largest relative error stops falling
(Lawson 1961), in double precision, then rounded. Reductions: Cody and Waite, "Software Manual for the Elementary
Functions" (1980).

This module imports Numba; import it where a kernel is compiled, not before.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numba
import numpy as np
from numba import float32, int32

from windlass_graph.kernels.bits import bits_of, copysign, float_of, magnitude, select

# Names in kernels are globals, which Numba freezes: a float32 here is a float32 there.
_LOG2_E: Final = np.float32(1.4426950408889634)
_LN2_HIGH: Final = np.float32(0.693359375)  # nine bits: its product with an exponent is exact
_LN2_LOW: Final = np.float32(-2.1219444005469057e-4)
_TO_INTEGER: Final = np.float32(1.5 * 2**23)  # added, it leaves no fraction: the sum's last bits are the integer
_INTEGER_ZERO: Final = np.int32(0x4B400000)  # the bits of _TO_INTEGER
_ROOT_HALF: Final = np.int32(0x3F3504F3)  # the bits of sqrt(1/2)
_HALF: Final = np.float32(0.5)
_ONE: Final = np.float32(1)
_TWO: Final = np.float32(2)
_ZERO: Final = np.float32(0)
_INFINITY: Final = np.float32(np.inf)
_NAN: Final = np.float32(np.nan)
_SMALLEST_NORMAL: Final = np.float32(2**-126)
_LIFT: Final = np.float32(2**23)
_LIFT_EXPONENT: Final = np.float32(-23)

_E0, _E1, _E2, _E3, _E4 = (np.float32(c) for c in (0.5, 0.16666538, 0.041666266, 0.008367247, 0.0013947595))
_L0, _L1, _L2, _L3 = (np.float32(c) for c in (0.3333333, -0.25000823, 0.20001227, -0.16623357))
_L4, _L5, _L6, _L7 = (np.float32(c) for c in (0.14201762, -0.13160194, 0.1276155, -0.0763443))
_S0, _S1, _S2 = (np.float32(c) for c in (1.1283791, -0.37612447, 0.112813205))
_S3, _S4, _S5 = (np.float32(c) for c in (-0.026748864, 0.004967506, -0.00058620796))
_C0, _C1, _C2, _C3 = (np.float32(c) for c in (-0.00016643909, -1.1277972, 0.363024 - 1.0, -0.10411374))
_C4, _C5, _C6 = (np.float32(c) for c in (0.022315249, -0.0030654997, 0.0001982207))
_ERF_SEAM: Final = np.float32(0.95)  # below: x times a polynomial in x^2; above: 1 - exp of a polynomial
_ERF_IS_ONE: Final = np.float32(4)
_EXP_OVERFLOWS: Final = np.float32(89)
_EXP_VANISHES: Final = np.float32(-104)
_EXPM1_IS_MINUS_ONE: Final = np.float32(-18)
_TANH_IS_ONE: Final = np.float32(10)


def _inlined(function: Callable[..., Any]) -> Any:
    return numba.njit(forceinline=True, error_model="numpy")(function)


@_inlined
def _shifted(n: Any) -> Any:
    """2^n for -126 <= n <= 127."""
    return float_of(int32(int32(n + int32(127)) << int32(23)))


@_inlined
def _halves_of_ln2(x: Any) -> Any:
    """n and r: x = n ln 2 + r with |r| <= ln 2 / 2, for |x| < 2^15. A NaN gives any n, and NaN as r."""
    moved = x * _LOG2_E + _TO_INTEGER
    whole = moved - _TO_INTEGER
    return int32(bits_of(moved) - _INTEGER_ZERO), (x - whole * _LN2_HIGH) - whole * _LN2_LOW


@_inlined
def _expm1_near_zero(r: Any) -> Any:
    """exp(r) - 1 for |r| <= 0.35."""
    return r + (r * r) * (_E0 + r * (_E1 + r * (_E2 + r * (_E3 + r * _E4))))


@_inlined
def exp_float32(x: Any) -> Any:
    bounded = select(x > _EXP_OVERFLOWS, _EXP_OVERFLOWS, x)
    bounded = select(bounded < _EXP_VANISHES, _EXP_VANISHES, bounded)
    n, r = _halves_of_ln2(bounded)
    half = int32(n >> int32(1))  # in two steps: 2^128 and 2^-150 are no float32, their roots are
    return ((_ONE + _expm1_near_zero(r)) * _shifted(half)) * _shifted(int32(n - half))


@_inlined
def expm1_float32(x: Any) -> Any:
    bounded = select(x > _EXP_OVERFLOWS, _EXP_OVERFLOWS, x)
    bounded = select(bounded < _EXPM1_IS_MINUS_ONE, _EXPM1_IS_MINUS_ONE, bounded)
    n, r = _halves_of_ln2(bounded)
    half = _shifted(int32(n - int32(1)))  # of 2^n, which for n = 128 is no float32
    return _TWO * (half * _expm1_near_zero(r) + (half - _HALF))


@_inlined
def log_float32(x: Any) -> Any:
    subnormal = x < _SMALLEST_NORMAL
    lifted = select(subnormal, x * _LIFT, x)
    bits = bits_of(lifted)
    exponent = int32(int32(bits - _ROOT_HALF) >> int32(23))
    f = float_of(int32(bits - int32(exponent << int32(23)))) - _ONE  # sqrt(1/2) - 1 to sqrt(2) - 1
    n = float32(exponent) + select(subnormal, _LIFT_EXPONENT, _ZERO)
    z = f * f
    series = _L0 + f * (_L1 + f * (_L2 + f * (_L3 + f * (_L4 + f * (_L5 + f * (_L6 + f * _L7))))))
    finite = (f + ((f * z * series + n * _LN2_LOW) - _HALF * z)) + n * _LN2_HIGH
    positive = select(x == _INFINITY, x, finite)
    return select(x > _ZERO, positive, select(x == _ZERO, -_INFINITY, _NAN))


@_inlined
def log1p_float32(x: Any) -> Any:
    u = _ONE + x
    lost = (x - (u - _ONE)) / u  # what rounding u lost, to first order
    inside = (x > -_ONE) & (x < _INFINITY)
    return log_float32(u) + select(inside, lost, _ZERO)


@_inlined
def tanh_float32(x: Any) -> Any:
    size = magnitude(x)
    t = expm1_float32(_TWO * select(size > _TANH_IS_ONE, _TANH_IS_ONE, size))
    return copysign(t / (t + _TWO), x)


@_inlined
def sigmoid_float32(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    z = exp_float32(-magnitude(x))
    return select(x < _ZERO, z, _ONE) / (_ONE + z)


@_inlined
def softplus_float32(x: Any) -> Any:
    """log(1 + exp(x))."""
    return select(x < _ZERO, _ZERO, x) + log1p_float32(exp_float32(-magnitude(x)))


@_inlined
def erf_float32(x: Any) -> Any:
    size = magnitude(x)
    z = x * x
    near = x * (_S0 + z * (_S1 + z * (_S2 + z * (_S3 + z * (_S4 + z * _S5)))))
    a = select(size > _ERF_IS_ONE, _ERF_IS_ONE, size)
    tail = _C0 + a * (_C1 + a * (_C2 + a * (_C3 + a * (_C4 + a * (_C5 + a * _C6)))))
    far = copysign(_ONE - exp_float32(tail), x)
    return select(size < _ERF_SEAM, near, far)


@_inlined
def exp_float64(x: Any) -> Any:
    return math.exp(x)


@_inlined
def expm1_float64(x: Any) -> Any:
    return math.expm1(x)


@_inlined
def log_float64(x: Any) -> Any:
    return math.log(x)


@_inlined
def log1p_float64(x: Any) -> Any:
    return math.log1p(x)


@_inlined
def tanh_float64(x: Any) -> Any:
    return math.tanh(x)


@_inlined
def sigmoid_float64(x: Any) -> Any:
    z = math.exp(-magnitude(x))
    return select(x < 0.0, z, 1.0) / (1.0 + z)


@_inlined
def softplus_float64(x: Any) -> Any:
    return select(x < 0.0, 0.0, x) + math.log1p(math.exp(-magnitude(x)))


@_inlined
def erf_float64(x: Any) -> Any:
    return math.erf(x)
