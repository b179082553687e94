"""The codecs there are, and a built one: its kernels with the numbers of its spec.

Invariant: a module's kernels are compiled once a process. `decode_untrusted` looks at lengths before a kernel runs and
at scales and places before it uses them, and raises one error.
"""

from __future__ import annotations

import functools
import threading
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import numpy as np

from windlass_proto import row_codecs
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
from windlass_proto.codecs import bfloat16, dithering, float16, int8, one_bit, random_k, top_k, two_bit
from windlass_proto.codecs.kernel import FAULTS, FINE, Bytes, CodecKernels, Floats, aligned, compiled
from windlass_proto.errors import ProtocolError, UsageError

CODEC_MODULES: Final[dict[type[Any], ModuleType]] = {
    Float16: float16,
    BFloat16: bfloat16,
    Int8: int8,
    OneBit: one_bit,
    TwoBit: two_bit,
    TopK: top_k,
    RandomK: random_k,
    Dithering: dithering,
}

_BUILDING = threading.Lock()
_NOTHING: Final[Floats] = np.empty(0, np.float32)


@functools.cache
def _kernels_of(module: ModuleType) -> CodecKernels:
    return compiled(module.encode, module.decode)


@dataclass(frozen=True, slots=True)
class _InParts:
    """A spec's numbers with blocks that no declaration may ask for: parts of rows."""

    spec: CodecSpec
    block: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.spec, name)


class Codec:
    """One spec's kernels. Instances are pure: any thread may use them.

    Args:
        part: values of a block, where they are parts of rows; 0: as the spec says.
    """

    def __init__(self, spec: CodecSpec, part: int = 0) -> None:
        self.spec = spec
        self._numbers = _InParts(spec, part) if part else spec
        self._module = CODEC_MODULES[type(spec)]
        with _BUILDING:
            self._kernels = _kernels_of(self._module)

    def wire_bytes(self, elements: int) -> int:
        """The exact length of `elements` encoded, before it is filled up to 64."""
        found: int = self._module.wire_bytes(self._numbers, elements)
        return found

    def arguments(self, elements: int) -> tuple[int, float]:
        """The numbers that the kernels are given for `elements`."""
        found: tuple[int, float] = self._module.arguments(self._numbers, elements)
        return found

    def room(self, elements: int) -> int:
        """`wire_bytes` filled up to whole 64 bytes: what a segment takes in a payload."""
        return aligned(self.wire_bytes(elements))

    def encode(self, values: Floats, wire: Bytes, error: Floats | None = None, seed: int = 0) -> None:
        """Encode `values` into `wire`, which has exactly `wire_bytes`.

        Args:
            error: what earlier values lost, as long as `values`: added to them, and replaced by what these lose.
            seed: of the chances that the codec takes.

        Raises:
            UsageError: a length is wrong.
        """
        if wire.nbytes != self.wire_bytes(values.size) or (error is not None and error.size != values.size):
            raise UsageError(
                "values cannot be encoded into so many bytes",
                codec=self.spec,
                elements=values.size,
                bytes=wire.nbytes,
                expected=self.wire_bytes(values.size),
            )
        if values.size:
            numbers = self.arguments(values.size)
            kept = _NOTHING if error is None else error
            self._kernels.encode(values, kept, wire, *numbers, np.uint64(seed))

    def decode_untrusted(self, wire: Bytes, values: Floats) -> None:
        """Decode `wire` into `values`; what a block that was not finite decodes to is NaN.

        Raises:
            ProtocolError: the length is not that of so many values, a scale is negative or infinite, or places are not
                in order. `values` may hold anything then.
        """
        if wire.nbytes != self.wire_bytes(values.size):
            raise ProtocolError(
                "encoded values have another length", got=wire.nbytes, expected=self.wire_bytes(values.size)
            )
        if values.size:
            fault = self._kernels.decode(wire, values, *self.arguments(values.size))
            if fault != FINE:
                raise ProtocolError("encoded values cannot be read", codec=self.spec, reason=FAULTS[fault])


@functools.lru_cache(maxsize=64)
def build(spec: CodecSpec) -> Codec:
    """The codec of `spec`, whose kernels are compiled at the first call of a process. Thread-safe."""
    return Codec(spec)


@functools.lru_cache(maxsize=64)
def build_rows(spec: CodecSpec, dim: int) -> Codec:
    """The codec of `spec` for rows of `dim` values, one after the other; see `row_codecs`. Thread-safe."""
    return Codec(spec, row_codecs.part_of(spec, dim))
