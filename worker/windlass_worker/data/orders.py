"""Which batches a pass reads: from a sampler of this process, or handed out by a cluster.

A pass asks `ahead` for orders, as early as it likes; `given` says that the loop gets that batch now, `used` that it
came back for the next one. Only a cluster listens to the last two: what was prefetched and not used is not done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from windlass_worker.data.dataset import Rows

if TYPE_CHECKING:
    from windlass.batches import Handed, Reading


@dataclass(frozen=True, slots=True)
class Order:
    """A batch to make. `handed` is the cluster's word for it."""

    rows: Rows
    epoch: int
    handed: Handed | None = None


class Orders(Protocol):
    """Where the orders of a pass come from."""

    def ahead(self) -> Order | None:
        """The next one; None: there is none until all before are used, and then it is over."""

    def given(self, order: Order) -> None:
        """The loop gets it now."""

    def used(self, order: Order) -> None:
        """The loop came back."""


class LocalOrders:
    """A pass over a process's own batches."""

    def __init__(self, batches: Iterable[Any], epoch: int) -> None:
        self._batches: Iterator[Any] = iter(batches)
        self._epoch = epoch

    def ahead(self) -> Order | None:
        """The sampler's next batch."""
        rows = next(self._batches, None)
        return None if rows is None else Order(np.asarray(rows, np.int64), self._epoch)

    def given(self, order: Order) -> None:
        """Nobody else waits for it."""

    def used(self, order: Order) -> None:
        """Nobody else waits for it."""


class ClusterOrders:
    """This worker's share of a pass: the scheduler hands out positions in the order that `rows` is."""

    def __init__(self, reading: Reading, rows: Rows) -> None:
        self._reading = reading
        self._rows = rows
        self._epoch = reading.number - 1

    def ahead(self) -> Order | None:
        """The next batch handed to this worker."""
        handed = self._reading.ahead()
        return None if handed is None else Order(self._rows[handed.begin : handed.end], self._epoch, handed)

    def given(self, order: Order) -> None:
        """A checkpoint taken from now on is behind it."""
        if order.handed is not None:
            self._reading.given(order.handed)

    def used(self, order: Order) -> None:
        """It is done."""
        if order.handed is not None:
            self._reading.used(order.handed)
