"""Attention and the blocks that are made of it.

Data are (batch, steps, units). A mask is 1 where a query may see a key and 0 where not, and broadcasts to (batch,
heads, queries, keys). Source: Vaswani et al., Attention is all you need, NeurIPS 2017.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from windlass_graph import functions as F  # noqa: N812 - what the field calls it
from windlass_graph.attention import join_heads, split_heads
from windlass_graph.initializers import Initializer
from windlass_graph.nn.activations import Activation
from windlass_graph.nn.hybrid_block import HybridBlock
from windlass_graph.nn.layers import Dense, Dropout, count
from windlass_graph.nn.norms import LayerNorm
from windlass_graph.nn.parameter import Constant
from windlass_proto.errors import UsageError


class MultiHeadAttention(HybridBlock):
    """Attention of several heads: softmax(q k^T / sqrt(units / heads)) v for each, joined and projected (3.2.2).

    Args:
        units: of the projections and of the output, a multiple of `num_heads`.
        num_heads: how many.
        dropout: share of the output that is dropped in training.
        use_bias: whether projections have biases.
        weight_initializer: None takes the net's.
    """

    def __init__(
        self,
        units: int,
        num_heads: int,
        dropout: float = 0.0,
        *,
        use_bias: bool = True,
        weight_initializer: Initializer | str | None = None,
    ) -> None:
        super().__init__()
        if count("units", units) % count("num_heads", num_heads):
            raise UsageError("units are shared by the heads", units=units, num_heads=num_heads)
        self.num_heads = num_heads
        options: dict[str, Any] = {
            "flatten": False,
            "use_bias": use_bias,
            "weight_initializer": weight_initializer,
        }
        self.query = Dense(units, **options)
        self.key = Dense(units, **options)
        self.value = Dense(units, **options)
        self.out = Dense(units, **options)
        self.drop = Dropout(dropout)

    def forward(
        self, queries: Any, keys: Any = None, values: Any = None, mask: Any = None, causal: bool = False
    ) -> Any:
        """Of the queries to the keys; without keys to themselves, without values those are the keys."""
        keys = queries if keys is None else keys
        values = keys if values is None else values
        parts = [
            split_heads(project(source), self.num_heads)
            for project, source in ((self.query, queries), (self.key, keys), (self.value, values))
        ]
        masks = () if mask is None else (mask,)
        found = F.attention(*parts, *masks, causal=causal, use_mask=mask is not None)
        return self.drop(self.out(join_heads(found)))


class PositionwiseNetwork(HybridBlock):
    """Two dense layers on each step by itself (section 3.3)."""

    def __init__(self, units: int, hidden_size: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.hidden = Dense(hidden_size, flatten=False)
        self.activation = Activation(activation)
        self.drop = Dropout(dropout)
        self.out = Dense(units, flatten=False)

    def forward(self, x: Any) -> Any:
        return self.out(self.drop(self.activation(self.hidden(x))))


class TransformerEncoderBlock(HybridBlock):
    """Self-attention and a network on each step, each around a normalisation and beside an identity.

    Args:
        units: of the data.
        num_heads: of the attention.
        hidden_size: of the network; 4 * units unless given.
        dropout: share that is dropped in training, before each sum.
        activation: of the network.
        pre_norm: normalise what goes into each part; otherwise each sum, as in the paper.
    """

    def __init__(
        self,
        units: int,
        num_heads: int,
        hidden_size: int | None = None,
        dropout: float = 0.0,
        activation: str = "relu",
        *,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = MultiHeadAttention(units, num_heads, dropout)
        self.attention_norm = LayerNorm()
        self.network = PositionwiseNetwork(units, hidden_size or 4 * units, activation, dropout)
        self.network_norm = LayerNorm()
        self.drop = Dropout(dropout)

    def forward(self, x: Any, mask: Any = None, causal: bool = False) -> Any:
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), None, None, mask, causal)
            return x + self.drop(self.network(self.network_norm(x)))
        x = self.attention_norm(x + self.attention(x, None, None, mask, causal))
        return self.network_norm(x + self.drop(self.network(x)))


class TransformerDecoderBlock(HybridBlock):
    """Causal self-attention, attention to an encoder's output, and a network on each step.

    The arguments are those of `TransformerEncoderBlock`.
    """

    def __init__(
        self,
        units: int,
        num_heads: int,
        hidden_size: int | None = None,
        dropout: float = 0.0,
        activation: str = "relu",
        *,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = MultiHeadAttention(units, num_heads, dropout)
        self.attention_norm = LayerNorm()
        self.source_attention = MultiHeadAttention(units, num_heads, dropout)
        self.source_norm = LayerNorm()
        self.network = PositionwiseNetwork(units, hidden_size or 4 * units, activation, dropout)
        self.network_norm = LayerNorm()
        self.drop = Dropout(dropout)

    def forward(self, x: Any, source: Any, mask: Any = None, source_mask: Any = None) -> Any:
        """`mask` beside the causal one; `source_mask` of the encoder's steps."""
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), None, None, mask, True)
            x = x + self.source_attention(self.source_norm(x), source, None, source_mask)
            return x + self.drop(self.network(self.network_norm(x)))
        x = self.attention_norm(x + self.attention(x, None, None, mask, True))
        x = self.source_norm(x + self.source_attention(x, source, None, source_mask))
        return self.network_norm(x + self.drop(self.network(x)))


class PositionalEncoding(HybridBlock):
    """x plus sines and cosines of each step's position (section 3.5), then dropout.

        p[t, 2i] = sin(t / 10000^(2i / units)),   p[t, 2i + 1] = cos(t / 10000^(2i / units))

    Args:
        units: of the data.
        max_length: steps for which there are positions.
        dropout: share that is dropped in training.
    """

    def __init__(self, units: int, max_length: int = 512, dropout: float = 0.0) -> None:
        super().__init__()
        self.max_length = count("max_length", max_length)
        self.table = Constant(_waves(count("units", units), max_length))
        self.drop = Dropout(dropout)

    def forward(self, x: Any) -> Any:
        steps = x.shape[1]
        if steps > self.max_length:
            raise UsageError(
                "a sequence is longer than its positions",
                next_move="Give PositionalEncoding a larger max_length.",
                steps=steps,
                max_length=self.max_length,
            )
        return self.drop(x + F.slice_axis(self.table.data(), axis=0, begin=0, end=steps))

    def settings(self) -> str:
        return f"max_length={self.max_length}"


def _waves(units: int, length: int) -> Any:
    rates = np.exp(np.arange(0, units, 2) * (-math.log(10000.0) / units))
    angles = np.arange(length)[:, None] * rates
    table = np.empty((length, units), np.float32)
    table[:, 0::2] = np.sin(angles)
    table[:, 1::2] = np.cos(angles)[:, : units // 2]
    return table
