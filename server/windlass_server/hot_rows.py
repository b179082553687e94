"""Hot rows: which ids of a band are named most often, from a sample of pushes and pulls.

Of each `STRIDE` ids, over all calls, one is counted, whose place among them moves, by Space-Saving (Metwally, Agrawal
and El Abbadi, ICDT 2005): `HELD` counters; an id that has none takes the lowest over and goes on from its count. So an
id whose part of the sample is above 1 / HELD is among them, and its count is not below what was sampled. Ids of a call
are different, so a count says how many calls named the id. Counts are halved now and then: what was hot long ago fades.
One id of 64 cost 9 % of a push to rows that are there.

Invariant: memory is constant (5 KiB). It decides nothing: what is counted here may be lost. Whoever calls holds the
share's lock. A call of 25,000 ids costs 25 us, one of a few seldom more than a comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import types

from windlass_proto import kernel_cache
from windlass_proto.ids import Ids

STRIDE: Final = 512
HELD: Final = 256
_HALVED_AFTER: Final = 1 << 20  # counted ids: 512 times as many were named
_READY: list[Callable[..., int]] = []


def _count(asked: Any, begin: Any, window: Any, ids: Any, counts: Any) -> int:
    """Count one id of each window; number `window` begins at `begin`, maybe before `asked` does. Returns how many."""
    seen = 0
    while True:
        # 37 has no factor in common with the stride: every place has its turn.
        i = begin + seen * STRIDE + (window + seen) * 37 % STRIDE
        if i >= asked.size:
            return seen
        seen += 1
        item = asked[i]
        place = 0
        for k in range(counts.size):
            if ids[k] == item and counts[k] > 0:
                place = k
                break
            if counts[k] < counts[place]:
                place = k
        ids[place] = item
        counts[place] += 1


def build() -> None:
    """The kernel, compiled at the first call of a process."""
    if not _READY:
        asked = types.Array(types.uint64, 1, "C", readonly=True)
        held = (types.Array(types.uint64, 1, "C"), types.Array(types.int64, 1, "C"))
        signature = types.int64(asked, types.int64, types.int64, *held)
        _READY.append(kernel_cache.compiled(_count, [signature], np.dtype(np.uint64)))


class HotRows:
    """The sketch of one band."""

    def __init__(self) -> None:
        self.sampled = 0
        self._ids = np.zeros(HELD, np.uint64)
        self._counts = np.zeros(HELD, np.int64)
        self._begin = 0
        self._window = 0
        build()

    def see(self, ids: Ids) -> None:
        """A call names these ids."""
        if self._begin + self._window * 37 % STRIDE >= ids.size:
            self._begin -= ids.size
            return
        seen = _READY[0](ids, self._begin, self._window, self._ids, self._counts)
        self._begin += seen * STRIDE - ids.size
        self._window += seen
        self.sampled += seen
        if self.sampled >= _HALVED_AFTER:
            self.sampled //= 2
            self._counts //= 2

    def hottest(self, most: int) -> tuple[Ids, npt.NDArray[np.int64]]:
        """Ids and about how many calls named each, the most often named first."""
        order = np.argsort(-self._counts, kind="stable")[:most]
        order = order[self._counts[order] > 0]
        return self._ids[order], self._counts[order] * STRIDE
