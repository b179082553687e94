"""Random transforms of images: crops, flips, brightness and contrast.

Images are (height, width[, channels]), before `ToTensor`; the jitters keep the dtype and clip integers to their range.
Each draws a fixed number of values a sample, so what comes behind it in a chain never depends on what it found.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from windlass_proto.errors import UsageError
from windlass_worker.data.transforms.images import Image, checked_image, crop, room
from windlass_worker.data.transforms.resampling import METHODS, Size, height_width, resize


class RandomCrop:
    """A (height, width) part of an image, anywhere in it; `padding` pixels of `fill` are put around it before."""

    def __init__(self, size: Size, *, padding: int = 0, fill: float = 0) -> None:
        if padding < 0:
            raise UsageError("padding is none or more pixels", padding=padding)
        self._size = height_width(size)
        self._padding = padding
        self._fill = fill

    def randomly(self, image: Image, rng: np.random.Generator) -> Image:
        """The part."""
        image = checked_image("RandomCrop", image)
        if self._padding:
            around = [(self._padding, self._padding)] * 2 + [(0, 0)] * (image.ndim - 2)
            image = np.pad(image, around, constant_values=self._fill)
        spare = room("RandomCrop", image, self._size)
        top, left = rng.integers(0, spare, endpoint=True)
        return crop(image, int(top), int(left), *self._size)


class RandomResizedCrop:
    """A part of random area and proportions, resized to (height, width).

    The area is a share of the image's drawn from `scale`, width / height drawn from `ratio` evenly in its logarithm;
    ten draws are tried, and where none fits in the image, its largest middle part of allowed proportions is taken.
    Reference: C. Szegedy et al., Going Deeper with Convolutions, CVPR 2015, section 6.
    """

    _DRAWS = 10

    def __init__(
        self,
        size: Size,
        *,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        method: Literal["bilinear", "nearest"] = "bilinear",
    ) -> None:
        for name, (low, high) in (("scale", scale), ("ratio", ratio)):
            if not 0 < low <= high:
                raise UsageError(f"{name} is a range above 0", low=low, high=high)
        if method not in METHODS:
            raise UsageError("images are resized otherwise", method=method, known=", ".join(METHODS))
        self._size = height_width(size)
        self._scale = scale
        self._ratio = ratio
        self._method = method

    def randomly(self, image: Image, rng: np.random.Generator) -> Image:
        """The part, resized."""
        image = checked_image("RandomResizedCrop", image)
        drawn = rng.random((self._DRAWS, 2))
        at = rng.random(2)
        height, width = self._part(image.shape[0], image.shape[1], drawn)
        top = int(at[0] * (image.shape[0] - height + 1))
        left = int(at[1] * (image.shape[1] - width + 1))
        return resize(crop(image, top, left, height, width), *self._size, self._method)

    def _part(self, height: int, width: int, drawn: Any) -> tuple[int, int]:
        """Height and width of the first draw that fits."""
        log_low, log_high = (math.log(bound) for bound in self._ratio)
        for share, proportion in drawn:
            area = height * width * (self._scale[0] + share * (self._scale[1] - self._scale[0]))
            ratio = math.exp(log_low + proportion * (log_high - log_low))
            high, wide = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 1 <= high <= height and 1 <= wide <= width:
                return high, wide
        ratio = min(max(width / height, self._ratio[0]), self._ratio[1])
        return max(1, min(height, round(width / ratio))), max(1, min(width, round(height * ratio)))


class RandomFlipLeftRight:
    """Mirrored left to right, with `probability`."""

    def __init__(self, probability: float = 0.5) -> None:
        self._probability = _share("probability", probability)

    def randomly(self, image: Image, rng: np.random.Generator) -> Image:
        """The image or its mirror image."""
        flipped = rng.random() < self._probability
        return checked_image("RandomFlipLeftRight", image)[:, ::-1] if flipped else image


class RandomFlipTopBottom:
    """Mirrored top to bottom, with `probability`."""

    def __init__(self, probability: float = 0.5) -> None:
        self._probability = _share("probability", probability)

    def randomly(self, image: Image, rng: np.random.Generator) -> Image:
        """The image or its mirror image."""
        flipped = rng.random() < self._probability
        return checked_image("RandomFlipTopBottom", image)[::-1] if flipped else image


class RandomBrightness:
    """Times a factor drawn evenly from 1 - `amount` to 1 + `amount`."""

    def __init__(self, amount: float) -> None:
        self._amount = _share("amount", amount)

    def randomly(self, image: Image, rng: np.random.Generator) -> Image:
        """The image, brighter or darker."""
        factor = 1 + self._amount * (2 * rng.random() - 1)
        return _in_range(image.astype(np.float32) * np.float32(factor), image.dtype)


class RandomContrast:
    """Distances from the image's mean grey times a factor drawn evenly from 1 - `amount` to 1 + `amount`."""

    def __init__(self, amount: float) -> None:
        self._amount = _share("amount", amount)

    def randomly(self, image: Image, rng: np.random.Generator) -> Image:
        """The image, with more or less contrast."""
        factor = np.float32(1 + self._amount * (2 * rng.random() - 1))
        values = image.astype(np.float32)
        mean = values.mean()
        return _in_range(mean + factor * (values - mean), image.dtype)


def _in_range(values: Any, dtype: Any) -> Image:
    """Back to `dtype`: integers rounded and clipped to their range."""
    if np.issubdtype(dtype, np.integer):
        bounds = np.iinfo(dtype)
        values = np.clip(np.rint(values), bounds.min, bounds.max)
    found: Image = values.astype(dtype)
    return found


def _share(name: str, given: float) -> float:
    if not 0 <= given <= 1:
        raise UsageError(f"{name} is from 0 to 1", given=given)
    return given
