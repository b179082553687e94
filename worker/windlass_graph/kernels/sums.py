"""Sums within loops: added up in `LANES` float64 lanes, so that the loop works on whole vectors, then folded.

A float32 loop that adds one element after the other is neither fast (each waits for the one before) nor exact: after
2^24 ones a float32 sum no longer grows. Here no lane rounds to less than 53 bits.

This module imports Numba: it is imported where loops are compiled, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numba

from windlass_graph.kernels.bits import load, store

LANES: Final = 16


def _inlined(function: Callable[..., Any]) -> Any:
    return numba.njit(forceinline=True, error_model="numpy")(function)


@_inlined
def add_up(lanes: Any, x: Any, at: Any, n: Any) -> None:
    """Add x[at : at + n] to `lanes`, an array of LANES float64."""
    whole = n // LANES * LANES
    for begin in range(at, at + whole, LANES):
        for k in range(LANES):
            store(lanes, k, load(lanes, k) + load(x, begin + k))
    for i in range(at + whole, at + n):
        lanes[0] += load(x, i)


@_inlined
def add_up_squares(lanes: Any, x: Any, at: Any, n: Any, mean: Any) -> None:
    """Add (x[at : at + n] - mean)^2 to `lanes`."""
    whole = n // LANES * LANES
    for begin in range(at, at + whole, LANES):
        for k in range(LANES):
            away = load(x, begin + k) - mean
            store(lanes, k, load(lanes, k) + away * away)
    for i in range(at + whole, at + n):
        lanes[0] += (load(x, i) - mean) * (load(x, i) - mean)


@_inlined
def add_up_products(lanes: Any, x: Any, at: Any, n: Any, y: Any, there: Any, mean: Any) -> None:
    """Add x[at : at + n] * (y[there : there + n] - mean) to `lanes`."""
    whole = n // LANES * LANES
    for begin in range(0, whole, LANES):
        for k in range(LANES):
            away = load(y, there + begin + k) - mean
            store(lanes, k, load(lanes, k) + load(x, at + begin + k) * away)
    for i in range(whole, n):
        lanes[0] += load(x, at + i) * (load(y, there + i) - mean)


@_inlined
def folded(lanes: Any) -> Any:
    """The sum of `lanes`, which are 0 afterwards."""
    total = 0.0
    for k in range(LANES):
        total += lanes[k]
        lanes[k] = 0.0
    return total
