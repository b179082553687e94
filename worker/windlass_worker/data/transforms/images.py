"""Transforms of images that draw nothing: to a tensor, normalise, cast, crop the centre, resize.

An image is (height, width) or (height, width, channels) until `ToTensor`, which makes it (channels, height, width).
What changes the shape belongs before it, `Normalize` after it.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UsageError
from windlass_worker.data.transforms.resampling import METHODS, Size, height_width, resize

Image = npt.NDArray[Any]


class ToTensor:
    """uint8 from 0 to 255 to float32 from 0 to 1; (height, width[, channels]) to (channels, height, width)."""

    def __call__(self, image: Image) -> npt.NDArray[np.float32]:
        image = checked_image("ToTensor", image)
        if image.dtype != np.uint8:
            raise UsageError("ToTensor needs uint8", dtype=image.dtype, next_move='Use Cast("float32") for others.')
        channels_first = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
        return np.multiply(channels_first, np.float32(1 / 255), dtype=np.float32, order="C")


class Normalize:
    """(x - mean) / std for each channel of a tensor (channels, height, width), or the same for all."""

    def __init__(self, mean: float | tuple[float, ...], std: float | tuple[float, ...]) -> None:
        self._mean = np.asarray(mean, np.float32).reshape(-1, 1, 1)
        self._std = np.asarray(std, np.float32).reshape(-1, 1, 1)
        if not (self._std > 0).all():
            raise UsageError("Normalize needs a std above 0", std=std)

    def __call__(self, tensor: Image) -> Image:
        channels = tensor.shape[0] if tensor.ndim == 3 else 0
        if not channels or {len(self._mean), len(self._std)} - {1, channels}:
            raise UsageError(
                "Normalize has other channels than the tensor",
                mean=len(self._mean),
                std=len(self._std),
                shape=tensor.shape,
                next_move="Give one number, or one for each channel; put ToTensor before it.",
            )
        return (tensor - self._mean) / self._std


class Cast:
    """To another dtype."""

    def __init__(self, dtype: npt.DTypeLike) -> None:
        self._dtype = np.dtype(dtype)

    def __call__(self, sample: Any) -> Image:
        return np.asarray(sample).astype(self._dtype)


class CenterCrop:
    """The middle (height, width) of an image."""

    def __init__(self, size: Size) -> None:
        self._size = height_width(size)

    def __call__(self, image: Image) -> Image:
        image = checked_image("CenterCrop", image)
        top, left = room("CenterCrop", image, self._size)
        return crop(image, top // 2, left // 2, *self._size)


class Resize:
    """To (height, width), by "bilinear" or "nearest" sampling; a number with `keep_ratio` is the shorter side."""

    def __init__(
        self, size: Size, method: Literal["bilinear", "nearest"] = "bilinear", *, keep_ratio: bool = False
    ) -> None:
        self._size = height_width(size)
        if method not in METHODS:
            raise UsageError("images are resized otherwise", method=method, known=", ".join(METHODS))
        if keep_ratio and not isinstance(size, int):
            raise UsageError("keep_ratio needs the shorter side, one number", size=size)
        self._method = method
        self._keep_ratio = keep_ratio

    def __call__(self, image: Image) -> Image:
        image = checked_image("Resize", image)
        height, width = self._size
        if self._keep_ratio:
            shorter = min(image.shape[:2])
            height, width = (max(1, round(side * height / shorter)) for side in image.shape[:2])
        return resize(image, height, width, self._method)


def checked_image(name: str, image: Any) -> Image:
    """`image` as an array, if it has the shape of one."""
    found = np.asarray(image)
    if found.ndim not in (2, 3):
        raise UsageError(f"{name} needs an image (height, width[, channels])", shape=found.shape)
    return found


def crop(image: Image, top: int, left: int, height: int, width: int) -> Image:
    """A view of a part of the image."""
    return image[top : top + height, left : left + width]


def room(name: str, image: Image, size: tuple[int, int]) -> tuple[int, int]:
    """By how much the image is higher and wider than `size`."""
    spare = image.shape[0] - size[0], image.shape[1] - size[1]
    if min(spare) < 0:
        raise UsageError(
            f"{name} is larger than the image",
            size=size,
            image=image.shape[:2],
            next_move="Resize or pad the image before.",
        )
    return spare
