"""One bit: the sign of each value, times the mean magnitude of its block.

    wire   scales f32 x blocks | zeros to 64 | bits, 8 values a byte, the first in the lowest bit
           x = -scale where the bit is set, else scale

Invariant: magnitudes are added in 64 lanes of float32, row after row, and the lanes in order in float64: one result on
any CPU.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba.extending import register_jitable

from windlass_proto.codec_specs import OneBit
from windlass_proto.codecs.kernel import (
    FINE,
    INFINITY,
    NAN_SCALE,
    SIGN,
    U32,
    blocks_of,
    codes_at,
    gather,
    scale_fault,
)

_LANES: Final = 64


def wire_bytes(spec: OneBit, elements: int) -> int:
    """4 a block, filled up to 64, and a byte for 8 values."""
    return codes_at(blocks_of(elements, spec.block)) + (elements + 7) // 8


def arguments(spec: OneBit, elements: int) -> tuple[int, float]:
    """The block."""
    del elements
    return spec.block, 0.0


@register_jitable(error_model="numpy")
def _mean_magnitude(x: Any, lanes: Any) -> Any:
    """Of x, whose size is the block's or, in the last one, anything."""
    lanes[:] = np.float32(0.0)
    rows = x.size // _LANES
    for r in range(rows):
        row = x[r * _LANES : (r + 1) * _LANES]
        for i in range(lanes.size):
            lanes[i] = np.float32(lanes[i] + abs(row[i]))
    total = np.float64(0.0)
    for i in range(lanes.size):
        total += np.float64(lanes[i])
    for i in range(rows * _LANES, x.size):
        total += np.float64(abs(x[i]))
    return np.float32(total / np.float64(x.size))


def encode(values: Any, error: Any, wire: Any, count: Any, number: Any, seed: Any) -> None:
    """See `kernel`."""
    blocks = (values.size + count - 1) // count
    scales = wire[: 4 * blocks].view(np.float32)
    codes = wire[codes_at(blocks) :]
    held = np.empty(count, np.float32)
    lanes = np.empty(_LANES, np.float32)
    flags = np.zeros(count, np.uint8)
    for b in range(blocks):
        begin = b * count
        end = min(begin + count, values.size)
        x = held[: end - begin]
        finite = gather(values[begin:end], error[begin:end], x) < INFINITY
        scale = _mean_magnitude(x, lanes) if finite else NAN_SCALE
        finite = finite and np.float32(scale).view(np.uint32) < INFINITY
        scale = scale if finite else NAN_SCALE
        scales[b] = scale
        scale_bits = np.float32(scale).view(np.uint32)
        patterns = x.view(np.uint32)
        flags[:] = np.uint8(0)
        for i in range(x.size):
            flags[i] = np.uint8(U32(patterns[i] >> U32(31)))
        eights = flags.view(np.uint64)
        out = codes[begin // 8 : (end + 7) // 8]
        for i in range(out.size):  # bit 8 j becomes bit j; a product would do, but none is packed before AVX-512
            eight = np.uint64(eights[i] | np.uint64(eights[i] >> np.uint64(7)))
            eight = np.uint64(eight | np.uint64(eight >> np.uint64(14)))
            out[i] = np.uint8(np.uint64(eight | np.uint64(eight >> np.uint64(28))))
        if finite and error.size:
            kept = error[begin:end]
            for i in range(x.size):
                sent = np.uint32(U32(patterns[i] & SIGN) | scale_bits).view(np.float32)
                kept[i] = np.float32(x[i] - sent)


def decode(wire: Any, values: Any, count: Any, number: Any) -> int:
    """See `kernel`."""
    blocks = (values.size + count - 1) // count
    scales = wire[: 4 * blocks].view(np.float32)
    codes = wire[codes_at(blocks) :]
    fault = scale_fault(scales)
    if fault != FINE:
        return fault
    for b in range(blocks):
        begin = b * count
        end = min(begin + count, values.size)
        patterns = values[begin:end].view(np.uint32)
        given = codes[begin // 8 : (end + 7) // 8]
        scale_bits = U32(scales[b : b + 1].view(np.uint32)[0])
        whole = patterns.size // 8
        for i in range(whole):
            byte = U32(given[i])
            eight = patterns[8 * i : 8 * i + 8]
            for j in range(8):
                eight[j] = U32(scale_bits | U32(U32(byte << U32(31 - j)) & SIGN))
        for i in range(8 * whole, patterns.size):
            byte = U32(given[i // 8])
            patterns[i] = U32(scale_bits | U32(U32(byte << U32(31 - i % 8)) & SIGN))
    return FINE
