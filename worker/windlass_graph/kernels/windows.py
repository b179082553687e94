"""A window that moves over images: the geometry that convolution and pooling have in common.

Images are `(batch, channels, *size)` with one to three axes of space, the last one contiguous. Inside they always have
three, the missing ones in front, of size 1: one loop serves them all.

    out = (size + 2 * padding - dilation * (kernel_size - 1) - 1) // stride + 1        along each axis

Invariant: `of` checks everything, so whoever has a `Window` has one that fits its images: every axis of `out` is >= 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UsageError

Extent = tuple[int, int, int]
AXES_MAX = 3


@dataclass(frozen=True, slots=True)
class Window:
    """Sizes along three axes of space; `out` is how often the window fits."""

    size: Extent
    kernel_size: Extent
    stride: Extent
    padding: Extent
    dilation: Extent
    out: Extent

    @staticmethod
    def of(
        size: Sequence[int],
        kernel_size: Sequence[int],
        stride: Sequence[int] | None = None,
        padding: Sequence[int] | None = None,
        dilation: Sequence[int] | None = None,
    ) -> Window:
        """The window of `kernel_size` on images of `size`, each with one to three axes.

        Raises:
            UsageError: an axis is missing, a number is out of range, or the window is larger than the padded image.
        """
        axes = len(kernel_size)
        return _window(
            tuple(size),
            tuple(kernel_size),
            tuple(stride if stride is not None else (1,) * axes),
            tuple(padding if padding is not None else (0,) * axes),
            tuple(dilation if dilation is not None else (1,) * axes),
        )

    @property
    def points(self) -> int:
        """Elements of one channel of the images."""
        return math.prod(self.size)

    @property
    def places(self) -> int:
        """How often the window fits: elements of one channel of what comes out."""
        return math.prod(self.out)

    @property
    def taps(self) -> int:
        """Elements of the window."""
        return math.prod(self.kernel_size)

    @property
    def is_point(self) -> bool:
        """Whether each place sees one element, the one at its own place."""
        return self.taps == 1 and self.out == self.size and self.stride == (1, 1, 1)

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """size, kernel_size, stride, padding, dilation, out: 18 numbers, as loops take them."""
        return _numbers(self)


@functools.lru_cache(maxsize=1024)
def _numbers(window: Window) -> npt.NDArray[np.int64]:
    parts = (window.size, window.kernel_size, window.stride, window.padding, window.dilation, window.out)
    numbers = np.array([number for part in parts for number in part], np.int64)
    numbers.setflags(write=False)
    return numbers


@functools.lru_cache(maxsize=1024)
def _window(
    size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Window:
    given: dict[str, Any] = {"size": size, "kernel_size": kernel_size, "stride": stride, "padding": padding}
    given["dilation"] = dilation
    axes = len(size)
    if not 1 <= axes <= AXES_MAX or any(len(numbers) != axes for numbers in given.values()):
        raise UsageError(
            "a window needs one number for each of one to three axes of space",
            next_move="give all of them the same length",
            **given,
        )
    if min(kernel_size) < 1 or min(stride) < 1 or min(dilation) < 1 or min(padding) < 0 or min(size) < 1:
        raise UsageError(
            "sizes, strides and dilations are at least 1, padding at least 0", next_move="change them", **given
        )
    out = tuple(
        (size[k] + 2 * padding[k] - dilation[k] * (kernel_size[k] - 1) - 1) // stride[k] + 1 for k in range(axes)
    )
    if min(out) < 1:
        raise UsageError(
            "the window is larger than the padded images", next_move="make it smaller, or pad more", **given
        )
    return Window(*(_in_three(numbers, fill) for numbers, fill in zip(
        (size, kernel_size, stride, padding, dilation, out), (1, 1, 1, 0, 1, 1), strict=True
    )))  # fmt: skip


def _in_three(numbers: tuple[int, ...], fill: int) -> Extent:
    first, second, third = (fill,) * (AXES_MAX - len(numbers)) + numbers
    return first, second, third
