"""The CUDA twins of what travels encoded: gradients of each codec and half tensors decoded, weights made halves.

A program's runs are segments, as they lie one after the other in an entry. What a segment is filled up with becomes 0.
A codec that names places (`TopK`, `RandomK`) is two programs: one that fills with 0 (`cuda_source.fill_source`), and
one for each value that travels.

Conversions of one number are read from the Python functions that Numba compiles (`cuda_functions`); the few lines
around them are written here, and tests compare every codec's with its kernel bit for bit.

Invariant: whatever the bytes are, a program reads inside the wire and writes inside the values. `found[0]` becomes 1
where a value is not finite, `found[1]` where a scale or a place cannot be: nothing of the entry may be used then.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from windlass_proto.codec_specs import (
    BFloat16,
    Dithering,
    Float16,
    Int8,
    OneBit,
    RandomK,
    TopK,
    TwoBit,
)
from windlass_proto.codecs import bfloat16, float16, halves, kernel
from windlass_rules.cuda_functions import PRELUDE, function_source
from windlass_rules.cuda_source import CudaSource, Field, program

_FLOAT32: Final = np.dtype(np.float32)
_BITS: Final = {"bits": "u32"}
_OF_HALF: Final = function_source(halves.bits_of_half, {"half": "u32"})
_CHANCE: Final = function_source(kernel.chance, {"seed": "u32", "at": "u32"})
_HALF_OF: Final = function_source(halves.half_of, {"value": "float", **_BITS})
_BRIEF_OF: Final = function_source(halves.brief_of, _BITS)

_BLOCKS: Final = """\
// Where the codes begin behind one scale a block.
static __device__ inline const u8 *codes_of(const u8 *wire, u64 elements, u64 block)
{
    return wire + ((4 * ((elements + block - 1) / block) + 63) & ~63ull);
}

// A scale's bits; one that is negative or infinite is a fault.
static __device__ inline u32 scale_at(const u8 *wire, u64 at, u32 *found)
{
    const u32 bits = ((const u32 *)wire)[at];
    if (bits == 0x7f800000u || (bits & 0x80000000u))
        found[1] = 1;
    return bits;
}
"""
_DITHERED: Final = """\
// The part of the scale that a level stands for; levels below 0 are powers of two.
static __device__ inline float part_of(u32 level, double levels)
{
    if (level == 0)
        return 0.0f;
    if (levels < 0)
        return of_bits((u32)(127 + (int)level + (int)levels) << 23);
    return (float)((double)level / levels);
}
"""

_WIRE_FIELDS: Final[list[Field]] = [
    ("wire", "const u8 *", "u8"),
    ("values", "u32 *", "u8"),
    ("elements", "u64", "u8"),
    ("count", "u64", "u8"),
    ("number", "double", "f8"),
    ("found", "u32 *", "u8"),
]
_SEEN: Final = ["if ((x & 0x7f800000u) == 0x7f800000u)", "    run.found[0] = 1;"]

# The functions that a codec needs, and lines that make x, the bits of element i.
_BY_ELEMENT: Final[dict[Any, tuple[str, list[str]]]] = {
    Float16: (_OF_HALF, ["const u32 x = bits_of_half(((const u16 *)run.wire)[i]);"]),
    BFloat16: ("", ["const u32 x = (u32)((const u16 *)run.wire)[i] << 16;"]),
    Int8: (
        _BLOCKS,
        [
            "const float scale = of_bits(scale_at(run.wire, i / run.count, run.found));",
            "const signed char code = ((const signed char *)codes_of(run.wire, run.elements, run.count))[i];",
            "const u32 x = bits_of((float)(int)code * scale);",
        ],
    ),
    OneBit: (
        _BLOCKS,
        [
            "const u32 eight = codes_of(run.wire, run.elements, run.count)[i / 8];",
            "const u32 sign = (eight << (31 - i % 8)) & 0x80000000u;",
            "const u32 x = scale_at(run.wire, i / run.count, run.found) | sign;",
        ],
    ),
    TwoBit: (
        "",
        [
            "const u32 code = ((u32)run.wire[i / 4] >> (2 * (i % 4))) & 3u;",
            "const u32 up = bits_of((float)run.number);",
            "const u32 x = code == 0 ? 0u : code == 1 ? up : code == 2 ? up ^ 0x80000000u : 0x7fc00000u;",
        ],
    ),
    Dithering: (
        _BLOCKS + _DITHERED,
        [
            "const float scale = of_bits(scale_at(run.wire, i / run.count, run.found));",
            "const u8 *codes = codes_of(run.wire, run.elements, run.count);",
            "const u32 whole = (u32)(run.number < 0 ? -run.number : run.number);",
            "const u32 code = whole == 127 ? codes[i] : ((u32)codes[i / 2] >> (4 * (i % 2))) & 15u;",
            "const float part = part_of(code & whole, run.number);",
            "const u32 x = bits_of(((code & ~whole) && (code & whole) ? -part : part) * scale);",
        ],
    ),
}
# The same of codecs that name places: lines that make `place` and x of the i-th value that travels.
_BY_PLACE: Final[dict[Any, tuple[str, list[str]]]] = {
    TopK: (
        "",
        [
            "const u32 *places = (const u32 *)run.wire;",
            "const u64 place = places[i];",
            "const u32 x = ((const u32 *)(run.wire + ((4 * run.count + 63) & ~63ull)))[i];",
            "if (place >= run.elements || (i > 0 && place <= places[i - 1])) {",
            "    run.found[1] = 1;",
            "    continue;",
            "}",
        ],
    ),
    RandomK: (
        _CHANCE,
        [
            "const u32 *seed = (const u32 *)run.wire;",
            "const u64 begin = i * run.elements / run.count;",
            "const u64 width = (i + 1) * run.elements / run.count - begin;",
            "const u64 place = begin + ((u64)chance(seed[0] ^ seed[1], (u32)i) * width >> 24);",
            "const u32 x = ((const u32 *)(run.wire + 64))[i];",
        ],
    ),
}
HALF_CODECS: Final[dict[str, type[Any]]] = {"float16": Float16, "bfloat16": BFloat16}
"""Whose wire is a half tensor's."""


def names_places(codec: type[Any]) -> bool:
    """Is its program for values that travel, after a fill with 0?"""
    return codec in _BY_PLACE


def decode_source(codec: type[Any]) -> CudaSource:
    """The twin of a codec's `decode`, for runs with `wire`, `values`, `elements`, `count`, `number` and `found`.

    `count` and `number` are the codec's `arguments`. A run's size is that of the segment, or, where the codec names
    places, `count`.
    """
    if names_places(codec):
        functions, lines = _BY_PLACE[codec]
        body = [*lines, "run.values[place] = x;", *_SEEN]
    else:
        functions, lines = _BY_ELEMENT[codec]
        past = ["if (i >= run.elements) {", "    run.values[i] = 0;", "    continue;", "}"]
        body = [*past, *lines, "run.values[i] = x;", *_SEEN]
    return program(f"decode_{codec.__name__.lower()}", _FLOAT32, _WIRE_FIELDS, [], body, PRELUDE + functions)


def encode_source(codec: type[Any] | str) -> CudaSource:
    """The twin of the `encode` of a codec of halves without feedback, or, for a half type's name, of `to_half`.

    Runs have fields `values`, `elements` and `wire`; what a run has beyond its elements becomes 0.
    """
    kind: type[Any] = HALF_CODECS[codec] if isinstance(codec, str) else codec
    module, functions, made = {
        Float16: (float16, _HALF_OF, "half_of(of_bits(bits), bits)"),
        BFloat16: (bfloat16, _BRIEF_OF, "brief_of(bits)"),
    }[kind]
    name, cut = "to_" + str(codec), "bits"
    if not isinstance(codec, str):
        functions += function_source(module.within, _BITS)
        name, cut = f"encode_{kind.__name__.lower()}", "within(bits)"
    fields: list[Field] = [("values", "const u32 *", "u8"), ("elements", "u64", "u8"), ("wire", "u16 *", "u8")]
    body = [
        "const u32 given = i < run.elements ? run.values[i] : 0u;",
        f"const u32 bits = {cut.replace('bits', 'given')};",
        f"run.wire[i] = (u16){made};",
    ]
    return program(name, _FLOAT32, fields, [], body, PRELUDE + functions)
