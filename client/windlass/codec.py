"""How gradients, and weights on their way down, are made shorter: see docs/compression.md."""

from windlass_proto.codec_specs import BFloat16, Dithering, Float16, Int8, OneBit, RandomK, TopK, TwoBit

__all__ = ["BFloat16", "Dithering", "Float16", "Int8", "OneBit", "RandomK", "TopK", "TwoBit"]
