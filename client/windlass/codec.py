"""How gradients, and weights on their way down, are made shorter: see docs/compression.md."""

from typing import TYPE_CHECKING, Any

from windlass_proto.arguments import unknown_name
from windlass_proto.codec_specs import BFloat16, Dithering, Float16, Int8, OneBit, RandomK, TopK, TwoBit

__all__ = ["BFloat16", "Dithering", "Float16", "Int8", "OneBit", "RandomK", "TopK", "TwoBit"]

if not TYPE_CHECKING:  # type checkers say it by themselves

    def __getattr__(name: str) -> Any:
        raise unknown_name("windlass.codec", name, __all__)
