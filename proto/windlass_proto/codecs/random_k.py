"""Random k: one value of each of k equal runs, at places that a seed says.

    wire   seed u64 | zeros to 64 | values f32 x k

k is ratio * n, rounded up. Run i is [i * n / k, (i + 1) * n / k), and its place in it 24 random bits of (seed, i) over
2**24: a value travels with a chance of k / n, near enough. Places need not travel, and are in order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from windlass_proto.codec_specs import RandomK
from windlass_proto.codecs.kernel import FINE, INFINITY, NAN_SCALE, RUN, U32, chance, largest
from windlass_proto.codecs.top_k import kept_of

_VALUES_AT = 64


def wire_bytes(spec: RandomK, elements: int) -> int:
    """64 and 4 for each value that travels."""
    return _VALUES_AT + 4 * kept_of(spec.ratio, elements)


def arguments(spec: RandomK, elements: int) -> tuple[int, float]:
    """How many travel."""
    return kept_of(spec.ratio, elements), 0.0


@register_jitable(error_model="numpy")
def _place(seed: Any, i: Any, count: Any, elements: Any) -> Any:
    begin = i * elements // count
    width = (i + 1) * elements // count - begin
    return begin + (np.int64(chance(seed, U32(i))) * width >> 24)


@register_jitable(error_model="numpy")
def _folded(seed: Any) -> Any:
    return U32(U32(seed & np.uint64(0xFFFFFFFF)) ^ U32(seed >> np.uint64(32)))


def encode(values: Any, error: Any, wire: Any, count: Any, number: Any, seed: Any) -> None:
    """See `kernel`."""
    head = wire[:_VALUES_AT].view(np.uint64)
    head[:] = np.uint64(0)
    head[0] = seed
    taken = wire[_VALUES_AT:].view(np.float32)
    folded = _folded(seed)
    finite = largest(values) < INFINITY
    if error.size and finite:
        i = 0
        at = _place(folded, i, count, values.size)
        for begin in range(0, values.size, RUN):  # places are in order: each is taken while its run is in cache
            end = min(begin + RUN, values.size)
            given, kept = values[begin:end], error[begin:end]
            for j in range(given.size):
                kept[j] = np.float32(given[j] + kept[j])
            while at < end:
                taken[i] = error[at]
                error[at] = np.float32(0.0)
                i += 1
                at = _place(folded, i, count, values.size) if i < count else values.size
    else:
        for i in range(count):
            taken[i] = values[_place(folded, i, count, values.size)]
        if not finite:  # most values stay behind: one that was not finite must be seen all the same
            taken[0] = NAN_SCALE


def decode(wire: Any, values: Any, count: Any, number: Any) -> int:
    """See `kernel`."""
    folded = _folded(wire[:_VALUES_AT].view(np.uint64)[0])
    given = wire[_VALUES_AT:].view(np.float32)
    for i in range(values.size):
        values[i] = np.float32(0.0)
    for i in range(count):
        values[_place(folded, i, count, values.size)] = given[i]
    return FINE
