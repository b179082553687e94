"""Admission counts: how often ids without rows were pushed, for a bounded number of ids.

    vshard    | bucket 0: 8 counters | bucket 1: 8 counters | ...       an id counts in the bucket its key names
    counter   24 bits and more of the key (a tag), and a count; 0: free

An id that finds its bucket full of others takes one from each of their counts, and is not counted itself: so a count is
never too high, and too low by at most a ninth of the pushes that its bucket has seen (Misra & Gries, Science of
Computer Programming 2, 1982, section 4). Two ids of a bucket with one tag (1 pair in 4 billion) count as one.

Invariant: each vshard's counters depend on the pushes to its ids, in their order, alone; so they go where it goes.
Memory is `limits.ADMISSION_COUNTERS` of 6 bytes a vshard. Whoever calls holds the share's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import types

from windlass_proto import ids as id_kernels
from windlass_proto import kernel_cache, limits
from windlass_proto.ids import mix64, vshard_of

WAYS: Final = 8
_BUCKETS: Final = np.uint64(limits.ADMISSION_COUNTERS // WAYS)
_READY: list[Callable[..., None]] = []


def _count(asked: Any, n: Any, tags: Any, counts: Any, admitted: Any, seed: Any, shift: Any, first: Any) -> None:
    """Count a push of each id; admitted[i]: it is the n-th, and its counter is free again."""
    for i in range(asked.size):
        key = mix64(asked[i] ^ seed)
        v = np.uint64(vshard_of(key, shift) - first)
        # The low bits are the id's place in the vshard's index, the high ones the vshard; any of these would do.
        begin = np.int64((v * _BUCKETS + (key >> np.uint64(8)) % _BUCKETS) * np.uint64(WAYS))
        tag = np.uint32((key >> np.uint64(20)) & np.uint64(0xFFFFFFFF))
        place: Any = np.int64(-1)
        for at in range(begin, begin + WAYS):
            if counts[at] == 0:
                if place < 0:
                    place = at
            elif tags[at] == tag:
                place = at
                break
        if place < 0:
            for at in range(begin, begin + WAYS):
                counts[at] -= 1
            admitted[i] = n <= 1
            continue
        tags[place] = tag
        counts[place] += 1
        admitted[i] = counts[place] >= n
        if admitted[i]:
            counts[place] = 0


def build() -> None:
    """The kernel, compiled at the first call of a process."""
    if not _READY:
        ids = types.Array(types.uint64, 1, "C", readonly=True)
        counters = (types.Array(types.uint32, 1, "C"), types.Array(types.uint16, 1, "C"))
        flags = types.Array(types.boolean, 1, "C")
        signature = types.void(ids, types.int64, *counters, flags, types.uint64, types.uint64, types.int64)
        _READY.append(kernel_cache.compiled(_count, [signature], np.dtype(np.uint64)))


class AdmissionCounts:
    """The counters of a band.

    Args:
        held: its vshards, of `vshards` in all.
        n: the push that admits.
    """

    def __init__(self, held: range, vshards: int, seed: int, n: int) -> None:
        self.tags = np.zeros((len(held), limits.ADMISSION_COUNTERS), np.uint32)
        self.counts = np.zeros((len(held), limits.ADMISSION_COUNTERS), np.uint16)
        self._n = n
        self._where = (np.uint64(seed), id_kernels.shift_of(vshards), held.start)
        build()

    def admits(self, ids: id_kernels.Ids) -> npt.NDArray[np.bool_]:
        """Count a push of each of `ids`, which are different; which of them get rows by it?"""
        admitted = np.zeros(ids.size, np.bool_)
        _READY[0](ids, self._n, self.tags.reshape(-1), self.counts.reshape(-1), admitted, *self._where)
        return admitted
