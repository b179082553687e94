"""float16: IEEE half precision on the wire.

    wire   n x u16

Encoding cuts what exceeds 65,504 to it: an infinity would say that the gradient was not finite, and the rest is kept
for the next one. Infinities and NaN themselves travel as such.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numba.extending import register_jitable

from windlass_proto.codec_specs import Float16
from windlass_proto.codecs.halves import BIAS, HALF, HALF_BITS, NORMAL_FROM, bits_of_half, half_of
from windlass_proto.codecs.kernel import FINE, INFINITY, MAGNITUDE, RUN, SIGN, U32, gather

_LARGEST: Final = U32(0x477FE000)  # 65,504


def wire_bytes(spec: Float16, elements: int) -> int:
    """2 a value."""
    del spec
    return 2 * elements


def arguments(spec: Float16, elements: int) -> tuple[int, float]:
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
    """Of finite values: what is sent is rounded as a float32, so that nothing is made of a half again."""
    patterns = x.view(np.uint32)
    for i in range(x.size):
        magnitude = min(U32(patterns[i] & MAGNITUDE), _LARGEST)
        sign = U32(patterns[i] & SIGN)
        odd = U32(U32(magnitude >> U32(13)) & U32(1))
        normal = U32(U32(U32(magnitude + U32(0xFFF)) + odd) & U32(0xFFFFE000))
        lifted = np.float32(np.uint32(magnitude).view(np.float32) + HALF)
        subnormal = np.float32(lifted - HALF).view(np.uint32)
        is_normal = magnitude >= NORMAL_FROM
        sent = U32(sign | (normal if is_normal else subnormal))
        code = U32(U32(normal - BIAS) >> U32(13)) if is_normal else U32(lifted.view(np.uint32) - HALF_BITS)
        out[i] = np.uint16(U32(code | U32(sign >> U32(16))))
        kept[i] = np.float32(x[i] - np.uint32(sent).view(np.float32))


@register_jitable(error_model="numpy")
def _encode_odd_run(x: Any, kept: Any, out: Any) -> None:
    """Of values some of which are not finite: those are kept as they were."""
    patterns = x.view(np.uint32)
    for i in range(x.size):
        bits = within(patterns[i])
        out[i] = np.uint16(half_of(np.uint32(bits).view(np.float32), bits))
        if U32(patterns[i] & MAGNITUDE) < INFINITY:
            kept[i] = np.float32(x[i] - np.uint32(bits_of_half(U32(out[i]))).view(np.float32))


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
            bits = within(given[i])
            codes[i] = np.uint16(half_of(np.uint32(bits).view(np.float32), bits))


def decode(wire: Any, values: Any, count: Any, number: Any) -> int:
    """See `kernel`."""
    codes = wire.view(np.uint16)
    patterns = values.view(np.uint32)
    for i in range(patterns.size):
        patterns[i] = bits_of_half(U32(codes[i]))
    return FINE
