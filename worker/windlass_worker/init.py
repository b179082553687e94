"""`wl.init`: how rows of sparse tables and parameters of blocks begin.

Invariant: Zeros, Constant, Uniform and Normal are the specs that servers know, and serve `store.table` and
`net.initialize` alike; the others need a whole parameter's shape and serve `net.initialize` alone.
"""

from typing import TYPE_CHECKING, Any

from windlass_graph.initializers import MSRA, Bilinear, LSTMBias, Mixed, One, Orthogonal, Xavier
from windlass_proto.arguments import unknown_name
from windlass_proto.init_specs import Constant, Normal, Uniform, Zeros

__all__ = [
    "MSRA",
    "Bilinear",
    "Constant",
    "LSTMBias",
    "Mixed",
    "Normal",
    "One",
    "Orthogonal",
    "Uniform",
    "Xavier",
    "Zeros",
]

if not TYPE_CHECKING:  # type checkers say it by themselves

    def __getattr__(name: str) -> Any:
        raise unknown_name("windlass.init", name, __all__)
