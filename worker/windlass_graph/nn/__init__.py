"""`wl.nn`: blocks, their parameters and layers.

A net is a `Block` whose children and parameters are its attributes. A `HybridBlock` writes `forward` with operators and
`wl.F`, which hold for arrays and for symbols, so that `hybridize()` can compile it.
"""

from typing import TYPE_CHECKING, Any

from windlass_graph import functions as F  # noqa: N812 - what the field calls it
from windlass_graph.nn.activations import ELU, SELU, Activation, LeakyReLU, PReLU, SiLU, Swish
from windlass_graph.nn.block import Block
from windlass_graph.nn.containers import (
    HybridConcurrent,
    HybridLambda,
    HybridSequential,
    Identity,
    Lambda,
    Sequential,
)
from windlass_graph.nn.hybrid_block import HybridBlock
from windlass_graph.nn.layers import Dense, Dropout, Embedding, Flatten
from windlass_graph.nn.parameter import Constant, Parameter
from windlass_proto.arguments import unknown_name

__all__ = [
    "ELU",
    "SELU",
    "Activation",
    "Block",
    "Constant",
    "Dense",
    "Dropout",
    "Embedding",
    "F",
    "Flatten",
    "HybridBlock",
    "HybridConcurrent",
    "HybridLambda",
    "HybridSequential",
    "Identity",
    "Lambda",
    "LeakyReLU",
    "PReLU",
    "Parameter",
    "Sequential",
    "SiLU",
    "Swish",
]

if not TYPE_CHECKING:  # type checkers say it by themselves

    def __getattr__(name: str) -> Any:
        raise unknown_name("windlass.nn", name, __all__)
