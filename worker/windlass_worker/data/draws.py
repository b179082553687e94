"""Chance in data: what is drawn for one row of one epoch, and one epoch's order.

Invariant: what a random transform draws is a function of (seed, epoch, row of the source data set) alone: not of the
process that makes the sample, of the batch it is in, of the rank that reads it. Each triple has a stream of its own,
Philox with key (seed, epoch) and the row in the third word of its counter, so streams are 2**128 numbers apart. The
transforms of a sample draw from it one after the other. A row that is drawn twice in an epoch (by weight) is changed
alike both times.

Reference: J. Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011.
"""

from __future__ import annotations

import numpy as np

_WORD = 2**64 - 1


class Draw:
    """The chance of one sample; making one costs nothing until its generator is asked for."""

    __slots__ = ("_rng", "epoch", "row", "seed")

    def __init__(self, seed: int, epoch: int, row: int) -> None:
        self.seed = seed
        self.epoch = epoch
        self.row = row
        self._rng: np.random.Generator | None = None

    @property
    def rng(self) -> np.random.Generator:
        """The sample's generator, as far as its transforms have drawn from it."""
        if self._rng is None:
            philox = np.random.Philox(counter=[0, 0, self.row, 0], key=[self.seed & _WORD, self.epoch])
            self._rng = np.random.Generator(philox)
        return self._rng


def order_rng(seed: int, epoch: int) -> np.random.Generator:
    """The generator of an epoch's order: key (seed, epoch) at counter 0, as `cluster.batches` has it."""
    return np.random.Generator(np.random.Philox(key=[seed & _WORD, epoch]))
