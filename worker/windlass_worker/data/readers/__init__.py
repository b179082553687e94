"""Readers: well-known sets of images, sparse rows and tables from the files that they come in.

Each takes a path and downloads nothing. A file may be gzipped; a damaged one is refused in words.
"""

from __future__ import annotations

from windlass_worker.data.readers.cifar import CIFAR10, CIFAR100
from windlass_worker.data.readers.delimited import csv
from windlass_worker.data.readers.idx import MNIST, FashionMNIST, idx
from windlass_worker.data.readers.libsvm import SparseRows, libsvm

__all__ = ["CIFAR10", "CIFAR100", "MNIST", "FashionMNIST", "SparseRows", "csv", "idx", "libsvm"]
