"""The kernel that finds a vshard's least worthy rows, in one walk over its index and two selections.

Rows are in the order of their worths, and of their keys where these are equal. A worth is a step, or a score, whose
bits rise with it: both are >= 0. The lowest `count` are looked for by selection (Hoare's FIND, CACM 4, 1961), not by
sorting: first among worths, then, among the rows whose worth is the border's, among keys. Only these rows' ids are
read, which lie anywhere in memory.

Invariant: what is chosen depends on worths and ids alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import register_jitable

from windlass_proto import kernel_cache
from windlass_proto.ids import AHEAD, mix64, prefetch

BY_STEP: Final = 0
BY_SCORE: Final = 1
BY_FADING_SCORE: Final = 2
HALVINGS_MAX: Final = 180
"""A float32 score, 2**24 at most, is 0 after so many."""

HALVES: Final[npt.NDArray[np.float64]] = np.ldexp(1.0, -np.arange(HALVINGS_MAX + 1))
_READY: list[Callable[..., None]] = []


@register_jitable(error_model="numpy")
def _nth(values: Any, n: int) -> Any:
    """The n-th lowest of `values`, which are reordered. NumPy's own takes Numba ten seconds to compile."""
    low, high = 0, values.size - 1
    while low < high:
        pivot = values[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while pivot < values[j]:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if n <= j:
            high = j
        elif n >= i:
            low = i
        else:
            break
    return values[n]


def _lowest(
    index: Any, begin: Any, ids: Any, seed: Any, kind: Any, touched: Any, score: Any, now: Any,
    half_life: Any, halves: Any, count: Any, numbers: Any, worths: Any, bits: Any, chosen: Any,
) -> None:  # fmt: skip
    """Put the `count` row numbers of least worth into `chosen`.

    `numbers` and `worths` have room for as many rows as the vshard has, and no more; `bits` is a float32, and the same
    memory as a u32.
    """
    as_float, as_bits = bits
    held = 0
    at = begin
    while held < numbers.size:  # the run holds so many
        known = index[at]
        if known != 0:
            numbers[held] = known - 1
            if kind != BY_SCORE:
                prefetch(touched, np.int64(known - 1))
            if kind != BY_STEP:
                prefetch(score, np.int64(known - 1))
            held += 1
        at += 1
    for i in range(held):
        number = np.int64(numbers[i])
        if kind == BY_STEP:
            worths[i] = touched[number]
        else:
            value = score[number]
            if kind == BY_FADING_SCORE:
                age = max(now - np.int64(touched[number]), 0)
                line = 1.0 - (age % half_life) / (2.0 * half_life)
                value = np.float32(np.float64(value) * line * halves[min(age // half_life, halves.size - 1)])
            as_float[0] = value
            worths[i] = as_bits[0]
    border = _nth(worths.copy(), count - 1)
    found = equal = 0
    for i in range(held):
        if worths[i] < border:
            chosen[found] = numbers[i]
            found += 1
        elif worths[i] == border:
            numbers[equal] = numbers[i]  # those before are done with
            equal += 1
    keys = np.empty(equal, np.uint64)
    for i in range(equal):
        if i + AHEAD < equal:
            prefetch(ids, np.int64(numbers[i + AHEAD]))
        keys[i] = mix64(ids[numbers[i]] ^ seed)
    last = _nth(keys.copy(), count - found - 1)
    for i in range(equal):
        if keys[i] <= last:
            chosen[found] = numbers[i]
            found += 1


def lowest() -> Callable[..., None]:
    """The kernel, compiled at the first call of a process."""
    if not _READY:
        u32, u64, i64 = types.uint32, types.uint64, types.int64
        numbers, ids = types.Array(u32, 1, "C"), types.Array(u64, 1, "C")
        scores = types.Array(types.float32, 1, "C")
        halves = types.Array(types.float64, 1, "C", readonly=True)
        numba_types: Any = types
        bits = numba_types.Tuple((scores, numbers))
        signature = types.void(
            numbers, i64, ids, u64, i64, numbers, scores, i64, i64, halves, i64, numbers, numbers, bits, numbers
        )
        _READY.append(kernel_cache.compiled(_lowest, [signature], np.dtype(np.uint64)))
    return _READY[0]
