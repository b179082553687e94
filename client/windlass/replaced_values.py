"""Values of this worker's gradients that were not finite and that `nonfinite=` has replaced: counted, and said once.

Invariant: a value is counted where it is replaced: by the worker before it encodes or sums, else by the server, whose
answer says how many. Owner: its lock; the store's calls and the pump write, anybody reads.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter

from windlass_proto.transfer_specs import Nonfinite


class ReplacedValues:
    """Of one store: name of a tensor or table -> how many values."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def count(self, name: str, values: int, policy: Nonfinite, rank: int, where: str = "") -> None:
        """So many values of a gradient of `name` were replaced; worker `rank` says so at the first of the name."""
        with self._lock:
            first = name not in self._counts
            self._counts[name] += values
        if first:
            sys.stderr.write(
                f"windlass: worker {rank}: a gradient of {name}{where} held values that are not finite; "
                f"nonfinite={policy.value!r} goes on with what is left. Said once; store.replaced counts them.\n"
            )

    def by_name(self) -> dict[str, int]:
        """A copy of the counts."""
        with self._lock:
            return dict(self._counts)
