"""A data set: rows that are asked for by number, and views of it.

Invariant: a view (`take`, `shard`, `filter`, `transform`) holds no samples; it knows which rows of its source it shows
and what is done to them when they are asked for. `row` leads back to the row of the data set at the bottom, which is
what random transforms draw by (see `draws`).

A data set of one's own needs `__len__` and `__getitem__`; `Dataset` adds the views to it.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UsageError
from windlass_worker.data.draws import Draw
from windlass_worker.data.transforms.chance import run, steps_of

Rows: TypeAlias = npt.NDArray[np.int64]
Room: TypeAlias = Callable[[tuple[int, ...], npt.DTypeLike], npt.NDArray[Any]]
"""What gives memory for an array of a shape and dtype; its contents are whatever they are."""


class Dataset(abc.ABC):
    """Rows by number, 0 to `len` - 1; a sample is what it wants to be, a tuple if it has several parts."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many rows there are."""

    @abc.abstractmethod
    def __getitem__(self, index: int) -> Any:
        """The sample of a row."""

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))

    def sample(self, index: int, draw: Draw) -> Any:
        """The sample of a row, with the chance of `draw` where it is random."""
        return self[index]

    def row(self, index: int) -> int:
        """Which row of the data set at the bottom that is."""
        return index

    def gather(self, rows: Rows, room: Room) -> Any:
        """The batch of many rows in one go, in memory from `room`; None where samples must be made one by one."""
        return None

    def transform(self, function: Any) -> Transformed:
        """A view in which `function` is applied to each sample when it is asked for.

        A sample that is a tuple arrives as that many arguments. Random transforms get the sample's generator.
        """
        return Transformed(self, function, first_only=False)

    def transform_first(self, function: Any) -> Transformed:
        """A view in which `function` is applied to the first part of each sample: the image, not its label."""
        return Transformed(self, function, first_only=True)

    def take(self, count: int) -> Subset:
        """The first `count` rows, or all if there are fewer."""
        if count < 0:
            raise UsageError("rows to take are none or more", count=count)
        return Subset(self, np.arange(min(count, len(self))))

    def shard(self, rank: int, ranks: int) -> Subset:
        """Every `ranks`-th row from row `rank` on: sizes differ by at most one, whatever order the rows are in."""
        if not 0 <= rank < ranks:
            raise UsageError("a shard needs a rank below their number", rank=rank, ranks=ranks)
        return Subset(self, np.arange(rank, len(self), ranks))

    def filter(self, keep: Callable[[Any], bool]) -> Subset:
        """The rows whose sample `keep` holds true; it looks at every sample once, now."""
        return Subset(self, np.array([index for index in range(len(self)) if keep(self[index])], np.int64))


class ArrayDataset(Dataset):
    """Rows of arrays of one length (or of anything with `len` and numbered items). It copies nothing.

    With one array a sample is its row, with several a tuple of theirs.
    """

    def __init__(self, *arrays: Any) -> None:
        lengths = [len(array) for array in arrays]
        if not arrays or len(set(lengths)) > 1:
            raise UsageError(
                "a data set needs arrays of one length", lengths=lengths, next_move="Give each the same number of rows."
            )
        self.arrays: Sequence[Any] = tuple(
            np.asarray(array) if hasattr(array, "__array__") else array for array in arrays
        )
        self._length = lengths[0]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        index = checked(index, self._length)
        parts = tuple(array[index] for array in self.arrays)
        return parts if len(parts) > 1 else parts[0]

    def gather(self, rows: Rows, room: Room) -> Any:
        if not all(isinstance(array, np.ndarray) and not array.dtype.hasobject for array in self.arrays):
            return None
        if rows.size and not 0 <= rows.min() <= rows.max() < self._length:
            raise IndexError(f"rows {rows.min()} to {rows.max()} of a data set of {self._length} rows")
        # with mode="raise" NumPy would write to memory of its own first
        parts = tuple(
            np.take(array, rows, 0, out=room((len(rows), *array.shape[1:]), array.dtype), mode="clip")
            for array in self.arrays
        )
        return parts if len(parts) > 1 else parts[0]


class Subset(Dataset):
    """Some rows of a data set, by number, in the order given."""

    def __init__(self, source: Dataset, rows: Rows) -> None:
        self.source = source
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.source[int(self.rows[checked(index, len(self.rows))])]

    def sample(self, index: int, draw: Draw) -> Any:
        return self.source.sample(int(self.rows[checked(index, len(self.rows))]), draw)

    def row(self, index: int) -> int:
        return self.source.row(int(self.rows[index]))

    def gather(self, rows: Rows, room: Room) -> Any:
        return self.source.gather(self.rows[rows], room)


class Transformed(Dataset):
    """A data set with a function applied to each sample, or to its first part, each time it is asked for.

    By itself (`dataset[3]`) a random transform draws as in epoch 0 of seed 0.
    """

    def __init__(self, source: Dataset, function: Any, *, first_only: bool) -> None:
        self.source = source
        self._steps = steps_of(function)
        self._random = any(random for _, random in self._steps)
        self._first_only = first_only

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Any:
        index = checked(index, len(self.source))
        return self.sample(index, Draw(0, 0, self.row(index)))

    def row(self, index: int) -> int:
        return self.source.row(index)

    def sample(self, index: int, draw: Draw) -> Any:
        found = self.source.sample(index, draw)
        if not isinstance(found, tuple):
            return self._applied((found,), draw)
        if self._first_only:
            return (self._applied(found[:1], draw), *found[1:])
        return self._applied(found, draw)

    def _applied(self, parts: tuple[Any, ...], draw: Draw) -> Any:
        return run(self._steps, parts, draw.rng if self._random else None)


def checked(index: int, length: int) -> int:
    """`index` counted from the front; negative ones count from the end, as in a list."""
    if not -length <= index < length:
        raise IndexError(f"row {index} of a data set of {length} rows")
    return index + length if index < 0 else index


def dataset_of(rows: Any) -> Dataset:
    """`rows` itself if it is a Dataset, else one around what has `len` and numbered items."""
    if isinstance(rows, Dataset):
        return rows
    if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")):
        raise UsageError(
            "a data set has __len__ and __getitem__",
            given=type(rows).__name__,
            next_move="Wrap arrays in ArrayDataset(x, y).",
        )
    return ArrayDataset(rows)
