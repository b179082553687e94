"""Samples to a batch, and a batch through shared memory.

`stack` puts samples on a new first axis, leaf by leaf of their tuples, lists and dicts; `make_batch` does so for
rows of a data set. Both write into memory they are given (`Room`), so that a worker process collates straight into
what the loop will read. `packed` describes a batch as JSON whose arrays are offsets into that memory, `unpacked` reads
it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UsageError, WindlassError
from windlass_worker.data.dataset import Dataset, Room, Rows
from windlass_worker.data.draws import Draw

Collate: TypeAlias = Callable[[list[Any]], Any]


def make_batch(dataset: Dataset, rows: Rows, *, seed: int, epoch: int, collate: Collate | None, room: Room) -> Any:
    """The batch of `rows`.

    Raises:
        UsageError: a sample could not be made, with its row; or the WindlassError that it raised, likewise.
    """
    if collate is None and (whole := dataset.gather(rows, room)) is not None:
        return whole
    samples = [_sample(dataset, int(row), seed, epoch) for row in rows]
    return stack(samples, room, rows) if collate is None else collate(samples)


def _sample(dataset: Dataset, row: int, seed: int, epoch: int) -> Any:
    try:
        return dataset.sample(row, Draw(seed, epoch, dataset.row(row)))
    except WindlassError as cause:
        values = {**cause.values, "row": row}
        raise type(cause)(cause.fact, next_move=cause.next_move, **values) from cause
    except Exception as cause:
        raise UsageError(
            "a sample could not be made",
            row=row,
            epoch=epoch,
            error=f"{type(cause).__name__}: {cause}",
            next_move="Look at dataset[row], and at the traceback of its cause.",
        ) from cause


def stack(samples: Sequence[Any], room: Room, rows: Sequence[int] | Rows) -> Any:
    """The samples' leaves, each stacked; Python's numbers become int64, float32 or bool.

    Raises:
        UsageError: samples of different structure, shape or dtype, or leaves that are no arrays or numbers.
    """
    first = samples[0]
    if isinstance(first, tuple | list):
        _alike(samples, rows, len, "number of parts")
        parts = [stack([sample[i] for sample in samples], room, rows) for i in range(len(first))]
        return tuple(parts) if isinstance(first, tuple) else parts
    if isinstance(first, dict):
        _alike(samples, rows, sorted, "keys")
        return {key: stack([sample[key] for sample in samples], room, rows) for key in first}
    if isinstance(first, bool | int | float):
        return _numbers(samples, room, rows)
    leaves = [np.asarray(sample) for sample in samples]
    if leaves[0].dtype.hasobject or leaves[0].dtype.kind in "USV":
        raise UsageError(
            "samples of a batch are not made of numbers",
            row=rows[0],
            type=type(first).__name__,
            next_move="Turn them into arrays in a transform, or give collate=.",
        )
    _alike(leaves, rows, lambda leaf: (leaf.shape, leaf.dtype.name), "shape and dtype")
    batch = room((len(leaves), *leaves[0].shape), leaves[0].dtype)
    for index, leaf in enumerate(leaves):
        batch[index] = leaf
    return batch


def _numbers(samples: Sequence[Any], room: Room, rows: Sequence[int] | Rows) -> Any:
    found = np.asarray(samples)
    if found.ndim != 1 or found.dtype.kind not in "bif":
        raise UsageError("samples of a batch are not all numbers", rows=f"{rows[0]}..{rows[-1]}")
    batch = room(found.shape, np.dtype(np.float32) if found.dtype.kind == "f" else found.dtype)
    batch[:] = found
    return batch


def _alike(samples: Sequence[Any], rows: Sequence[int] | Rows, of: Callable[[Any], Any], what: str) -> None:
    try:
        expected = of(samples[0])
        odd = next((index for index, sample in enumerate(samples) if of(sample) != expected), None)
    except TypeError:
        expected, odd = what, next(i for i, sample in enumerate(samples) if type(sample) is not type(samples[0]))
    if odd is not None:
        raise UsageError(
            f"samples of a batch differ in their {what}",
            row=rows[0],
            has=expected,
            other_row=rows[odd],
            other_has=of(samples[odd]) if not isinstance(expected, str) else type(samples[odd]).__name__,
            next_move="Bring them to one shape in a transform, or give collate=.",
        )


def fresh(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Memory of the interpreter's own, as a `Room`."""
    return np.empty(shape, dtype)


def packed(batch: Any, place: Callable[[npt.NDArray[Any]], int]) -> Any:
    """A batch as JSON; `place` gives the offset of an array in the shared memory, and copies it there if need be."""
    if isinstance(batch, tuple | list):
        return {"tuple" if isinstance(batch, tuple) else "list": [packed(part, place) for part in batch]}
    if isinstance(batch, dict):
        return {"dict": {str(key): packed(part, place) for key, part in batch.items()}}
    if batch is None or isinstance(batch, str | bool | int | float):
        return {"value": batch}
    array = np.asarray(batch)
    if array.dtype.hasobject:
        raise UsageError(
            "a batch holds what has no place in shared memory",
            type=type(batch).__name__,
            next_move="Let collate= return arrays, numbers, texts, and tuples, lists and dicts of them.",
        )
    return {"array": [array.dtype.str, list(array.shape), place(array)]}


def unpacked(layout: Any, memory: npt.NDArray[np.uint8]) -> Any:
    """What `packed` described, its arrays views of `memory`."""
    ((kind, content),) = layout.items()
    if kind == "array":
        dtype, shape, offset = np.dtype(content[0]), tuple(content[1]), content[2]
        nbytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        return memory[offset : offset + nbytes].view(dtype).reshape(shape)
    if kind == "dict":
        return {key: unpacked(part, memory) for key, part in content.items()}
    if kind == "value":
        return content
    parts = [unpacked(part, memory) for part in content]
    return tuple(parts) if kind == "tuple" else parts
