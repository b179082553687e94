"""Max and mean pooling along one to three axes, by a window or over all of them, as layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from windlass_graph.functions import function
from windlass_graph.nn.convolutions import numbers
from windlass_graph.nn.hybrid_block import HybridBlock


class MaxPool(HybridBlock):
    """The largest element of each window.

    Args:
        pool_size: of the window, along each axis.
        strides: steps of the window; as large as the window unless given.
        padding: elements on both ends that no window chooses.
    """

    axes: ClassVar[int]

    def __init__(
        self,
        pool_size: int | Sequence[int] = 2,
        strides: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
    ) -> None:
        super().__init__()
        self.attrs: dict[str, Any] = _window(pool_size, strides, padding, self.axes)

    def forward(self, x: Any) -> Any:
        return function("max_pool")(x, **self.attrs)

    def settings(self) -> str:
        return _shown(self.attrs)


class MaxPool1D(MaxPool):
    """Of (batch, channels, width). See `MaxPool`."""

    axes = 1


class MaxPool2D(MaxPool):
    """Of (batch, channels, height, width). See `MaxPool`."""

    axes = 2


class MaxPool3D(MaxPool):
    """Of (batch, channels, depth, height, width). See `MaxPool`."""

    axes = 3


class AvgPool(HybridBlock):
    """The mean of each window.

    Args:
        pool_size: of the window, along each axis.
        strides: steps of the window; as large as the window unless given.
        padding: zeros on both ends.
        count_include_pad: whether the padding counts in the mean.
    """

    axes: ClassVar[int]

    def __init__(
        self,
        pool_size: int | Sequence[int] = 2,
        strides: int | Sequence[int] | None = None,
        padding: int | Sequence[int] = 0,
        count_include_pad: bool = True,
    ) -> None:
        super().__init__()
        self.attrs: dict[str, Any] = _window(pool_size, strides, padding, self.axes)
        self.attrs["count_include_pad"] = count_include_pad

    def forward(self, x: Any) -> Any:
        return function("mean_pool")(x, **self.attrs)

    def settings(self) -> str:
        return _shown(self.attrs)


class AvgPool1D(AvgPool):
    """Of (batch, channels, width). See `AvgPool`."""

    axes = 1


class AvgPool2D(AvgPool):
    """Of (batch, channels, height, width). See `AvgPool`."""

    axes = 2


class AvgPool3D(AvgPool):
    """Of (batch, channels, depth, height, width). See `AvgPool`."""

    axes = 3


class GlobalMaxPool(HybridBlock):
    """The largest element of each channel, with axes of space of 1; of any number of axes."""

    def forward(self, x: Any) -> Any:
        return function("max_pool")(x, global_pool=True)


class GlobalAvgPool(HybridBlock):
    """The mean of each channel, with axes of space of 1; of any number of axes."""

    def forward(self, x: Any) -> Any:
        return function("mean_pool")(x, global_pool=True)


def _window(
    pool_size: int | Sequence[int], strides: int | Sequence[int] | None, padding: int | Sequence[int], axes: int
) -> dict[str, Any]:
    size = numbers("pool_size", pool_size, axes)
    stride = size if strides is None else numbers("strides", strides, axes)
    return {"kernel_size": size, "stride": stride, "padding": numbers("padding", padding, axes)}


def _shown(attrs: dict[str, Any]) -> str:
    padded = f", padding={attrs['padding']}" if any(attrs["padding"]) else ""
    return f"size={attrs['kernel_size']}, stride={attrs['stride']}{padded}"
