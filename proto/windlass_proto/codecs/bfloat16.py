"""bfloat16: the upper half of a float32 on the wire, rounded to nearest even.

    wire   n x u16

A value so large that it would be rounded to an infinity is cut to the largest bfloat16, as float16 does it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba.extending import register_jitable

from windlass_proto.codec_specs import BFloat16
from windlass_proto.codecs.halves import brief_of
from windlass_proto.codecs.kernel import FINE, INFINITY, MAGNITUDE, RUN, SIGN, U32, gather

_LARGEST: Final = U32(0x7F7F0000)


def wire_bytes(spec: BFloat16, elements: int) -> int:
    """2 a value."""
    del spec
    return 2 * elements


def arguments(spec: BFloat16, elements: int) -> tuple[int, float]:
    """The kernels need none."""
    del spec, elements
    return 0, 0.0


@register_jitable(error_model="numpy")
def within(bits: Any) -> Any:
    """The bits of a float32, cut to what the half type holds."""
    magnitude = U32(bits & MAGNITUDE)
    cut = U32(_LARGEST | U32(bits & SIGN))
    return cut if magnitude > _LARGEST and magnitude < INFINITY else bits


@register_jitable(error_model="numpy")
def _encode_run(x: Any, kept: Any, out: Any) -> None:
    """Of finite values: the wire's bits are the upper half of what is sent."""
    patterns = x.view(np.uint32)
    for i in range(x.size):
        magnitude = min(U32(patterns[i] & MAGNITUDE), _LARGEST)
        odd = U32(U32(magnitude >> U32(16)) & U32(1))
        rounded = U32(U32(U32(magnitude + U32(0x7FFF)) + odd) & U32(0xFFFF0000))
        sent = U32(rounded | U32(patterns[i] & SIGN))
        out[i] = np.uint16(U32(sent >> U32(16)))
        kept[i] = np.float32(x[i] - np.uint32(sent).view(np.float32))


@register_jitable(error_model="numpy")
def _encode_odd_run(x: Any, kept: Any, out: Any) -> None:
    """Of values some of which are not finite: those are kept as they were."""
    patterns = x.view(np.uint32)
    for i in range(x.size):
        out[i] = np.uint16(brief_of(within(patterns[i])))
        if U32(patterns[i] & MAGNITUDE) < INFINITY:
            kept[i] = np.float32(x[i] - np.uint32(U32(U32(out[i]) << U32(16))).view(np.float32))


def encode(values: Any, error: Any, wire: Any, count: Any, number: Any, seed: Any) -> None:
    """See `kernel`."""
    codes = wire.view(np.uint16)
    if error.size:
        held = np.empty(RUN, np.float32)
        for begin in range(0, values.size, RUN):
            end = min(begin + RUN, values.size)
            x, kept, out = held[: end - begin], error[begin:end], codes[begin:end]
            if gather(values[begin:end], kept, x) < INFINITY:
                _encode_run(x, kept, out)
            else:
                _encode_odd_run(x, kept, out)
    else:
        given = values.view(np.uint32)
        for i in range(codes.size):
            codes[i] = np.uint16(brief_of(within(given[i])))


def decode(wire: Any, values: Any, count: Any, number: Any) -> int:
    """See `kernel`."""
    codes = wire.view(np.uint16)
    patterns = values.view(np.uint32)
    for i in range(patterns.size):
        patterns[i] = U32(U32(codes[i]) << U32(16))
    return FINE
