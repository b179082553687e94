"""Sums of squares of tensors in float64, in an order that any cut of the work leaves as it is.

    of each 1,024 values of a segment the squares, in float64: i + 512 is added to i, then i + 256, ... , i + 32; what
    is left, 32 lanes, is added to those of the segment, and at its end lane k + 16 to lane k, k + 8, + 4, + 2, + 1

A tensor's sum is that of its segments, one block after the other; a group's, that of its segments in order. So a sum
is a function of the values and of the blocks, not of which server holds which, how many gradients are combined at a
time, or how wide the machine's vectors are.

Invariant: the products of float32 values are exact, sums are IEEE float64. Padding is not counted.

Why not float32 lanes: they overflow at values of 1e19 and are no faster once the data is beyond the cache (16 Mi
float32: both 12 to 13 GB/s; in the cache: 30 against 24, or 18 with a scale). Lanes that are added to value by value:
6.5 GB/s; all squares through memory before they are added: 13 (`python -m benchmarks --only norms`).
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import register_jitable

from windlass_proto import kernel_cache

LANES: Final = 32
CHUNK: Final = 1024
EIGHTH: Final = CHUNK // 8

Lanes = npt.NDArray[np.float64]
Vector = npt.NDArray[Any]


def clipping_divisor(bound: float, square_sum: float, divisor: float) -> float:
    """What a sum of gradients is divided by in place of `divisor`, so that its norm is at most `bound`.

    `square_sum` is that of the gradient over `divisor`. torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm; here a
    gradient that is scaled down has the bound as its norm.
    """
    length = math.sqrt(square_sum)
    return divisor * (length / bound) if length > bound else divisor


def folded(lanes: Lanes) -> tuple[float, ...]:
    """The sums that lie in `lanes`, LANES of them for each."""
    sums = lanes.reshape(-1, LANES)
    while sums.shape[1] > 1:
        half = sums.shape[1] // 2
        sums = sums[:, :half] + sums[:, half:]
    return tuple(map(float, sums[:, 0]))


@register_jitable(error_model="numpy")
def _square(x: Vector, i: int, scale: float | None) -> float:
    if scale is None:
        plain = np.float64(x[i])
        return plain * plain
    value = np.float64(scale * x[i])
    return value * value


@register_jitable(error_model="numpy")
def _two(x: Vector, i: int, scale: float | None) -> float:
    return _square(x, i, scale) + _square(x, i + 512, scale)


@register_jitable(error_model="numpy")
def _four(x: Vector, i: int, scale: float | None) -> float:
    return _two(x, i, scale) + _two(x, i + 256, scale)


@register_jitable(error_model="numpy")
def _add_chunk(x: Vector, scale: float | None, found: Lanes, lanes: Lanes) -> None:
    """Add the squares of scale * x, CHUNK of them; `found` is room for EIGHTH.

    Three levels in one loop, so that an eighth of the squares goes through memory, and loops of fixed length: one of
    any length stays scalar, and so does one that does all five.
    """
    for i in range(128):
        found[i] = _four(x, i, scale) + _four(x, i + 128, scale)
    for i in range(64):
        found[i] += found[64 + i]
    for i in range(32):
        lanes[i] += found[i] + found[32 + i]


@register_jitable(error_model="numpy")
def add_squares(x: Vector, scale: float | None, found: Lanes, lanes: Lanes) -> None:
    """Add the squares of scale * x, or of x itself: a chunk, or the rest of a segment. `found` is room for EIGHTH."""
    if x.size == CHUNK:
        _add_chunk(x, scale, found, lanes)
        return
    rest = np.zeros(CHUNK, x.dtype)
    for i in range(x.size):
        rest[i] = x[i] if scale is None else scale * x[i]
    _add_chunk(rest, None, found, lanes)


def squares(g: Vector, gscale: float, lanes: Lanes) -> None:
    """Add the squares of gscale * g to `lanes`. Calls go on where the last one ended, whole multiples of CHUNK on."""
    found = np.empty(EIGHTH, np.float64)
    for begin in range(0, g.size, CHUNK):
        add_squares(g[begin : min(begin + CHUNK, g.size)], gscale, found, lanes)


_BUILDING = threading.Lock()
_READY: dict[np.dtype[Any], Callable[..., None]] = {}


def build_squares(dtype: np.dtype[Any]) -> Callable[..., None]:
    """`squares` for gradients of `dtype`, compiled at the first call of a process. Thread-safe."""
    with _BUILDING:
        if dtype not in _READY:
            _READY[dtype] = kernel_cache.compiled(squares, [squares_signature(dtype)], dtype)
        return _READY[dtype]


def squares_signature(dtype: np.dtype[Any]) -> Any:
    readable = kernel_cache.vector_type(dtype, readonly=True)
    return types.void(readable, kernel_cache.scalar_type(dtype), kernel_cache.vector_type(np.dtype(np.float64)))
