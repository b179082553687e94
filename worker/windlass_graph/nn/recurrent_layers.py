"""Recurrent layers over all their steps: stacks of RNN, LSTM and GRU, in one or two directions.

Invariant: weights are named l0_i2h_weight, l0_h2h_weight, l0_i2h_bias, l0_h2h_bias, those of the second direction
begin with r0_; the rows of a weight are the gates, i f g o of an LSTM and r z n of a GRU. Data are (steps, batch,
features) with layout "TNC", (batch, steps, features) with "NTC"; states are (layers * directions, batch, units).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from windlass_graph import functions as F  # noqa: N812 - what the field calls it
from windlass_graph.initializers import Initializer
from windlass_graph.nn.hybrid_block import HybridBlock
from windlass_graph.nn.layers import count
from windlass_graph.nn.parameter import Parameter
from windlass_graph.recurrent import recurrent
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError

GATES = {"rnn": 1, "lstm": 4, "gru": 3}


class Recurrent(HybridBlock):
    """What recurrent layers have in common.

    `layer(x)` gives what the last layer gives at every step; `layer(x, states)` gives (that, the states after the last
    step). `begin_state` makes zeros for it.

    Args:
        hidden_size: units of each direction.
        num_layers: how many, one above the other.
        layout: "TNC" or "NTC".
        dropout: share that is dropped between layers in training.
        bidirectional: whether each layer has a second direction, from the last step to the first.
        input_size: told by the first forward unless given.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        hidden_size: int,
        num_layers: int = 1,
        layout: str = "TNC",
        dropout: float = 0.0,
        bidirectional: bool = False,
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
        self.num_layers = count("num_layers", num_layers)
        if layout not in ("TNC", "NTC"):
            raise UsageError("this is no layout", next_move=did_you_mean(str(layout), ("TNC", "NTC")), got=layout)
        if not 0 <= dropout < 1:
            raise UsageError("dropout is a share to drop", next_move="Give 0 <= dropout < 1.", dropout=dropout)
        self.layout = layout
        self.dropout = dropout
        self.bidirectional = bidirectional
        self.attrs: dict[str, Any] = {}
        self._weights: list[Parameter] = []
        gates = GATES[self.kind] * hidden_size
        features = None if input_size is None else count("input_size", input_size)
        for layer in range(num_layers):
            for way in ("l", "r")[: self.directions]:
                shapes = ((gates, features), (gates, hidden_size), (gates,), (gates,))
                inits = (i2h_weight_initializer, h2h_weight_initializer, i2h_bias_initializer, h2h_bias_initializer)
                names = ("i2h_weight", "h2h_weight", "i2h_bias", "h2h_bias")
                for name, shape, init in zip(names, shapes, inits, strict=True):
                    parameter = Parameter(shape, dtype, init)
                    setattr(self, f"{way}{layer}_{name}", parameter)
                    self._weights.append(parameter)
            features = hidden_size * self.directions

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def held(self) -> int:
        """How many states it has: h, of an LSTM h and c."""
        return 2 if self.kind == "lstm" else 1

    def begin_state(self, batch_size: int, device: Any = None, dtype: Any = "float32") -> list[Any]:
        """Zeros for the states before the first step."""
        from windlass_graph import nd

        shape = (self.num_layers * self.directions, batch_size, self.hidden_size)
        return [nd.zeros(shape, dtype, device) for _ in range(self.held)]

    def forward(self, x: Any, states: Any = None) -> Any:
        if self.layout == "NTC":
            x = F.transpose(x, axes=(1, 0, 2))
        out, last = recurrent(
            self.kind,
            x,
            [parameter.data() for parameter in self._weights],
            units=self.hidden_size,
            bidirectional=self.bidirectional,
            between=(lambda given: F.dropout(given, p=self.dropout)) if self.dropout else None,
            states=self._split(states),
            **self.attrs,
        )
        if self.layout == "NTC":
            out = F.transpose(out, axes=(1, 0, 2))
        if states is None:
            return out
        stacked = [_stacked(last[i :: self.held]) for i in range(self.held)]
        return out, stacked if isinstance(states, list | tuple) else stacked[0]

    def _split(self, states: Any) -> list[Any]:
        """The states of each layer and direction: h, of an LSTM h and c."""
        if states is None:
            return []
        listed: Sequence[Any] = states if isinstance(states, list | tuple) else [states]
        if len(listed) != self.held:
            raise UsageError(
                f"{type(self).__name__} has {self.held} states",
                next_move="Give those of begin_state().",
                got=len(listed),
            )
        parts = []
        for i in range(self.num_layers * self.directions):
            parts += [F.squeeze(F.slice_axis(state, axis=0, begin=i, end=i + 1), axis=0) for state in listed]
        return parts

    def settings(self) -> str:
        features = self._weights[0].shape[1] if self._weights[0].shape else None
        shown = [f"{'?' if features is None else features} -> {self.hidden_size}", self.layout]
        if self.num_layers > 1:
            shown.append(f"layers={self.num_layers}")
        if self.dropout:
            shown.append(f"dropout={self.dropout}")
        return ", ".join(shown + (["bidirectional"] if self.bidirectional else []))


def _stacked(states: Sequence[Any]) -> Any:
    return F.concat(*[F.expand_dims(state, axis=0) for state in states], axis=0)


class RNN(Recurrent):
    """h = activation(W x + b + U h + d). See `Recurrent`.

    Source: Elman, Finding structure in time, Cognitive Science 14, 1990.
    """

    kind = "rnn"

    def __init__(self, hidden_size: int, num_layers: int = 1, activation: str = "relu", **options: Any) -> None:
        super().__init__(hidden_size, num_layers, **options)
        if activation not in ("relu", "tanh"):
            move = did_you_mean(str(activation), ("relu", "tanh"))
            raise UsageError("this is no activation of an RNN", next_move=move, got=activation)
        self.attrs["activation"] = activation


class LSTM(Recurrent):
    """Long short-term memory, with two states h and c. See `Recurrent`.

    Source: Hochreiter and Schmidhuber, Neural Computation 9, 1997; with the forget gate of Gers et al., 2000.
    """

    kind = "lstm"


class GRU(Recurrent):
    """Gated recurrent units; the reset gate multiplies after the product with h, as in cuDNN. See `Recurrent`.

    Source: Cho et al., Learning phrase representations using RNN encoder-decoder, EMNLP 2014.
    """

    kind = "gru"
