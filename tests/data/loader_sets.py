"""Data sets that tests send to worker processes: what those import must be importable, and light."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np

from windlass_proto.errors import CorruptionError
from windlass_worker.data.dataset import ArrayDataset, Dataset
from windlass_worker.data.transforms import Compose, Normalize, RandomCrop, RandomFlipLeftRight, ToTensor


def augmented(rows: int) -> Dataset:
    """Images whose first pixel is their row, cropped and mirrored at random, with their row as label."""
    images = np.random.default_rng(0).integers(0, 256, (rows, 8, 8)).astype(np.uint8)
    chain = Compose(RandomCrop(8, padding=2), RandomFlipLeftRight(), ToTensor(), Normalize(0.5, 0.25))
    return ArrayDataset(images, np.arange(rows)).transform_first(chain)


class Failing(Dataset):
    """Rows are their numbers; what happens at `at` is said by `what`."""

    def __init__(self, rows: int, at: int, what: str) -> None:
        self.rows, self.at, self.what = rows, at, what

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Any:
        if index == self.at:
            match self.what:
                case "raise":
                    raise ValueError(f"no picture of {index}")
                case "corrupt":
                    raise CorruptionError("the picture is broken", byte=7)
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "wait":
                    signal.pause()
        return np.full(4, index, np.float32)


def with_process(samples: list[Any]) -> Any:
    """A collate of one's own, which also says which process it ran in."""
    return {"mean": np.mean(samples, 0), "process": os.getpid(), "many": [np.stack(samples), None, "text"]}
