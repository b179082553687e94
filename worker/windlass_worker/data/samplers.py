"""Samplers: which rows an epoch reads, and in which order.

Invariant: an epoch's rows are a function of the sampler's arguments and the epoch's number, so every worker of a job,
and a run that is resumed, has the same ones. `rows(epoch)` gives them as int64 numbers, `len` says how many there are
(of a `BatchSampler`: batches). A sampler keeps no position; `BatchSampler` with "rollover" works its remainder out
anew for each epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError
from windlass_worker.data.dataset import Rows
from windlass_worker.data.draws import order_rng

LAST_BATCHES = ("keep", "discard", "rollover")


class Sampler(Protocol):
    """What the samplers here are, and what one of a caller's own has to be."""

    def __len__(self) -> int:
        """Rows an epoch."""

    def rows(self, epoch: int) -> Rows:
        """The epoch's rows in order."""


class SequentialSampler:
    """Rows 0 to `length` - 1."""

    def __init__(self, length: int) -> None:
        self._length = _length(length)

    def __len__(self) -> int:
        return self._length

    def rows(self, epoch: int) -> Rows:
        """The same in every epoch."""
        return np.arange(self._length)


class RandomSampler:
    """Every row once, in an order drawn from (seed, epoch): the one that `cluster.batches` has for them."""

    def __init__(self, length: int, seed: int = 0) -> None:
        self._length = _length(length)
        self._seed = seed

    def __len__(self) -> int:
        return self._length

    def rows(self, epoch: int) -> Rows:
        """A permutation."""
        return order_rng(self._seed, epoch).permutation(self._length)


class WeightedSampler:
    """`count` rows (default: as many as there are weights), each row as often as its weight says.

    Without `replacement` a row comes once at most, and the weights are those of its coming early.
    """

    def __init__(
        self, weights: npt.ArrayLike, count: int | None = None, *, replacement: bool = True, seed: int = 0
    ) -> None:
        given = np.asarray(weights, np.float64)
        if given.ndim != 1 or not given.size or not (np.isfinite(given) & (given >= 0)).all() or not given.any():
            raise UsageError("weights are numbers from 0, one a row, not all 0", shape=given.shape)
        self._shares = given / given.sum()
        self._count = given.size if count is None else count
        possible = int((given > 0).sum())
        if self._count < 1 or (not replacement and self._count > possible):
            raise UsageError("so many rows cannot be drawn", count=self._count, with_weight=possible)
        self._replacement = replacement
        self._seed = seed

    def __len__(self) -> int:
        return self._count

    def rows(self, epoch: int) -> Rows:
        """Rows drawn for the epoch."""
        rng = order_rng(self._seed, epoch)
        return rng.choice(self._shares.size, self._count, replace=self._replacement, p=self._shares)


class FilterSampler:
    """The rows whose sample `keep` holds true, in order; it looks at every sample once, now."""

    def __init__(self, keep: Callable[[Any], bool], dataset: Any) -> None:
        self._rows = np.array([index for index in range(len(dataset)) if keep(dataset[index])], np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, epoch: int) -> Rows:
        """The same in every epoch."""
        return self._rows


class SplitSampler:
    """A rank's share of another sampler's rows: those at its positions rank, rank + ranks, ...

    Every rank has equally many: with `even`, the first rows of the order come again where they do not go round.
    """

    def __init__(self, sampler: Sampler | int, rank: int, ranks: int, *, even: bool = True) -> None:
        if not 0 <= rank < ranks:
            raise UsageError("a share needs a rank below their number", rank=rank, ranks=ranks)
        self._sampler: Sampler = SequentialSampler(sampler) if isinstance(sampler, int) else sampler
        self._rank = rank
        self._ranks = ranks
        self._even = even

    def __len__(self) -> int:
        whole = len(self._sampler)
        return -(-whole // self._ranks) if self._even else len(range(self._rank, whole, self._ranks))

    def rows(self, epoch: int) -> Rows:
        """The share."""
        rows = self._sampler.rows(epoch)
        if not self._even or not len(rows):
            return rows[self._rank :: self._ranks]
        return rows[(self._rank + self._ranks * np.arange(len(self))) % len(rows)]


class BatchSampler:
    """Another sampler's rows, `batch_size` at a time.

    Args:
        last_batch: what becomes of the rows left over: "keep" gives a smaller batch, "discard" leaves them out,
            "rollover" puts them in front of the next epoch's.
    """

    def __init__(
        self, sampler: Sampler, batch_size: int, last_batch: Literal["keep", "discard", "rollover"] = "keep"
    ) -> None:
        if batch_size < 1:
            raise UsageError("a batch has one row or more", batch_size=batch_size)
        if last_batch not in LAST_BATCHES:
            raise UsageError(
                "last_batch is something else", given=last_batch, next_move=did_you_mean(last_batch, LAST_BATCHES)
            )
        self._sampler = sampler
        self._batch_size = batch_size
        self._last_batch = last_batch

    def __len__(self) -> int:
        """Batches an epoch; with "rollover", of epoch 0."""
        return self.count(0)

    def count(self, epoch: int) -> int:
        """Batches of that epoch."""
        rows = self._carried(epoch) + len(self._sampler)
        return -(-rows // self._batch_size) if self._last_batch == "keep" else rows // self._batch_size

    def batches(self, epoch: int) -> Iterator[Rows]:
        """The epoch's batches of rows in order."""
        rows = self._sampler.rows(epoch)
        if carried := self._carried(epoch):
            rows = np.concatenate([self._left(epoch - 1)[-carried:], rows])
        for batch in range(self.count(epoch)):
            yield rows[batch * self._batch_size : (batch + 1) * self._batch_size]

    def _carried(self, epoch: int) -> int:
        """How many rows of epochs before begin this one."""
        return epoch * len(self._sampler) % self._batch_size if self._last_batch == "rollover" else 0

    def _left(self, epoch: int) -> Rows:
        """The last rows up to the end of `epoch`, at least as many as are carried on."""
        rows = self._sampler.rows(epoch)
        while epoch > 0 and len(rows) < self._batch_size - 1:
            epoch -= 1
            rows = np.concatenate([self._sampler.rows(epoch), rows])
        return rows


class Listed:
    """A sequence of row numbers as a sampler."""

    def __init__(self, rows: Sequence[int]) -> None:
        self._rows = np.asarray(rows, np.int64)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, epoch: int) -> Rows:
        """The same in every epoch."""
        return self._rows


def _length(length: int) -> int:
    if length < 0:
        raise UsageError("a data set has no fewer rows than none", length=length)
    return length


__all__ = [
    "BatchSampler",
    "FilterSampler",
    "Listed",
    "RandomSampler",
    "Sampler",
    "SequentialSampler",
    "SplitSampler",
    "WeightedSampler",
]
