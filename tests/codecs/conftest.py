"""The codecs that the tests go through."""

from __future__ import annotations

from typing import Final

from windlass_proto.codec_specs import (
    BFloat16,
    CodecSpec,
    Dithering,
    Float16,
    Int8,
    OneBit,
    RandomK,
    TopK,
    TwoBit,
)

SPECS: Final[tuple[CodecSpec, ...]] = (
    Float16(),
    BFloat16(),
    Int8(),
    Int8(block=64),
    OneBit(block=128),
    TwoBit(threshold=0.5),
    TopK(ratio=0.05),
    RandomK(ratio=0.05),
    Dithering(bits=4),
    Dithering(bits=8, block=64),
    Dithering(bits=4, natural=True),
    Dithering(bits=8, natural=True),
)
