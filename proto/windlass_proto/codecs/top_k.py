"""Top k: the k values that are largest in magnitude, with their places.

    wire   places u32 x k, ascending | zeros to 64 | values f32 x k

k is ratio * n, rounded up. Magnitudes are ordered as integers: a histogram of their upper eleven bits names the bucket
that holds the k-th, a second pass collects the places of that bucket and those above it, and two more histograms over
these few name the k-th exactly. Of those equal to it the first are taken, so k is exact and ties fall alike everywhere.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numba.extending import register_jitable

from windlass_proto.codec_specs import TopK
from windlass_proto.codecs.kernel import BAD_PLACE, FINE, INFINITY, MAGNITUDE, U32, aligned, largest

_BUCKETS: Final = 2048


def kept_of(ratio: float, elements: int) -> int:
    """How many of `elements` travel."""
    return min(elements, max(1, math.ceil(ratio * elements)))


def wire_bytes(spec: TopK, elements: int) -> int:
    """4 for each place, filled up to 64, and 4 for each value that travels."""
    kept = kept_of(spec.ratio, elements)
    return aligned(4 * kept) + 4 * kept


def arguments(spec: TopK, elements: int) -> tuple[int, float]:
    """How many travel."""
    return kept_of(spec.ratio, elements), 0.0


@register_jitable(error_model="numpy")
def _bucket(histogram: Any, wanted: Any) -> Any:
    """The bucket of the wanted-th largest, and how many of it are wanted."""
    left = wanted
    at = histogram.size - 1
    while at > 0 and histogram[at] < left:
        left -= histogram[at]
        at -= 1
    return at, left


@register_jitable(error_model="numpy")
def _upper_bits(patterns: Any) -> Any:
    """How many magnitudes have which upper eleven bits."""
    counts = np.zeros((4, _BUCKETS), np.uint32)  # four, so that neighbours do not wait for each other's count
    fours = patterns.size // 4
    for i in range(fours):
        for j in range(4):
            counts[j, np.intp(U32(patterns[4 * i + j] & MAGNITUDE) >> U32(20))] += U32(1)
    for i in range(4 * fours, patterns.size):
        counts[0, np.intp(U32(patterns[i] & MAGNITUDE) >> U32(20))] += U32(1)
    histogram = np.zeros(_BUCKETS, np.int64)
    for j in range(4):
        for i in range(_BUCKETS):
            histogram[i] += np.int64(counts[j, i])
    return histogram


@register_jitable(error_model="numpy")
def _candidates(patterns: Any, least: Any, count: Any) -> Any:
    """The places of the `count` magnitudes that are at least `least`, in order."""
    found = np.empty(count, np.uint32)
    at = 0
    for i in range(patterns.size):
        if U32(patterns[i] & MAGNITUDE) >= least:
            found[at] = U32(i)
            at += 1
    return found


@register_jitable(error_model="numpy")
def _narrowed(patterns: Any, places: Any, prefix: Any, shift: Any, wanted: Any) -> Any:
    """Ten bits more of the wanted-th largest of those that begin with `prefix`, and how many of them are wanted."""
    histogram = np.zeros(1024, np.int64)
    for i in range(places.size):
        bits = U32(U32(patterns[places[i]] & MAGNITUDE) >> U32(shift))
        if U32(bits >> U32(10)) == prefix:
            histogram[np.intp(U32(bits & U32(1023)))] += 1
    found, left = _bucket(histogram, wanted)
    return U32(U32(U32(prefix) << U32(10)) | U32(found)), left


def encode(values: Any, error: Any, wire: Any, count: Any, number: Any, seed: Any) -> None:
    """See `kernel`."""
    if error.size and largest(values) < INFINITY:
        for i in range(values.size):
            error[i] = np.float32(values[i] + error[i])
        _take(error, wire, count)
        places = wire[: 4 * count].view(np.uint32)
        for i in range(count):
            error[places[i]] = np.float32(0.0)
    else:
        _take(values, wire, count)


@register_jitable(error_model="numpy")
def _take(x: Any, wire: Any, count: Any) -> None:
    """Write the `count` largest of x."""
    places = wire[: 4 * count].view(np.uint32)
    taken = wire[(4 * count + 63) & ~63 :].view(np.float32)
    patterns = x.view(np.uint32)
    histogram = _upper_bits(patterns)
    top, left = _bucket(histogram, count)
    found = _candidates(patterns, U32(U32(top) << U32(20)), histogram[top:].sum())
    middle, left = _narrowed(patterns, found, U32(top), 10, left)
    least, ties = _narrowed(patterns, found, middle, 0, left)
    at = 0
    for i in range(found.size):
        magnitude = U32(patterns[found[i]] & MAGNITUDE)
        tie = magnitude == least
        if magnitude > least or (tie and ties > 0):
            ties -= 1 if tie else 0
            places[at] = found[i]
            taken[at] = x[found[i]]
            at += 1


def decode(wire: Any, values: Any, count: Any, number: Any) -> int:
    """See `kernel`."""
    places = wire[: 4 * count].view(np.uint32)
    given = wire[(4 * count + 63) & ~63 :].view(np.float32)
    for i in range(values.size):
        values[i] = np.float32(0.0)
    least = np.int64(0)
    for i in range(count):
        at = np.int64(places[i])
        if at < least or at >= values.size:
            return BAD_PLACE
        values[at] = given[i]
        least = at + 1
    return FINE
