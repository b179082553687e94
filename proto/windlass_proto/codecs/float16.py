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
from windlass_proto.codecs.halves import bits_of_half, half_of
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


def encode(values: Any, error: Any, wire: Any, count: Any, number: Any, seed: Any) -> None:
    """See `kernel`."""
    codes = wire.view(np.uint16)
    if error.size:
        held = np.empty(RUN, np.float32)
        for begin in range(0, values.size, RUN):
            end = min(begin + RUN, values.size)
            x, kept, out = held[: end - begin], error[begin:end], codes[begin:end]
            gather(values[begin:end], kept, x)
            patterns = x.view(np.uint32)
            for i in range(x.size):
                bits = within(patterns[i])
                out[i] = np.uint16(half_of(np.uint32(bits).view(np.float32), bits))
            for i in range(x.size):
                left = np.float32(x[i] - np.uint32(bits_of_half(U32(out[i]))).view(np.float32))
                kept[i] = left if U32(patterns[i] & MAGNITUDE) < INFINITY else kept[i]
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
