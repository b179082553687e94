"""How rows of sparse tables begin."""

from windlass_proto.init_specs import Constant, Normal, Uniform, Zeros

__all__ = ["Constant", "Normal", "Uniform", "Zeros"]
