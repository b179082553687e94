"""CIFAR-10 and CIFAR-100 in their binary version: records of labels and a 32 x 32 image, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import CorruptionError
from windlass_worker.data.dataset import ArrayDataset
from windlass_worker.data.readers.files import needed, read_whole

_IMAGE_BYTES: Final = 3 * 32 * 32


class CIFAR10(ArrayDataset):
    """Photographs in ten classes: samples are (image, label), uint8 (32, 32, 3) and int64.

    Args:
        folder: holds `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`, or a folder
            `cifar-10-batches-bin` with them.
        train: the five, or the one.

    Raises:
        UsageError: a file is missing.
        CorruptionError: a file is no whole number of records, or has a label above 9.

    Reference: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    def __init__(self, folder: str | Path, *, train: bool = True) -> None:
        names = [f"data_batch_{number}.bin" for number in range(1, 6)] if train else ["test_batch.bin"]
        images, labels = _records(_inside(folder, "cifar-10-batches-bin"), names, (10,))
        super().__init__(images, labels[:, 0])


class CIFAR100(ArrayDataset):
    """Photographs in a hundred classes, or twenty kinds of them; like `CIFAR10`, with `train.bin` and `test.bin`.

    Args:
        fine: labels are the hundred classes, else the twenty.
    """

    def __init__(self, folder: str | Path, *, train: bool = True, fine: bool = True) -> None:
        name = "train.bin" if train else "test.bin"
        images, labels = _records(_inside(folder, "cifar-100-binary"), [name], (20, 100))
        super().__init__(images, labels[:, int(fine)])


def _inside(folder: str | Path, name: str) -> Path:
    nested = Path(folder) / name
    return nested if nested.is_dir() else Path(folder)


def _records(
    folder: Path, names: Sequence[str], classes: tuple[int, ...]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """All images as (rows, 32, 32, 3), all labels as (rows, labels a record)."""
    size = len(classes) + _IMAGE_BYTES
    found = []
    for name in names:
        path = needed(folder, [name], f"a file of {len(names)}")
        raw = read_whole(path)
        if not raw or len(raw) % size:
            raise CorruptionError(
                "a file is no whole number of records",
                file=path,
                expected=f"a multiple of {size} bytes",
                found_bytes=len(raw),
                next_move="Fetch it again; it is the binary version that is read.",
            )
        records = np.frombuffer(raw, np.uint8).reshape(-1, size)
        wrong = np.argwhere(records[:, : len(classes)] >= classes)
        if len(wrong):
            row, at = (int(place) for place in wrong[0])
            raise CorruptionError(
                "a record has a label that there is not",
                file=path,
                byte=row * size + at,
                expected=f"below {classes[at]}",
                found=int(records[row, at]),
            )
        found.append(records)
    every = np.concatenate(found)
    images = every[:, len(classes) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), every[:, : len(classes)].astype(np.int64)
