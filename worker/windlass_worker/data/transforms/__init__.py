"""Transforms of samples: functions from a sample to a sample, random ones with the sample's own generator.

dataset.transform_first(transforms.Compose(
    transforms.RandomCrop(28, padding=2), transforms.ToTensor(), transforms.Normalize(0.13, 0.31)))
"""

from __future__ import annotations

from windlass_worker.data.transforms.augmentation import (
    RandomBrightness,
    RandomContrast,
    RandomCrop,
    RandomFlipLeftRight,
    RandomFlipTopBottom,
    RandomResizedCrop,
)
from windlass_worker.data.transforms.chance import Compose, Random, RandomTransform
from windlass_worker.data.transforms.images import Cast, CenterCrop, Normalize, Resize, ToTensor

__all__ = [
    "Cast",
    "CenterCrop",
    "Compose",
    "Normalize",
    "Random",
    "RandomBrightness",
    "RandomContrast",
    "RandomCrop",
    "RandomFlipLeftRight",
    "RandomFlipTopBottom",
    "RandomResizedCrop",
    "RandomTransform",
    "Resize",
    "ToTensor",
]
