"""Recurrent cells: one step at a time, and `unroll` for many; written with ops, differentiable to any order.

Invariant: a cell takes (x, states) and gives (output, states), both lists of (batch, hidden_size). Its weights have the
names, shapes and order of gates of the layers' (`recurrent_layers`), without the layer's prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from windlass_graph import functions as F  # noqa: N812 - what the field calls it
from windlass_graph.initializers import Initializer
from windlass_graph.nn.hybrid_block import HybridBlock
from windlass_graph.nn.layers import count
from windlass_graph.nn.parameter import Parameter
from windlass_graph.nn.recurrent_layers import GATES
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError


class RecurrentCell(HybridBlock):
    """What cells have in common.

    Args:
        hidden_size: units.
        input_size: told by the first forward unless given.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        hidden_size: int,
        *,
        input_size: int | None = None,
        dtype: Any = "float32",
        i2h_weight_initializer: Initializer | str | None = None,
        h2h_weight_initializer: Initializer | str | None = None,
        i2h_bias_initializer: Initializer | str = "zeros",
        h2h_bias_initializer: Initializer | str = "zeros",
    ) -> None:
        super().__init__()
        self.hidden_size = count("hidden_size", hidden_size)
        rows = GATES[self.kind] * hidden_size
        self.i2h_weight = Parameter((rows, input_size), dtype, i2h_weight_initializer)
        self.h2h_weight = Parameter((rows, hidden_size), dtype, h2h_weight_initializer)
        self.i2h_bias = Parameter((rows,), dtype, i2h_bias_initializer)
        self.h2h_bias = Parameter((rows,), dtype, h2h_bias_initializer)

    @property
    def held(self) -> int:
        """How many states it has."""
        return 2 if self.kind == "lstm" else 1

    def begin_state(self, batch_size: int, device: Any = None, dtype: Any = "float32") -> list[Any]:
        """Zeros for the states before the first step."""
        from windlass_graph import nd

        return [nd.zeros((batch_size, self.hidden_size), dtype, device) for _ in range(self.held)]

    def products(self, x: Any, h: Any) -> tuple[Any, Any]:
        """W x + b and U h + d, of all gates."""
        units = GATES[self.kind] * self.hidden_size
        by_x = F.fully_connected(x, self.i2h_weight.data(), self.i2h_bias.data(), units=units)
        return by_x, F.fully_connected(h, self.h2h_weight.data(), self.h2h_bias.data(), units=units)

    def gates(self, both: Any) -> list[Any]:
        """The columns of each gate."""
        size = self.hidden_size
        return [F.slice_axis(both, axis=1, begin=i * size, end=(i + 1) * size) for i in range(GATES[self.kind])]

    def unroll(
        self, length: int, inputs: Any, begin_state: Sequence[Any] | None = None, layout: str = "NTC"
    ) -> tuple[Any, list[Any]]:
        """Run `length` steps.

        Args:
            length: of the sequence.
            inputs: one operand by `layout` ("NTC" or "TNC"), or a list with one (batch, features) for each step.
            begin_state: zeros unless given.

        Returns:
            The outputs by `layout` (a list if the inputs are one), and the states after the last step.

        Raises:
            UsageError: the inputs have another number of steps.
        """
        if layout not in ("NTC", "TNC"):
            raise UsageError("this is no layout", next_move=did_you_mean(str(layout), ("NTC", "TNC")), got=layout)
        axis = layout.index("T")
        listed = isinstance(inputs, list | tuple)
        steps = list(inputs) if listed else self._steps(inputs, axis)
        if len(steps) != length:
            raise UsageError("the inputs have another number of steps", length=length, steps=len(steps))
        states = list(begin_state) if begin_state is not None else self._zeros_like(steps[0])
        outputs = []
        for x in steps:
            out, states = self(x, states)
            outputs.append(out)
        if listed:
            return outputs, states
        return F.concat(*[F.expand_dims(out, axis=axis) for out in outputs], axis=axis), states

    def _steps(self, inputs: Any, axis: int) -> list[Any]:
        count_ = inputs.shape[axis]
        return [F.squeeze(F.slice_axis(inputs, axis=axis, begin=i, end=i + 1), axis=axis) for i in range(count_)]

    def _zeros_like(self, x: Any) -> list[Any]:
        """Zeros of (batch, hidden_size), on the front of `x`."""
        column = F.zeros_like(F.slice_axis(x, axis=1, begin=0, end=1))
        zeros = F.concat(*[column] * self.hidden_size, axis=1) if self.hidden_size > 1 else column
        return [zeros] * self.held

    def settings(self) -> str:
        features = None if self.i2h_weight.shape is None else self.i2h_weight.shape[1]
        return f"{'?' if features is None else features} -> {self.hidden_size}"


class RNNCell(RecurrentCell):
    """h = activation(W x + b + U h + d)."""

    kind = "rnn"

    def __init__(self, hidden_size: int, activation: str = "tanh", **options: Any) -> None:
        super().__init__(hidden_size, **options)
        if activation not in ("relu", "tanh"):
            move = did_you_mean(str(activation), ("relu", "tanh"))
            raise UsageError("this is no activation of an RNN", next_move=move, got=activation)
        self.activation = activation

    def forward(self, x: Any, states: Sequence[Any]) -> Any:
        by_x, by_h = self.products(x, states[0])
        h = F.function(self.activation)(by_x + by_h)
        return h, [h]


class LSTMCell(RecurrentCell):
    """c = f c + i g, h = o tanh(c), gates i f g o."""

    kind = "lstm"

    def forward(self, x: Any, states: Sequence[Any]) -> Any:
        h, c = states
        by_x, by_h = self.products(x, h)
        i, f, g, o = self.gates(by_x + by_h)
        c = F.sigmoid(f) * c + F.sigmoid(i) * F.tanh(g)
        h = F.sigmoid(o) * F.tanh(c)
        return h, [h, c]


class GRUCell(RecurrentCell):
    """n = tanh(W x + b + r (U h + d)), h = (1 - z) n + z h, gates r z n."""

    kind = "gru"

    def forward(self, x: Any, states: Sequence[Any]) -> Any:
        (h,) = states
        by_x, by_h = self.products(x, h)
        r, z, n = self.gates(by_x)
        hr, hz, hn = self.gates(by_h)
        z = F.sigmoid(z + hz)
        n = F.tanh(n + F.sigmoid(r + hr) * hn)
        h = (1 - z) * n + z * h
        return h, [h]
