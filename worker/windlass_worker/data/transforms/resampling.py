"""Resizing an image: nearest and bilinear.

Output pixel i has its centre at (i + 1/2) * input / output of the input; "nearest" takes the pixel that contains it,
"bilinear" weighs the two around it on each axis, and the edge repeats outside. There is no smoothing before making
smaller. Integers are rounded half to even and never leave their range, since weights are shares of one.
"""

from __future__ import annotations

import functools
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UsageError

METHODS: Final = ("bilinear", "nearest")
Size: TypeAlias = int | tuple[int, int]


def height_width(size: Size) -> tuple[int, int]:
    """`size` as (height, width); one number is a square."""
    found = (size, size) if isinstance(size, int) else tuple(size)
    if len(found) != 2 or min(found) < 1:
        raise UsageError("a size is a number of pixels, or (height, width)", size=size)
    return found[0], found[1]


def resize(image: npt.NDArray[Any], height: int, width: int, method: str) -> npt.NDArray[Any]:
    """`image` (height, width[, channels]) at another size, in its dtype."""
    if image.shape[:2] == (height, width):
        return image
    if method == "nearest":
        return image[_nearest(image.shape[0], height)][:, _nearest(image.shape[1], width)]
    found = _blend(image.astype(np.float32), 0, height)
    found = _blend(found, 1, width)
    return (np.rint(found) if np.issubdtype(image.dtype, np.integer) else found).astype(image.dtype)


def _blend(image: npt.NDArray[np.float32], axis: int, size: int) -> npt.NDArray[np.float32]:
    """Bilinear on one axis: lower + share * (upper - lower)."""
    if image.shape[axis] == size:
        return image
    lower, upper, share = _neighbours(image.shape[axis], size)
    below = image.take(lower, axis)
    above = image.take(upper, axis)
    above -= below
    above *= share.reshape([-1 if i == axis else 1 for i in range(image.ndim)])
    above += below
    return above


@functools.lru_cache(maxsize=64)
def _nearest(source: int, size: int) -> npt.NDArray[np.int64]:
    return ((2 * np.arange(size) + 1) * source // (2 * size)).astype(np.int64)


@functools.lru_cache(maxsize=64)
def _neighbours(source: int, size: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each output pixel, the two input pixels around its centre and the share of the second."""
    centre = np.clip((np.arange(size) + 0.5) * source / size - 0.5, 0, source - 1)
    lower = np.floor(centre).astype(np.int64)
    return lower, np.minimum(lower + 1, source - 1), (centre - lower).astype(np.float32)
