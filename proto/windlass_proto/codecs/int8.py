"""int8: values of a block as multiples of a 127th of their largest magnitude.

    wire   scales f32 x blocks | zeros to 64 | codes i8 x n         x = code * scale

    scale = max|x| / 127          code = x * (1 / scale), rounded to nearest even

The product rounds to an integer when 1.5 * 2**23 is added and taken away again: two additions instead of a call.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from windlass_proto.codec_specs import Int8
from windlass_proto.codecs.kernel import (
    FINE,
    INFINITY,
    NAN_SCALE,
    TINY,
    blocks_of,
    codes_at,
    gather,
    scale_fault,
)

_ROUNDING: Final = np.float32(12_582_912.0)
_CODES: Final = np.float32(127.0)
_NONE: Final = np.float32(0.0)
_ONE: Final = np.float32(1.0)


def wire_bytes(spec: Int8, elements: int) -> int:
    """4 a block, filled up to 64, and 1 a value."""
    return codes_at(blocks_of(elements, spec.block)) + elements


def arguments(spec: Int8, elements: int) -> tuple[int, float]:
    """The block."""
    del elements
    return spec.block, 0.0


def encode(values: Any, error: Any, wire: Any, count: Any, number: Any, seed: Any) -> None:
    """See `kernel`."""
    blocks = (values.size + count - 1) // count
    scales = wire[: 4 * blocks].view(np.float32)
    codes = wire[codes_at(blocks) :].view(np.int8)
    held = np.empty(count, np.float32)
    for b in range(blocks):
        begin = b * count
        end = min(begin + count, values.size)
        x = held[: end - begin]
        top = gather(values[begin:end], error[begin:end], x)
        scale = np.float32(np.uint32(top).view(np.float32) / _CODES)
        if top >= INFINITY or scale < TINY:
            scale = NAN_SCALE if top >= INFINITY else _NONE
        scales[b] = scale
        inverse = np.float32(_ONE / scale) if scale > _NONE else _NONE
        out = codes[begin:end]
        if top >= INFINITY:
            out[:] = 0
        elif error.size:
            kept = error[begin:end]
            for i in range(x.size):
                code = np.float32(np.float32(np.float32(x[i] * inverse) + _ROUNDING) - _ROUNDING)
                out[i] = np.int8(np.int32(code))
                kept[i] = np.float32(x[i] - np.float32(code * scale))
        else:
            for i in range(x.size):
                code = np.float32(np.float32(np.float32(x[i] * inverse) + _ROUNDING) - _ROUNDING)
                out[i] = np.int8(np.int32(code))


def decode(wire: Any, values: Any, count: Any, number: Any) -> int:
    """See `kernel`."""
    blocks = (values.size + count - 1) // count
    scales = wire[: 4 * blocks].view(np.float32)
    codes = wire[codes_at(blocks) :].view(np.int8)
    fault = scale_fault(scales)
    if fault != FINE:
        return fault
    for b in range(blocks):
        begin = b * count
        end = min(begin + count, values.size)
        x, given, scale = values[begin:end], codes[begin:end], scales[b]
        for i in range(x.size):
            x[i] = np.float32(np.float32(np.int32(given[i])) * scale)
    return FINE
