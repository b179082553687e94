"""Data: data sets, transforms, samplers, and the loader that makes batches of them.

train = wl.data.ArrayDataset(x, y).transform_first(wl.data.transforms.ToTensor())
for x, y in wl.data.DataLoader(train, 64, shuffle=True, num_workers=4):
    ...
"""

from __future__ import annotations

from windlass_worker.data import readers, transforms
from windlass_worker.data.dataset import ArrayDataset, Dataset
from windlass_worker.data.loader import DataLoader
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
    "DataLoader",
    "Dataset",
    "FilterSampler",
    "RandomSampler",
    "SequentialSampler",
    "SplitSampler",
    "WeightedSampler",
    "readers",
    "transforms",
]
