"""Dithering: magnitudes rounded to one of a few levels by chance, so that the mean is the value.

    wire   scales f32 x blocks | zeros to 64 | codes, 8 bits each or 4 with the first in the lower ones
    code   the highest bit is the sign, the others the level l of s

    linear    x = scale * l / s                  natural    x = scale * 2 ** (l - s), 0 for l = 0

scale is the block's max|x|. Linear: l = floor(|x| / scale * s + u) with u uniform in [0, 1). Natural: u added to the
bits of the mantissa carries into the exponent with the chance that rounds without bias. u is 24 bits of (seed, place).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba.extending import register_jitable

from windlass_proto.codec_specs import Dithering
from windlass_proto.codecs.kernel import (
    FINE,
    INFINITY,
    NAN_SCALE,
    TINY,
    U32,
    blocks_of,
    chance,
    codes_at,
    gather,
    scale_fault,
)

_UNIT: Final = np.float32(2.0**-24)
_NONE: Final = np.float32(0.0)
_ONE: Final = np.float32(1.0)


def wire_bytes(spec: Dithering, elements: int) -> int:
    """4 a block, filled up to 64, and `bits` a value."""
    return codes_at(blocks_of(elements, spec.block)) + (elements * spec.bits + 7) // 8


def arguments(spec: Dithering, elements: int) -> tuple[int, float]:
    """The block, and s, below 0 where levels are powers of two."""
    del elements
    return spec.block, float(-spec.levels if spec.natural else spec.levels)


@register_jitable(error_model="numpy")
def _linear(ratio: Any, levels: Any, drawn: Any) -> Any:
    scaled = np.float32(np.float32(ratio * levels) + np.float32(np.float32(np.int32(drawn)) * _UNIT))
    return U32(np.int32(min(scaled, levels)))


@register_jitable(error_model="numpy")
def _natural(ratio: Any, scarce: Any, count: Any, drawn: Any) -> Any:
    """`scarce`: 2 ** (s - 1), one over the least level, below which a value is rounded to it or to 0; `count`: s."""
    bits = np.float32(ratio).view(np.uint32)
    power = np.int32(U32(U32(bits + U32(drawn >> U32(1))) >> U32(23)))
    level = U32(min(max(power - np.int32(127) + count, np.int32(1)), count))
    share = np.float32(np.float32(np.int32(drawn)) * _UNIT)
    of_least = np.float32(ratio * scarce)
    small = U32(1) if share < of_least else U32(0)
    return small if of_least < _ONE else level


def encode(values: Any, error: Any, wire: Any, count: Any, number: Any, seed: Any) -> None:
    """See `kernel`."""
    blocks = (values.size + count - 1) // count
    scales = wire[: 4 * blocks].view(np.float32)
    out = wire[codes_at(blocks) :]
    natural = number < 0
    levels = np.float32(abs(number))
    whole = np.int32(abs(number))
    scarce = np.float32(np.float64(2.0) ** np.float64(whole - 1)) if natural else _NONE
    folded = U32(U32(seed & np.uint64(0xFFFFFFFF)) ^ U32(seed >> np.uint64(32)))
    held = np.empty(count, np.float32)
    codes = np.empty(count + 1, np.uint8)
    sign_at = U32(7) if whole == 127 else U32(3)
    for b in range(blocks):
        begin = b * count
        end = min(begin + count, values.size)
        x = held[: end - begin]
        top = gather(values[begin:end], error[begin:end], x)
        scale = np.uint32(top).view(np.float32)
        if top >= INFINITY or scale < TINY:
            scale = NAN_SCALE if top >= INFINITY else _NONE
        scales[b] = scale
        inverse = np.float32(_ONE / scale) if scale > _NONE else _NONE
        patterns = x.view(np.uint32)
        if top >= INFINITY:
            codes[:] = np.uint8(0)
        elif natural:
            for i in range(x.size):
                level = _natural(np.float32(abs(x[i]) * inverse), scarce, whole, chance(folded, U32(begin + i)))
                codes[i] = np.uint8(U32(level | U32(U32(patterns[i] >> U32(31)) << sign_at)))
        else:
            for i in range(x.size):
                level = _linear(np.float32(abs(x[i]) * inverse), levels, chance(folded, U32(begin + i)))
                codes[i] = np.uint8(U32(level | U32(U32(patterns[i] >> U32(31)) << sign_at)))
        codes[x.size] = np.uint8(0)
        if whole == 127:
            row = out[begin:end]
            for i in range(row.size):
                row[i] = codes[i]
        else:
            row = out[begin // 2 : (end + 1) // 2]
            for i in range(row.size):
                row[i] = np.uint8(U32(U32(codes[2 * i]) | U32(U32(codes[2 * i + 1]) << U32(4))))


def decode(wire: Any, values: Any, count: Any, number: Any) -> int:
    """See `kernel`."""
    blocks = (values.size + count - 1) // count
    scales = wire[: 4 * blocks].view(np.float32)
    codes = wire[codes_at(blocks) :]
    fault = scale_fault(scales)
    if fault != FINE:
        return fault
    whole = np.int32(abs(number))
    found = np.zeros(2 * (whole + 1), np.float32)
    for level in range(1, whole + 1):
        part = np.float64(2.0) ** np.float64(level - whole) if number < 0 else np.float64(level) / np.float64(whole)
        found[level] = np.float32(part)
        found[level + whole + 1] = np.float32(-part)
    eight = whole == 127
    for b in range(blocks):
        begin = b * count
        end = min(begin + count, values.size)
        x, scale = values[begin:end], scales[b]
        if eight:
            given = codes[begin:end]
            for i in range(x.size):
                x[i] = np.float32(found[given[i]] * scale)
        else:
            given = codes[begin // 2 : (end + 1) // 2]
            for i in range(x.size):
                x[i] = np.float32(found[U32(U32(given[i // 2]) >> U32(4 * (i % 2))) & U32(15)] * scale)
    return FINE
