"""Codecs on one core against a kernel that moves the same streams: GB/s of float32 on their way in, or out.

*up* encodes with feedback: it reads the gradient, reads and writes what is kept, writes the wire. *down* decodes. The
floors do one integer operation an element where the codec rounds, so a ratio says what the arithmetic costs; a floor
whose wire is thinner than a byte a value writes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np

from benchmarks.aligned import aligned_vector
from benchmarks.case import Case, Extent
from benchmarks.cases.kernels import Kernel
from benchmarks.contender import Field
from benchmarks.contest import SAME_STREAMS, contest
from benchmarks.load import one_tensor
from benchmarks.report import Row
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
from windlass_proto.codecs.registry import build

FLOAT32_BYTES = 4
SPECS: tuple[tuple[str, CodecSpec], ...] = (
    ("float16", Float16()),
    ("bfloat16", BFloat16()),
    ("int8", Int8()),
    ("one bit", OneBit()),
    ("two bits", TwoBit(threshold=0.5)),
    ("top 1 %", TopK()),
    ("random 1 %", RandomK()),
    ("dithering 4", Dithering(bits=4)),
    ("dithering 8", Dithering(bits=8)),
    ("dithering 4 natural", Dithering(bits=4, natural=True)),
)


def _keep(values: Any, error: Any, wire: Any) -> None:
    for i in range(values.size):
        error[i] ^= values[i]
    for i in range(wire.size):
        wire[i] = error[i]


def _keep_only(values: Any, error: Any, wire: Any) -> None:
    for i in range(values.size):
        error[i] ^= values[i]


def _read_only(values: Any, error: Any, wire: Any) -> None:
    total = error[0]
    for i in range(values.size):
        total ^= values[i]
    error[0] = total


def _send_only(values: Any, error: Any, wire: Any) -> None:
    for i in range(wire.size):
        wire[i] = values[i]


def _take(wire: Any, values: Any) -> None:
    for i in range(wire.size):
        values[i] = wire[i]


def _fill(wire: Any, values: Any) -> None:
    for i in range(values.size):
        values[i] = 1


def _compiled(kernel: Callable[..., None]) -> Callable[..., None]:
    fast: Callable[..., None] = numba.njit(error_model="numpy", nogil=True)(kernel)
    return fast


def wire_type(spec: CodecSpec, elements: int) -> Any:
    """The integers of the floor's wire: None where a value has less than a byte."""
    nbytes = build(spec).wire_bytes(elements) // elements
    return {0: None, 1: np.uint8, 2: np.uint16}[nbytes]


def floor_up(spec: CodecSpec) -> Callable[[int], Callable[[], None]]:
    def of(elements: int) -> Callable[[], None]:
        values, error = (aligned_vector(elements).view(np.int32) for _ in range(2))
        dtype = wire_type(spec, elements)
        wire = np.zeros(0 if dtype is None else elements, dtype or np.uint8)
        thick, thin = (_keep, _keep_only) if spec.feedback else (_send_only, _read_only)
        kernel = _compiled(thin if dtype is None else thick)
        kernel(values, error, wire)
        return lambda: kernel(values, error, wire)

    return of


def floor_down(spec: CodecSpec) -> Callable[[int], Callable[[], None]]:
    def of(elements: int) -> Callable[[], None]:
        values = aligned_vector(elements).view(np.int32)
        dtype = wire_type(spec, elements)
        wire = np.zeros(0 if dtype is None else elements, dtype or np.uint8)
        kernel = _compiled(_fill if dtype is None else _take)
        kernel(wire, values)
        return lambda: kernel(wire, values)

    return of


def encode_pass(spec: CodecSpec) -> Callable[[int], Callable[[], None]]:
    def of(elements: int) -> Callable[[], None]:
        codec, values = build(spec), aligned_vector(elements)
        values[:] = np.random.default_rng(0).normal(size=elements)
        error = aligned_vector(elements) if spec.feedback else None
        wire = aligned_vector(codec.room(elements) // 4).view(np.uint8)[: codec.wire_bytes(elements)]
        return lambda: codec.encode(values, wire, error, 1)

    return of


def decode_pass(spec: CodecSpec) -> Callable[[int], Callable[[], None]]:
    def of(elements: int) -> Callable[[], None]:
        codec, values = build(spec), aligned_vector(elements)
        wire = aligned_vector(codec.room(elements) // 4).view(np.uint8)[: codec.wire_bytes(elements)]
        codec.encode(values, wire)
        return lambda: codec.decode_untrusted(wire, values)

    return of


def codecs(extent: Extent) -> Iterator[Row]:
    for name, spec in SPECS:
        for way, floor, ours in (("up", floor_up, encode_pass), ("down", floor_down, decode_pass)):
            with Field() as field:
                for contender in (Kernel(SAME_STREAMS, floor(spec)), Kernel(f"windlass {way}", ours(spec))):
                    field.enter(contender.name, lambda contender=contender: contender)  # type: ignore[misc]
                for size in extent.sizes(1 << 20, 4 << 20, 64 << 20):
                    elements = size // FLOAT32_BYTES
                    setting = f"{name}, {elements / 2**20:g} Mi values"
                    yield from contest("codecs", setting, field, one_tensor(size), extent.pace, (), size)


CASES = (Case("codecs", "encoding with feedback and decoding, against same-streams floors", codecs),)
