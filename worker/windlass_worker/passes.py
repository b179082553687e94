"""The batches of a fit, epoch by epoch: a pass over the data each, or so many batches each.

Invariant: `state()` between two epochs names the next batch, so that a fit which is resumed from it goes on there.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sized
from typing import Any, Final

from windlass_proto.errors import UsageError
from windlass_worker.data import DataLoader

_NEXT_MOVE: Final = "Pass a wl.data.DataLoader, or anything that can be iterated over again, such as a list."


class Passes:
    """Epochs of one source of batches.

    Args:
        source: anything that gives batches when it is iterated over.
        batches: of an epoch; None: an epoch is a pass. A source that ends earlier is iterated over again.
    """

    def __init__(self, source: Iterable[Any], batches: int | None) -> None:
        if batches is not None and batches < 1:
            raise UsageError("an epoch has no such number of batches", batches_per_epoch=batches)
        if not hasattr(source, "__iter__"):
            raise UsageError("this gives no batches", got=type(source).__name__, next_move=_NEXT_MOVE)
        self.source = source
        self._batches = batches
        self._under_way: Iterator[Any] | None = None
        self._number = self._loaders_epoch()
        self._taken = 0
        self._put_back: list[Any] = []

    @property
    def is_shared(self) -> bool:
        """Do other workers read the same passes, with positions that the cluster keeps?"""
        return isinstance(self.source, DataLoader) and self.source.is_shared

    @property
    def length(self) -> int | None:
        """Batches of the next epoch; None if nobody knows."""
        if self._batches is not None:
            return self._batches
        return len(self.source) if isinstance(self.source, Sized) else None

    def example(self) -> Any:
        """A batch like those to come, of which none is used up.

        Raises:
            UsageError: there is none.
        """
        if isinstance(self.source, DataLoader):
            return self.source.example()
        once = iter(self.source)
        try:
            found = next(once)
        except StopIteration:
            raise UsageError("there are no batches", next_move=_NEXT_MOVE) from None
        if once is self.source:
            self._put_back.append(found)
        return found

    def epoch(self) -> Iterator[Any]:
        """The batches of one epoch."""
        if self._batches is None:
            self._begin()
            yield from self._rest()
            return
        left = self._batches
        while left:
            fresh = self._under_way is None
            if fresh:
                self._begin()
            before = left
            for batch in itertools.islice(self._rest(), left):
                left -= 1
                yield batch
            if left == before and fresh:
                raise UsageError("batches ended inside an epoch", missing=left, next_move=_NEXT_MOVE)

    def _begin(self) -> None:
        self._number, self._taken = self._loaders_epoch(), 0
        self._under_way = itertools.chain(self._put_back, self.source)
        self._put_back = []

    def _rest(self) -> Iterator[Any]:
        assert self._under_way is not None, "a pass was begun"
        for batch in self._under_way:
            self._taken += 1
            yield batch
        self._under_way = None

    def _loaders_epoch(self) -> int:
        return self.source.epoch if isinstance(self.source, DataLoader) else 0

    def state(self) -> dict[str, int]:
        """Where the next epoch begins: the pass, and how many of its batches were taken."""
        if self.is_shared:
            return {}
        if self._batches is None or self._under_way is None:
            return {"pass": self._loaders_epoch(), "taken": 0}
        return {"pass": self._number, "taken": self._taken}

    def resume(self, state: dict[str, int]) -> None:
        """Go on where `state` was. A cluster keeps the positions of what it shares, and needs none."""
        if self.is_shared:
            return
        if isinstance(self.source, DataLoader):
            self.source.epoch = state["pass"]
        if state["taken"]:
            self._begin()
            for _ in itertools.islice(self._rest(), state["taken"]):
                pass

    def close(self) -> None:
        """Let go of a pass under way, and of what it started."""
        self._under_way = None
