"""Values that are not finite: whether there are any, and what a policy makes of them.

    all_finite(values)              no element is an infinity or a NaN
    cleaned(values, out, large)     out = values, with 0 for NaN, and for an infinity `large` with its sign

`large` is 0 where infinities count as nothing (zero), else a number that leaves room for weights and sums (clip).

Invariant: exponents are looked at as integers, as `windlass_rules.reduce` does on servers: exact under any flags.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numba import types

from windlass_proto import kernel_cache
from windlass_proto.transfer_specs import Nonfinite

LARGE: Final = 2.0**64
"""An infinity under "clip": beyond any bound of clipping, and its sums over workers are finite."""


def _all_finite(patterns: Any, exponent: Any) -> bool:
    largest = exponent - exponent
    for i in range(patterns.size):
        largest = max(largest, patterns[i] & exponent)
    return bool(largest != exponent)


def _cleaned(values: Any, out: Any, large: Any) -> None:
    for i in range(out.size):
        x = values[i]
        whole = x if x == x else large - large  # a NaN equals nothing
        top = large if whole > 0 else -large
        out[i] = whole if abs(whole) < np.inf else top


@dataclass(frozen=True, slots=True)
class Cleaning:
    """The module's functions for one dtype."""

    dtype: np.dtype[Any]
    _finite: Callable[..., bool]
    _cleaned: Callable[..., None]

    def all_finite(self, values: Any) -> bool:
        """Is every element of a contiguous vector finite?"""
        integers = np.dtype(f"i{self.dtype.itemsize}")
        exponent = 0x7F800000 if self.dtype.itemsize == 4 else 0x7FF0000000000000
        return self._finite(values.view(integers), integers.type(exponent))

    def cleaned(self, values: Any, out: Any, policy: Nonfinite) -> None:
        """What "zero" or "clip" makes of `values`; `out` may be `values`."""
        self._cleaned(values, out, self.dtype.type(LARGE if policy is Nonfinite.CLIP else 0.0))


_BUILDING = threading.Lock()
_READY: dict[np.dtype[Any], Cleaning] = {}


def build(dtype: np.dtype[Any]) -> Cleaning:
    """The functions for float32 or float64, compiled at the first call of a process. Thread-safe."""
    ready = _READY.get(dtype)
    if ready is None:
        with _BUILDING:
            given = kernel_cache.vector_type(dtype, readonly=True)
            vector = kernel_cache.vector_type(dtype)
            integer = types.int32 if dtype.itemsize == 4 else types.int64
            patterns = types.Array(integer, 1, "C", readonly=True)
            looking = types.boolean(patterns, integer)
            writing = types.void(given, vector, kernel_cache.scalar_type(dtype))
            ready = _READY[dtype] = Cleaning(
                dtype,
                kernel_cache.compiled(_all_finite, [looking], dtype),
                kernel_cache.compiled(_cleaned, [writing], dtype),
            )
    return ready
