"""What a policy makes of gradients that are not finite, where they arrive: counted by value, and logged.

Invariant: what a policy other than "allow" lets through is finite, or its entry is rejected. Any thread may call it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, Final

import numpy as np

from windlass_proto import finite
from windlass_proto.memory import BufferPool
from windlass_proto.transfer_specs import Nonfinite
from windlass_server.dense_memory import Values, Vector

_LOG = logging.getLogger("windlass.server")
_WARNED_MAX: Final = 4096
_NAMES_MAX: Final = 5

Naming = Callable[[Vector], list[str]]
"""Which tensors or rows, in words, hold values that are not finite."""


class GradientCleaning:
    """The policy of one group or table.

    Args:
        policy: as declared.
        dtype: of gradients as they are applied.
        pool: where cleaned copies wait until they are applied.
    """

    def __init__(self, policy: Nonfinite, dtype: np.dtype[Any], pool: BufferPool) -> None:
        self.policy = policy
        self.cleans = policy in (Nonfinite.ZERO, Nonfinite.CLIP)
        self._pool = pool
        self._finite = finite.build(dtype) if self.cleans else None
        self._warned: Counter[Hashable] = Counter()
        self._warning = threading.Lock()

    @property
    def looks(self) -> bool:
        """Is a gradient that is not finite rejected?"""
        return self.policy is not Nonfinite.ALLOW

    def cleaned(self, values: Values, rank: int, place: Hashable, names: Naming) -> Values:
        """`values`, or what the policy makes of them where they are not finite.

        Args:
            rank: of the worker who pushed.
            place: what is warned of by itself: a block, a band.
        """
        if self._finite is None or self._finite.all_finite(values.array):
            return values
        replaced = values.array.size - int(np.count_nonzero(np.isfinite(values.array)))
        self._warn(values.array, rank, place, names)
        buffer = self._pool.take(values.array.nbytes, beyond=True)
        cleaned = buffer.array.view(values.array.dtype)
        self._finite.cleaned(values.array, cleaned, self.policy)
        if values.buffer is not None:
            values.buffer.release()
        return values._replace(array=cleaned, buffer=buffer, replaced=replaced)

    def _warn(self, values: Vector, rank: int, place: Hashable, names: Naming) -> None:
        """At the first, second, fourth... such gradient of a worker for a place."""
        with self._warning:
            key = (rank, place)
            if len(self._warned) >= _WARNED_MAX and key not in self._warned:
                self._warned.clear()
            self._warned[key] += 1
            times = self._warned[key]
        if times & (times - 1):
            return
        _LOG.warning(
            "gradient_not_finite worker=%d tensors=%s policy=%s times=%d",
            rank,
            ",".join(names(values)[:_NAMES_MAX]),
            self.policy.value,
            times,
        )
