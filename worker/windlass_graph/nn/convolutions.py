"""Convolutions along one to three axes, and their transposes, as layers.

Data are (batch, channels, *space), weights (channels, in_channels // groups, *kernel_size); a transposed convolution
takes the weight of the one that it undoes. Numbers for an axis may be given once for all axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from windlass_graph.functions import function
from windlass_graph.initializers import Initializer
from windlass_graph.nn.activations import Activation
from windlass_graph.nn.hybrid_block import HybridBlock
from windlass_graph.nn.layers import count
from windlass_graph.nn.parameter import Parameter
from windlass_proto.errors import UsageError


def numbers(name: str, value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """One whole number for each axis.

    Raises:
        UsageError: there are more, or fewer.
    """
    found = (value,) * axes if isinstance(value, int) else tuple(value)
    if len(found) != axes or any(type(each) is not int for each in found):
        raise UsageError(f"{name} is one whole number, or one for each axis", axes=axes, got=value)
    return found


class Convolution(HybridBlock):
    """What convolutions of any number of axes have in common.

    Args:
        channels: of the output.
        kernel_size: of the window, along each axis.
        strides: steps of the window.
        padding: zeros on both ends of each axis.
        dilation: distance between the window's elements.
        groups: channels are convolved in so many groups, each with its own; as many as channels: depthwise.
        use_bias: whether one number a channel is added.
        in_channels: of the input, told by the first forward unless given.
        activation: name of an activation, none unless given.
        dtype: of the parameters.
        weight_initializer: None takes the net's.
        bias_initializer: zeros unless given.
    """

    axes: ClassVar[int]
    op: ClassVar[str] = "convolution"

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        *,
        use_bias: bool = True,
        in_channels: int | None = None,
        activation: str | None = None,
        dtype: Any = "float32",
        weight_initializer: Initializer | str | None = None,
        bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__()
        self.channels = count("channels", channels)
        self.attrs: dict[str, Any] = {
            "channels": channels,
            "kernel_size": numbers("kernel_size", kernel_size, self.axes),
            "stride": numbers("strides", strides, self.axes),
            "padding": numbers("padding", padding, self.axes),
            "dilation": numbers("dilation", dilation, self.axes),
            "groups": count("groups", groups),
            "use_bias": use_bias,
        }
        if in_channels is not None and count("in_channels", in_channels) % groups:
            raise UsageError("channels come in groups of one size", in_channels=in_channels, groups=groups)
        self.weight = Parameter(self._weight_shape(in_channels), dtype, weight_initializer)
        self.bias = Parameter((channels,), dtype, bias_initializer) if use_bias else None
        self.activation = None if activation is None else Activation(activation)

    def _weight_shape(self, in_channels: int | None) -> tuple[int | None, ...]:
        per_group = None if in_channels is None else in_channels // self.attrs["groups"]
        return (self.channels, per_group, *self.attrs["kernel_size"])

    def forward(self, x: Any) -> Any:
        operands = [x, self.weight.data()] + ([] if self.bias is None else [self.bias.data()])
        y = function(self.op)(*operands, **self.attrs)
        return y if self.activation is None else self.activation(y)

    def settings(self) -> str:
        shown = [f"{self.channels}", f"kernel_size={self.attrs['kernel_size']}"]
        for name, plain in (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0)):
            value = self.attrs.get(name, (plain,))
            if any(each != plain for each in value):
                shown.append(f"{name}={value}")
        if self.attrs["groups"] != 1:
            shown.append(f"groups={self.attrs['groups']}")
        return ", ".join(shown + ([] if self.activation is None else [self.activation.name]))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.settings()})"


class Conv1D(Convolution):
    """A convolution along one axis, of (batch, channels, width). See `Convolution`."""

    axes = 1


class Conv2D(Convolution):
    """A convolution along two axes, of (batch, channels, height, width). See `Convolution`."""

    axes = 2


class Conv3D(Convolution):
    """A convolution along three axes, of (batch, channels, depth, height, width). See `Convolution`."""

    axes = 3


class TransposedConvolution(Convolution):
    """What transposed convolutions have in common; they are also called deconvolutions.

    The arguments are those of `Convolution`, and `output_padding`: which of the sizes that one stride covers comes out.
    """

    op = "transposed_convolution"

    def __init__(
        self,
        channels: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(channels, kernel_size, strides, padding, dilation, groups, **options)
        self.attrs["output_padding"] = numbers("output_padding", output_padding, self.axes)

    def _weight_shape(self, in_channels: int | None) -> tuple[int | None, ...]:
        return (in_channels, self.channels // self.attrs["groups"], *self.attrs["kernel_size"])


class Conv1DTranspose(TransposedConvolution):
    """A transposed convolution along one axis. See `TransposedConvolution`."""

    axes = 1


class Conv2DTranspose(TransposedConvolution):
    """A transposed convolution along two axes. See `TransposedConvolution`."""

    axes = 2


class Conv3DTranspose(TransposedConvolution):
    """A transposed convolution along three axes. See `TransposedConvolution`."""

    axes = 3
