"""What the codecs' modules have in common: their kernels' signatures, and pieces of loops.

    encode(values, error, wire, count, number, seed)
    decode(wire, values, count, number) -> FINE, or what is wrong

`values` and `error` are float32, `wire` is uint8 of exactly `wire_bytes`; all start on 64 bytes. `error` is empty, or
as long as `values`: then x = values + error is encoded, and error = x - decoded(x). `count` and `number` are the
spec's, by the module's `arguments`. In `wire` each part starts on 64 bytes.

A block that holds an infinity or a NaN gets the scale NaN and keeps its error: all of it decodes to NaN, so whoever
decides about gradients that are not finite sees it, and nothing of it stays behind. Codecs without blocks do the like.

Invariant: kernels are IEEE `+ - * /`, comparisons and integer arithmetic, nothing fused or reordered: equal arguments
give equal bytes on any CPU. `decode` reads inside `wire` and writes inside `values` whatever the bytes are.

Integers are cast after each operation: Numba widens to 64 bits, which would halve what a vector instruction does
(float16: 3.4 GB/s against 11.7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import register_jitable

from windlass_proto import kernel_cache

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

FLOAT32: Final = np.dtype(np.float32)
FINE: Final = 0
BAD_SCALE: Final = 1
BAD_PLACE: Final = 2
FAULTS: Final = {BAD_SCALE: "a scale is negative or infinite", BAD_PLACE: "places are not in order, or beyond the end"}

RUN: Final = 1024
"""Values that a kernel without blocks looks at together: several arrays of them stay in the first cache."""

U32: Final = np.uint32
MAGNITUDE: Final = U32(0x7FFFFFFF)
SIGN: Final = U32(0x80000000)
INFINITY: Final = U32(0x7F800000)
NAN_SCALE: Final = np.float32("nan")
# Below it 1 / x would overflow, and such gradients move no weight: they are kept back.
TINY: Final = np.float32(2.0**-100)


@dataclass(frozen=True, slots=True)
class CodecKernels:
    """A codec's compiled kernels; they release the interpreter's lock."""

    encode: Callable[..., None]
    decode: Callable[..., int]


def compiled(encode: Callable[..., Any], decode: Callable[..., Any]) -> CodecKernels:
    """The module's kernels as machine code, from the cache where it is there."""
    floats = kernel_cache.vector_type(FLOAT32)
    given = kernel_cache.vector_type(FLOAT32, readonly=True)
    wire = types.Array(types.uint8, 1, "C")
    received = types.Array(types.uint8, 1, "C", readonly=True)
    numbers = (types.int64, types.float64)
    return CodecKernels(
        kernel_cache.compiled(encode, [types.void(given, floats, wire, *numbers, types.uint64)], FLOAT32),
        kernel_cache.compiled(decode, [types.int64(received, floats, *numbers)], FLOAT32),
    )


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to a multiple of 64."""
    return (nbytes + 63) & ~63


def blocks_of(elements: int, block: int) -> int:
    """How many blocks `elements` fill."""
    return -(-elements // block)


@register_jitable(error_model="numpy")
def codes_at(blocks: int) -> int:
    """Where the codes begin behind one scale a block."""
    return (4 * blocks + 63) & ~63


@register_jitable(error_model="numpy")
def gather(values: Any, error: Any, x: Any) -> Any:
    """x = values + error, or values where nothing is kept; the bits of max |x|, as `largest` says them."""
    top = np.int32(0)
    if error.size:
        for i in range(x.size):
            total = np.float32(values[i] + error[i])
            x[i] = total
            top = max(top, np.int32(np.float32(total).view(np.int32) & np.int32(0x7FFFFFFF)))
    else:
        for i in range(x.size):
            x[i] = values[i]
            top = max(top, np.int32(np.float32(values[i]).view(np.int32) & np.int32(0x7FFFFFFF)))
    return np.uint32(top)


@register_jitable(error_model="numpy")
def largest(x: Any) -> Any:
    """The bits of max |x|, those of an infinity or more if x is not finite."""
    patterns = x.view(np.int32)
    top = np.int32(0)
    for i in range(patterns.size):
        top = max(top, np.int32(patterns[i] & np.int32(0x7FFFFFFF)))
    return np.uint32(top)


@register_jitable(error_model="numpy")
def scale_fault(scales: Any) -> int:
    """BAD_SCALE if one is negative or infinite, else FINE; NaN stands for a block that was not finite."""
    patterns = scales.view(np.uint32)
    for i in range(patterns.size):
        if patterns[i] == INFINITY or patterns[i] & SIGN:
            return BAD_SCALE
    return FINE


@register_jitable(error_model="numpy")
def chance(seed: Any, at: Any) -> Any:
    """24 random bits of place `at`: MurmurHash3's finaliser (Appleby) of a Weyl sequence."""
    h = np.uint32(np.uint32(at * np.uint32(0x9E3779B9)) + seed)
    h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    return np.uint32(np.uint32(h ^ np.uint32(h >> np.uint32(16))) >> np.uint32(8))
