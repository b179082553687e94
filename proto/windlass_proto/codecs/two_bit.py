"""Two bits: a threshold up, a threshold down, or nothing.

    wire   4 values a byte, the first in the lowest bits: 0 nothing, 1 threshold, 2 -threshold, 3 not a number

    code = 1 if x >= threshold, 2 if x <= -threshold, else 0

With `error` that is the update of Apache MXNet's two-bit gradient compression, after Strom (Interspeech 2015):
x = residual + gradient is sent as one threshold at most, and what is left is the new residual.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass_proto.codec_specs import TwoBit
from windlass_proto.codecs.kernel import FINE, INFINITY, MAGNITUDE, NAN_SCALE, RUN, U32


def wire_bytes(spec: TwoBit, elements: int) -> int:
    """A byte for 4 values."""
    del spec
    return (elements + 3) // 4


def arguments(spec: TwoBit, elements: int) -> tuple[int, float]:
    """The threshold."""
    del elements
    return 0, spec.threshold


def encode(values: Any, error: Any, wire: Any, count: Any, number: Any, seed: Any) -> None:
    """See `kernel`."""
    threshold = np.float32(number)
    codes = np.zeros(RUN, np.uint8)
    for begin in range(0, values.size, RUN):
        end = min(begin + RUN, values.size)
        given = values[begin:end]
        if end - begin < RUN:
            codes[:] = np.uint8(0)
        if error.size:
            kept = error[begin:end]
            for i in range(given.size):
                x = np.float32(given[i] + kept[i])
                up, down = x >= threshold, x <= -threshold
                finite = U32(np.float32(x).view(np.uint32) & MAGNITUDE) < INFINITY
                code = U32(1) if up else (U32(2) if down else U32(0))
                sent = threshold if up else (-threshold if down else np.float32(0.0))
                codes[i] = np.uint8(code if finite else U32(3))
                kept[i] = np.float32(x - sent) if finite else kept[i]
        else:
            for i in range(given.size):
                x = given[i]
                finite = U32(np.float32(x).view(np.uint32) & MAGNITUDE) < INFINITY
                code = U32(1) if x >= threshold else (U32(2) if x <= -threshold else U32(0))
                codes[i] = np.uint8(code if finite else U32(3))
        fours = codes.view(np.uint32)
        out = wire[begin // 4 : (end + 3) // 4]
        for i in range(out.size):
            four = fours[i]
            four = U32(four | U32(four >> U32(6)))
            out[i] = np.uint8(U32(U32(four & U32(0xF)) | U32(U32(four >> U32(12)) & U32(0xF0))))


def decode(wire: Any, values: Any, count: Any, number: Any) -> int:
    """See `kernel`."""
    threshold = np.float32(number)
    found = np.empty(4, np.float32)
    found[0], found[1], found[2], found[3] = np.float32(0.0), threshold, -threshold, NAN_SCALE
    whole = values.size // 4
    for i in range(whole):
        byte = U32(wire[i])
        four = values[4 * i : 4 * i + 4]
        for j in range(4):
            four[j] = found[U32(byte >> U32(2 * j)) & U32(3)]
    for i in range(4 * whole, values.size):
        values[i] = found[U32(U32(wire[i // 4]) >> U32(2 * (i % 4))) & U32(3)]
    return FINE
