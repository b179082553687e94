"""The idx format, and the two sets of small grey images that come in it: MNIST and Fashion-MNIST.

A file is two zero bytes, a byte for the dtype, one for the number of axes, each axis' length as a big-endian 32-bit
number, then the values, big-endian.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import CorruptionError
from windlass_worker.data.dataset import ArrayDataset
from windlass_worker.data.readers.files import find, needed, read_whole

_DTYPES: Final = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx(path: str | Path) -> npt.NDArray[Any]:
    """The array of an idx file, plain or gzipped, in this machine's byte order.

    Raises:
        CorruptionError: it is no idx file, or has fewer or more bytes than its header says.
    """
    raw = read_whole(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _DTYPES:
        raise CorruptionError(
            "a file is no idx file",
            file=path,
            byte=0,
            expected="00 00 and a dtype",
            found=raw[:4].hex(" ") or "nothing",
        )
    header = 4 + 4 * raw[3]
    if len(raw) < header:
        raise CorruptionError("an idx file ends in its header", file=path, expected_bytes=header, found_bytes=len(raw))
    shape = struct.unpack(f">{raw[3]}I", raw[4:header])
    dtype = np.dtype(_DTYPES[raw[2]])
    expected = header + dtype.itemsize * int(np.prod(shape, dtype=object))
    if len(raw) != expected:
        raise CorruptionError(
            "an idx file has another length than its header says",
            file=path,
            shape=shape,
            expected_bytes=expected,
            found_bytes=len(raw),
            next_move="Fetch it again.",
        )
    return np.frombuffer(raw, dtype, offset=header).reshape(shape).astype(dtype.newbyteorder("="))


class MNIST(ArrayDataset):
    """Handwritten digits: samples are (image, label), uint8 (28, 28) and int64 from 0 to 9.

    Args:
        folder: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the two of `t10k-`, plain or .gz. With
            the `t10k` pair alone, its first four fifths (rows 0 to 7,999) are the training set and the rest the other.
        train: which half.

    Raises:
        UsageError: a file is missing.
        CorruptionError: a file is damaged, or the halves of a pair do not belong together.

    Reference: Y. LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998.
    """

    def __init__(self, folder: str | Path, *, train: bool = True) -> None:
        super().__init__(*_pair(folder, train=train))


class FashionMNIST(ArrayDataset):
    """Pictures of clothes in ten classes; files and samples are those of `MNIST`.

    Reference: H. Xiao et al., Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning, 2017.
    """

    def __init__(self, folder: str | Path, *, train: bool = True) -> None:
        super().__init__(*_pair(folder, train=train))


def _pair(folder: str | Path, *, train: bool) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    whole = find(folder, _names("train", "images-idx3")) is not None
    part = "train" if train and whole else "t10k"
    images_at = needed(folder, _names(part, "images-idx3"), "images")
    labels_at = needed(folder, _names(part, "labels-idx1"), "labels")
    images, labels = _read(images_at, 3), _read(labels_at, 1)
    if len(images) != len(labels):
        raise CorruptionError(
            "images and labels are not as many", file=images_at, images=len(images), labels=len(labels)
        )
    if whole:
        return images, labels.astype(np.int64)
    cut = len(images) * 4 // 5
    rows = slice(None, cut) if train else slice(cut, None)
    return images[rows], labels[rows].astype(np.int64)


def _names(part: str, kind: str) -> list[str]:
    return [f"{part}-{kind}-ubyte", f"{part}-{kind.replace('-', '.')}-ubyte"]


def _read(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    found = idx(path)
    if found.ndim != axes or found.dtype != np.uint8:
        raise CorruptionError(
            "an idx file holds something else",
            file=path,
            expected=f"uint8 of {axes} axes",
            found=f"{found.dtype} of {found.ndim}",
        )
    return found
