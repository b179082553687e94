"""`wl.nn`: blocks, their parameters and layers.

A net is a `Block` whose children and parameters are its attributes. A `HybridBlock` writes `forward` with operators and
`wl.F`, which hold for arrays and for symbols, so that `hybridize()` can compile it.
"""

from typing import TYPE_CHECKING, Any

from windlass_graph import functions as F  # noqa: N812 - what the field calls it
from windlass_graph.nn.activations import ELU, GELU, SELU, Activation, LeakyReLU, PReLU, SiLU, Swish
from windlass_graph.nn.block import Block
from windlass_graph.nn.containers import (
    HybridConcurrent,
    HybridLambda,
    HybridSequential,
    Identity,
    Lambda,
    Sequential,
)
from windlass_graph.nn.convolutions import (
    Conv1D,
    Conv1DTranspose,
    Conv2D,
    Conv2DTranspose,
    Conv3D,
    Conv3DTranspose,
)
from windlass_graph.nn.hybrid_block import HybridBlock
from windlass_graph.nn.layers import Dense, Dropout, Embedding, Flatten
from windlass_graph.nn.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm
from windlass_graph.nn.parameter import Constant, Parameter
from windlass_graph.nn.pools import (
    AvgPool1D,
    AvgPool2D,
    AvgPool3D,
    GlobalAvgPool,
    GlobalMaxPool,
    MaxPool1D,
    MaxPool2D,
    MaxPool3D,
)
from windlass_graph.nn.recurrent_cells import GRUCell, LSTMCell, RNNCell
from windlass_graph.nn.recurrent_layers import GRU, LSTM, RNN
from windlass_graph.nn.symbol_block import SymbolBlock
from windlass_graph.nn.transformer import (
    MultiHeadAttention,
    PositionalEncoding,
    PositionwiseNetwork,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)
from windlass_proto.arguments import unknown_name

__all__ = [
    "ELU",
    "GELU",
    "GRU",
    "LSTM",
    "RNN",
    "SELU",
    "Activation",
    "AvgPool1D",
    "AvgPool2D",
    "AvgPool3D",
    "BatchNorm",
    "Block",
    "Constant",
    "Conv1D",
    "Conv1DTranspose",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "Dense",
    "Dropout",
    "Embedding",
    "F",
    "Flatten",
    "GRUCell",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GroupNorm",
    "HybridBlock",
    "HybridConcurrent",
    "HybridLambda",
    "HybridSequential",
    "Identity",
    "InstanceNorm",
    "LSTMCell",
    "Lambda",
    "LayerNorm",
    "LeakyReLU",
    "MaxPool1D",
    "MaxPool2D",
    "MaxPool3D",
    "MultiHeadAttention",
    "PReLU",
    "Parameter",
    "PositionalEncoding",
    "PositionwiseNetwork",
    "RNNCell",
    "Sequential",
    "SiLU",
    "Swish",
    "SymbolBlock",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
]

if not TYPE_CHECKING:  # type checkers say it by themselves

    def __getattr__(name: str) -> Any:
        raise unknown_name("windlass.nn", name, __all__)
