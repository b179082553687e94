"""This worker's share of a data set, batch by batch.

The scheduler hands out positions in each epoch's order; the order is a function of (seed, epoch, length) alone, so
every worker computes the same one (NumPy's Philox). When a worker dies, what it had not finished goes to the others.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass_proto.errors import UsageError

if TYPE_CHECKING:
    from windlass.member import Member
    from windlass_proto.gen import control_pb2

_POSITIONS_MAX = 256  # as many data sets as a job may read


class Batches:
    """An iterable over batches: tuples of arrays, one array, or row numbers if it was given a length.

    To iterate over it once more is another pass over all epochs, on every worker alike.
    """

    def __init__(
        self,
        member: Member,
        job: str,
        loader: str,
        sources: tuple[Any, ...],
        *,
        size: int,
        epochs: int,
        seed: int,
        shuffle: bool,
        drop_last: bool,
        balanced: bool,
    ) -> None:
        self.length = _length(sources)
        if self.length < 1:
            raise UsageError("a data set has no rows", rows=self.length, next_move="Pass arrays with rows.")
        if size < 1 or epochs < 0:
            raise UsageError("batches were asked for with an impossible size", size=size, epochs=epochs)
        self.epoch = 0
        self._member = member
        self._sources = sources
        self._seed = seed
        self._shuffle = shuffle
        self._passes = 0
        self.name = f"{loader}:{self.length}:{seed}:{int(shuffle)}"
        self._epochs = epochs
        self._resumed = False
        self._ordered = -1, np.arange(0)
        self._loader = f"{loader}:{self.length}:{size}:{epochs}:{seed}:{int(shuffle)}:{int(drop_last)}"
        self._request: dict[str, Any] = {
            "job": job,
            "length": self.length,
            "size": size,
            "epochs": epochs,
            "drop_last": drop_last,
            "balanced": balanced,
        }

    def __iter__(self) -> Iterator[Any]:
        reading = self.read()
        while (handed := reading.ahead()) is not None:
            reading.given(handed)
            yield self._batch(self._order(handed.epoch)[handed.begin : handed.end])
            reading.used(handed)

    def read(self) -> Reading:
        """Begin the next pass, for who makes batches before the loop wants them."""
        self._passes += 1
        start = self._start()
        return Reading(self, self._passes, f"{self._loader}:{self._passes}", start)

    def ask(self, loader: str, call: int, done: list[int], start: control_pb2.DataPosition | None) -> Any:
        """The scheduler's next shard for this worker, which has finished those in `done`."""
        from windlass_proto.gen import control_pb2 as pb

        asking = pb.NextShardRequest(
            session=self._member.session, loader=loader, shards_done=done, call=call, start=start, **self._request
        )
        return self._member.ask_peers(self._member.control.next_shard, asking, "the next batch")

    def _start(self) -> control_pb2.DataPosition | None:
        """Where a resumed run's first pass begins; None: at its beginning."""
        from windlass_proto.gen import control_pb2 as pb

        resumed = self._member.resumed
        if self._resumed or not resumed:
            return None
        self._resumed = True
        found = resumed.get(self.name)
        if found is None:
            if any(name.partition(":")[0] == self.name.partition(":")[0] for name in resumed):
                sys.stderr.write(
                    "windlass: a data set has other rows, seed or order than its checkpoint: it begins anew\n"
                )
            return None
        self._passes = found.passes
        start = pb.DataPosition(
            epoch=found.epoch, rounds=found.rounds, workers=found.workers, batches=found.batches, row=found.row
        )
        self.reached(start)
        return start

    def passed(self) -> None:
        """A pass is over. What is read again and again goes on with the next one; what is read once is read."""
        from windlass_proto.gen import control_pb2 as pb

        if self._passes > 1:
            self.reached(pb.DataPosition(), passes=self._passes + 1)

    def reached(self, at: control_pb2.DataPosition, *, passes: int = 0) -> None:
        """A checkpoint from now on finds this data set after the batch that the loop is given."""
        from windlass_proto.checkpoint_format import Position

        positions = self._member.positions
        passes = passes or self._passes
        now = Position(self.name, passes, at.epoch, at.rounds, at.workers, at.batches, at.row)
        before = positions.get(self.name)
        if before is not None and before[0].order > now.order:
            return  # a dead worker's batch, of a round that is over
        positions[self.name] = (now, (passes - 1) * self._epochs + at.epoch)
        if len(positions) > _POSITIONS_MAX:
            del positions[next(iter(positions))]

    def _order(self, epoch: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        if epoch != self._ordered[0]:
            order = np.arange(self.length)
            if self._shuffle:
                key = [self._seed & (2**64 - 1), epoch]
                order = np.random.Generator(np.random.Philox(key=key)).permutation(self.length)
            self._ordered = epoch, order
        return self._ordered[1]

    def _batch(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> Any:
        if isinstance(self._sources[0], int):
            return rows
        parts = tuple(source[rows] for source in self._sources)
        return parts if len(parts) > 1 else parts[0]


@dataclass(frozen=True, slots=True)
class Handed:
    """A batch of this worker's: the rows from `begin` to `end` in the order of `epoch`, which counts from a pass's own.

    `position`: where a checkpoint is that is taken while the loop has it.
    """

    epoch: int
    begin: int
    end: int
    shard_id: int
    position: control_pb2.DataPosition


class Reading:
    """One pass, in which batches may be asked for before the loop wants them.

    Invariant: a shard is reported done once each of its batches was `used`, and a checkpoint's position is that of the
    last one `given`; so what was asked for ahead and not used goes to the others when this worker dies, and comes again
    after a checkpoint. Asked for one at a time, it is what a plain loop over `Batches` does.
    """

    def __init__(self, batches: Batches, number: int, loader: str, start: control_pb2.DataPosition | None) -> None:
        self.number = number
        """Which pass it is, from 1."""
        self._batches = batches
        self._loader = loader
        self._start = start
        self._calls = 0
        self._next: deque[Handed] = deque()
        self._unused: dict[int, int] = {}
        """By shard in hand, how many of its batches are not used yet."""
        self._done: list[int] = []
        self._dry = False

    def ahead(self) -> Handed | None:
        """The next batch of this worker. None: there is none as long as others are unused; if none is, it is over."""
        if not self._next and not (self._dry and self._unused):
            self._ask()
        return self._next.popleft() if self._next else None

    def _ask(self) -> None:
        self._calls += 1
        shard = self._batches.ask(self._loader, self._calls, self._done, self._start)
        self._done = []
        self._dry = shard.exhausted
        if shard.exhausted:
            if not self._unused:
                self._batches.passed()
            return
        self._unused[shard.shard_id] = len(shard.positions)
        for begin, end, position in zip(shard.begins, shard.ends, shard.positions, strict=True):
            self._next.append(Handed(shard.epoch, begin, end, shard.shard_id, position))

    def given(self, handed: Handed) -> None:
        """The loop has this batch now."""
        self._batches.epoch = handed.epoch
        self._batches.reached(handed.position)

    def used(self, handed: Handed) -> None:
        """The loop came back for the one after it."""
        self._unused[handed.shard_id] -= 1
        if not self._unused[handed.shard_id]:
            del self._unused[handed.shard_id]
            self._done.append(handed.shard_id)


def _length(sources: tuple[Any, ...]) -> int:
    if not sources:
        raise UsageError("batches were asked for without data", next_move="Pass arrays, or a number of rows.")
    if isinstance(sources[0], int):
        if len(sources) > 1:
            raise UsageError("batches take arrays or one length", given=len(sources))
        return sources[0]
    lengths = [len(source) for source in sources]
    if len(set(lengths)) > 1:
        raise UsageError("arrays of a data set have different lengths", lengths=lengths)
    return lengths[0]
