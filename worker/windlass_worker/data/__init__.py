"""Data: data sets, transforms, samplers.

train = wl.data.ArrayDataset(x, y).transform_first(wl.data.transforms.ToTensor())
"""

from __future__ import annotations

from windlass_worker.data import transforms
from windlass_worker.data.dataset import ArrayDataset, Dataset
from windlass_worker.data.samplers import (
    BatchSampler,
    FilterSampler,
    RandomSampler,
    SequentialSampler,
    SplitSampler,
    WeightedSampler,
)

__all__ = [
    "ArrayDataset",
    "BatchSampler",
    "Dataset",
    "FilterSampler",
    "RandomSampler",
    "SequentialSampler",
    "SplitSampler",
    "WeightedSampler",
    "transforms",
]
