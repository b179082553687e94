"""How rows of sparse tables begin."""

from typing import TYPE_CHECKING, Any

from windlass_proto.arguments import unknown_name
from windlass_proto.init_specs import Constant, Normal, Uniform, Zeros

__all__ = ["Constant", "Normal", "Uniform", "Zeros"]

if not TYPE_CHECKING:  # type checkers say it by themselves

    def __getattr__(name: str) -> Any:
        raise unknown_name("windlass.init", name, __all__)
