"""Layers of every net: dense, embedding, dropout, flatten.

Invariant: a weight's unknown input size is told by the first forward, through its op's `complete`.
"""

from __future__ import annotations

from typing import Any

from windlass_graph.functions import function
from windlass_graph.initializers import Initializer
from windlass_graph.nn.activations import Activation
from windlass_graph.nn.hybrid_block import HybridBlock
from windlass_graph.nn.parameter import Parameter
from windlass_proto.errors import UsageError


def count(name: str, value: Any) -> int:
    """A whole number above 0.

    Raises:
        UsageError: it is none.
    """
    if type(value) is not int or value < 1:
        raise UsageError(f"{name} is a whole number above 0", got=repr(value))
    return value


class Dense(HybridBlock):
    """y = activation(x @ weight.T + bias), weight of (units, in_units).

    Args:
        units: size of the output.
        activation: name of an activation, none unless given.
        use_bias: whether a bias is added.
        flatten: all axes but the first are features; otherwise the last one alone.
        dtype: of the parameters.
        weight_initializer: None takes the net's.
        bias_initializer: zeros unless given.
        in_units: size of the input, told by the first forward unless given.
    """

    def __init__(
        self,
        units: int,
        activation: str | None = None,
        *,
        use_bias: bool = True,
        flatten: bool = True,
        dtype: Any = "float32",
        weight_initializer: Initializer | str | None = None,
        bias_initializer: Initializer | str = "zeros",
        in_units: int | None = None,
    ) -> None:
        super().__init__()
        self.units = count("units", units)
        self.flatten = flatten
        if in_units is not None:
            count("in_units", in_units)
        self.weight = Parameter((units, in_units), dtype, weight_initializer)
        self.bias = Parameter((units,), dtype, bias_initializer) if use_bias else None
        self.activation = None if activation is None else Activation(activation)

    def forward(self, x: Any) -> Any:
        attrs = {"units": self.units, "flatten": self.flatten, "use_bias": self.bias is not None}
        operands = [x, self.weight.data()] + ([] if self.bias is None else [self.bias.data()])
        y = function("fully_connected")(*operands, **attrs)
        return y if self.activation is None else self.activation(y)

    def settings(self) -> str:
        fan_in = None if self.weight.shape is None else self.weight.shape[1]
        shown = f"{'?' if fan_in is None else fan_in} -> {self.units}"
        return shown if self.activation is None else f"{shown}, {self.activation.name}"

    def __repr__(self) -> str:
        return f"Dense({self.settings()})"


class Embedding(HybridBlock):
    """Rows of a weight of (input_dim, output_dim) by index."""

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        dtype: Any = "float32",
        weight_initializer: Initializer | str | None = None,
    ) -> None:
        super().__init__()
        self.input_dim = count("input_dim", input_dim)
        self.output_dim = count("output_dim", output_dim)
        self.weight = Parameter((input_dim, output_dim), dtype, weight_initializer)

    def forward(self, indices: Any) -> Any:
        sizes = {"input_size": self.input_dim, "output_size": self.output_dim}
        return function("embedding")(indices, self.weight.data(), **sizes)

    def settings(self) -> str:
        return f"{self.input_dim} -> {self.output_dim}"


class Dropout(HybridBlock):
    """In training each element is 0 with probability `rate`, and the others are divided by 1 - rate.

    Source: Srivastava et al., Dropout, JMLR 15, 2014; scaled while training, so that prediction leaves x alone.

    Args:
        rate: the share that is dropped, 0 <= rate < 1.
        axes: along which one decision holds for all elements, as for whole channels; none unless given.
    """

    def __init__(self, rate: float, axes: tuple[int, ...] = ()) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise UsageError("dropout's rate is a share to drop", next_move="Give 0 <= rate < 1.", rate=rate)
        self.rate = rate
        self.axes = tuple(axes)

    def forward(self, x: Any) -> Any:
        if not self.axes:
            return function("dropout")(x, p=self.rate)
        ones = function("max")(function("ones_like")(x), axis=self.axes, keepdims=True)
        return x * function("dropout")(ones, p=self.rate)

    def settings(self) -> str:
        return f"{self.rate}" + (f", axes={self.axes}" if self.axes else "")


class Flatten(HybridBlock):
    """The first axis stays, the others become one."""

    def forward(self, x: Any) -> Any:
        return function("flatten")(x)
