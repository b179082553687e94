"""How a codec that works on segments is laid over rows of a table, each of which stands for itself.

    rows     | row of id 3      | row of id 7      |      those of an entry, one after the other
    blocks   |--------|---------|--------|---------|      equal parts of a row, of at most the codec's `block`

An entry's rows are encoded as one segment whose blocks are parts of rows. So what a row becomes depends on its values
(and on the chance that is drawn for it) alone: not on its neighbours, nor on how a call was cut over servers.

Codecs that choose values (top-k, random-k) are refused: who pushes rows has chosen already, and what is kept back of a
row would wait until its id is pushed again, which for most ids is never.

`keeps`: casts need no feedback for rows. One rounding is 2**-11 of a value, 2**-8 for bfloat16, to either side alike;
to keep that would cost a worker 64 bytes and more for each id that it ever pushed.

Invariant: pure functions of a spec and a dim; whoever declares and whoever reads computes the same.
"""

from __future__ import annotations

from typing import Final

from windlass_proto.codec_specs import (
    BLOCK_MIN,
    BFloat16,
    CodecSpec,
    Dithering,
    Float16,
    Int8,
    OneBit,
    RandomK,
    TopK,
)
from windlass_proto.errors import UsageError

_SCALE_BYTES: Final = 4
_OF_HALVES: Final[dict[str, CodecSpec]] = {"float16": Float16(), "bfloat16": BFloat16()}


def of_dtype(dtype: str) -> CodecSpec | None:
    """What rows of a half type travel in, both ways; None for other types."""
    return _OF_HALVES.get(dtype)


def keeps(spec: CodecSpec) -> bool:
    """Does a worker keep what encoding a row lost, for the row's next gradient?"""
    return spec.feedback and not spec.exact


def part_of(spec: CodecSpec, dim: int) -> int:
    """Values of a row that share a scale; 0 for codecs without scales.

    The longest equal parts that are no longer than `block`; the whole row where those would be shorter than a block
    may be.
    """
    if not isinstance(spec, Int8 | OneBit | Dithering):
        return 0
    unit = _unit_of(spec)
    parts = (dim // count for count in range(-(-dim // spec.block), dim // BLOCK_MIN + 1) if dim % count == 0)
    return next((part for part in parts if part % unit == 0), dim)


def check(spec: CodecSpec, dim: int) -> None:
    """Can rows of `dim` values be pushed in this codec?

    Raises:
        UsageError: they cannot; what can is named.
    """
    if isinstance(spec, TopK | RandomK):
        raise UsageError(
            "a codec that chooses values is for dense tensors: a push of rows names what it is about",
            codec=spec,
            next_move="Push fewer rows, or use codec=wl.codec.Int8() or OneBit().",
        )
    unit = _unit_of(spec)
    if dim % unit:
        raise UsageError(
            f"{type(spec).__name__} packs values into bytes, which rows of a table do not share",
            codec=spec,
            dim=dim,
            multiple_of=unit,
            next_move=f"Declare dim={-(-dim // unit) * unit}, or use codec=wl.codec.Int8() or Float16().",
        )
    part = part_of(spec, dim)
    if part and dim * bits_of(spec) // 8 + dim // part * _SCALE_BYTES >= 4 * dim:
        raise UsageError(
            "rows so short would be longer encoded than as they are",
            codec=spec,
            dim=dim,
            next_move="Use codec=wl.codec.Float16(), or none.",
        )


def bits_of(spec: CodecSpec) -> int:
    """Bits of a value beside scales, of codecs with scales."""
    if isinstance(spec, Dithering):
        return spec.bits
    return 1 if isinstance(spec, OneBit) else 8


def seed_at(seed: int, at: int) -> int:
    """The seed under which place 0 is drawn what place `at` is under `seed`: a run of a call draws as the whole would.

    Places are mixed as `codecs.kernel.chance` does it: a Weyl sequence from a seed folded to 32 bits.
    """
    folded = (seed ^ seed >> 32) & 0xFFFFFFFF
    return (folded + at * 0x9E3779B9) & 0xFFFFFFFF


def _unit_of(spec: CodecSpec) -> int:
    """Values that share a byte, where blocks must not."""
    if isinstance(spec, OneBit):
        return 8
    return 2 if isinstance(spec, Dithering) and spec.bits == 4 else 1
