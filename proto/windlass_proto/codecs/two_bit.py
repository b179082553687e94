"""Two bits: a threshold up, a threshold down, or nothing.

    wire   4 values a byte, the first in the lowest bits: 0 nothing, 1 threshold, 2 -threshold, 3 not a number

    code = 1 if x >= threshold, 2 if x <= -threshold, else 0

With `error` that is the update of Apache MXNet's two-bit gradient compression, after Strom (Interspeech 2015):
x = residual + gradient is sent as one threshold at most, and what is left is the new residual.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from windlass_proto.codec_specs import TwoBit
from windlass_proto.codecs.kernel import FINE, INFINITY, MAGNITUDE, NAN_SCALE, RUN, U32, gather


def wire_bytes(spec: TwoBit, elements: int) -> int:
    """A byte for 4 values."""
    del spec
    return (elements + 3) // 4


def arguments(spec: TwoBit, elements: int) -> tuple[int, float]:
    """The threshold."""
    del elements
    return 0, spec.threshold


@register_jitable(error_model="numpy")
def _code(x: Any, threshold: Any) -> Any:
    return U32(1) if x >= threshold else (U32(2) if x <= -threshold else U32(0))


@register_jitable(error_model="numpy")
def _sent(x: Any, threshold: Any) -> Any:
    return threshold if x >= threshold else (-threshold if x <= -threshold else np.float32(0.0))


@register_jitable(error_model="numpy")
def _encode_run(x: Any, kept: Any, codes: Any, threshold: Any, finite: Any) -> None:
    """`codes` of a run, and what it leaves; `kept` is empty where nothing is kept.

    Runs that hold what is not finite have loops of their own: a value that may stay as it is would become a masked
    store, which costs more than all the rest (3.5 GB/s against 12).
    """
    if finite:
        for i in range(x.size):
            codes[i] = np.uint8(_code(x[i], threshold))
        for i in range(kept.size):
            kept[i] = np.float32(x[i] - _sent(x[i], threshold))
        return
    patterns = x.view(np.uint32)
    for i in range(x.size):
        number = U32(patterns[i] & MAGNITUDE) < INFINITY
        codes[i] = np.uint8(_code(x[i], threshold) if number else U32(3))
        if number and kept.size:
            kept[i] = np.float32(x[i] - _sent(x[i], threshold))


def encode(values: Any, error: Any, wire: Any, count: Any, number: Any, seed: Any) -> None:
    """See `kernel`."""
    threshold = np.float32(number)
    codes = np.zeros(RUN, np.uint8)
    held = np.empty(RUN, np.float32)
    for begin in range(0, values.size, RUN):
        end = min(begin + RUN, values.size)
        x, kept = held[: end - begin], error[begin:end]
        finite = gather(values[begin:end], kept, x) < INFINITY
        if end - begin < RUN:
            codes[:] = np.uint8(0)
        _encode_run(x, kept, codes, threshold, finite)
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
