"""How a dense group's values travel: what an entry's bytes must be, and what they say.

A gradient under a codec is its segments' encodings one after the other, each filled up to 64 bytes. It is decoded here,
before its share's lock is taken, into a pooled buffer of the group's dtype; so cores, rules and memories know nothing
of codecs.

Invariant: nothing a peer sent is used before its length, scales and places are checked; what may change while it is
read (a worker's shared memory) is copied first where its integers address memory. Any thread may call it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from windlass_proto import finite
from windlass_proto.codec_specs import TopK
from windlass_proto.codecs import registry
from windlass_proto.errors import ProtocolError, UnavailableError
from windlass_proto.frames import Op
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import Block
from windlass_proto.memory import Buffer, BufferPool
from windlass_proto.transfer_specs import Nonfinite
from windlass_server.dense_memory import Values, Vector

_LOG = logging.getLogger("windlass.server")
_GRADIENTS: Final = frozenset({Op.PUSH, Op.PUSH_PULL})
_WARNED_MAX: Final = 4096

Bytes = npt.NDArray[np.uint8]


@dataclass(slots=True)
class Traffic:
    """Bytes of values since the table was declared: as they travelled, and as they would have without codecs."""

    bytes_in: int = 0
    raw_in: int = 0
    bytes_out: int = 0
    raw_out: int = 0

    def figures(self) -> dict[str, int]:
        """By name, for status."""
        return {
            "bytes_in": self.bytes_in,
            "raw_bytes_in": self.raw_in,
            "bytes_out": self.bytes_out,
            "raw_bytes_out": self.raw_out,
        }


class Gradient(NamedTuple):
    """What an entry's values are for. `extends`: it belongs to an open step, so there must be room for them."""

    op: int
    block: Block
    seg_begin: int
    seg_end: int
    rank: int
    extends: bool


class GroupWire:
    """The wire of one group.

    Args:
        spec: the declared group.
        pool: where decoded gradients wait until they are applied.
    """

    def __init__(self, spec: GroupSpec, pool: BufferPool) -> None:
        self.traffic = Traffic()
        self._layout = spec.layout
        self._dtype = spec.layout.dtype
        self._pool = pool
        self._policy = spec.transfer.nonfinite
        self._up = registry.build(spec.transfer.up) if spec.transfer.up is not None else None
        self._sizes: dict[tuple[int, int, int], int] = {}
        self._warned: Counter[tuple[int, int]] = Counter()
        self._warning = threading.Lock()

    def bytes_up(self, op: int, block: Block, seg_begin: int, seg_end: int) -> int:
        """How long the values of such an entry are."""
        if self._up is None or op not in _GRADIENTS:
            begin, end = block.span(seg_begin, seg_end)
            return (end - begin) * self._dtype.itemsize
        key = (block.index, seg_begin, seg_end)
        found = self._sizes.get(key)
        if found is None:
            found = sum(self._up.room(segment.elements) for segment in block.segments[seg_begin:seg_end])
            if len(self._sizes) < len(self._layout.blocks) + 4096:
                self._sizes[key] = found
        return found

    def values_untrusted(self, raw: Bytes, held: Buffer | None, what: Gradient) -> Values | None:
        """What an entry's bytes say; None where the pool has no room to decode them.

        Args:
            raw: of `bytes_up`; in `held`, which the caller holds, or (None) in a worker's shared memory.

        Raises:
            ProtocolError: they cannot be read.
        """
        begin, end = what.block.span(what.seg_begin, what.seg_end)
        self.traffic.bytes_in += raw.nbytes
        self.traffic.raw_in += (end - begin) * self._dtype.itemsize
        if what.op not in _GRADIENTS:
            return _as_received(raw, held, self._dtype)
        if self._up is None:
            values = _as_received(raw, held, self._dtype)
        else:
            try:
                buffer = self._pool.take((end - begin) * self._dtype.itemsize, beyond=what.extends)
            except UnavailableError:
                return None
            try:
                if held is None and isinstance(self._up.spec, TopK):
                    raw = raw.copy()
                self._decode_untrusted(raw, buffer.array.view(self._dtype), what)
            except ProtocolError:
                buffer.release()
                raise
            values = Values(buffer.array.view(self._dtype), buffer)
        return self._cleaned(values, what) if self._policy in (Nonfinite.ZERO, Nonfinite.CLIP) else values

    def _decode_untrusted(self, raw: Bytes, values: Vector, what: Gradient) -> None:
        assert self._up is not None
        at, first = 0, what.block.span(what.seg_begin, what.seg_end)[0]
        for segment in what.block.segments[what.seg_begin : what.seg_end]:
            begin = segment.begin - first
            nbytes = self._up.wire_bytes(segment.elements)
            self._up.decode_untrusted(raw[at : at + nbytes], values[begin : begin + segment.elements])
            values[begin + segment.elements : segment.end - first] = 0
            at += self._up.room(segment.elements)

    # ---- values that are not finite ----------------------------------------------------------------------------------

    @property
    def decodes(self) -> bool:
        """Do gradients need room to be decoded into?"""
        return self._up is not None

    @property
    def looks(self) -> bool:
        """Is a gradient that is not finite rejected?"""
        return self._policy is not Nonfinite.ALLOW

    def _cleaned(self, values: Values, what: Gradient) -> Values:
        """`values`, or what the policy makes of them where they are not finite."""
        cleaning = finite.build(self._dtype)
        if cleaning.all_finite(values.array):
            return values
        self._warn(values, what)
        buffer = self._pool.take(values.array.nbytes, beyond=True)
        cleaned = buffer.array.view(self._dtype)
        cleaning.cleaned(values.array, cleaned, self._policy)
        if values.buffer is not None:
            values.buffer.release()
        return Values(cleaned, buffer)

    def _warn(self, values: Values, what: Gradient) -> None:
        """At the first, second, fourth... such gradient of a worker for a block."""
        with self._warning:
            key = (what.rank, what.block.index)
            if len(self._warned) >= _WARNED_MAX and key not in self._warned:
                self._warned.clear()
            self._warned[key] += 1
            times = self._warned[key]
        if times & (times - 1):
            return
        first = what.block.span(what.seg_begin, what.seg_end)[0]
        names = [
            self._layout.tensors[segment.tensor].name
            for segment in what.block.segments[what.seg_begin : what.seg_end]
            if not np.isfinite(values.array[segment.begin - first : segment.end - first]).all()
        ]
        _LOG.warning(
            "gradient_not_finite worker=%d tensors=%s policy=%s times=%d",
            what.rank,
            ",".join(names[:5]),
            self._policy.value,
            times,
        )


def _as_received(raw: Bytes, held: Buffer | None, dtype: np.dtype[np.floating]) -> Values:
    if held is not None:
        held.hold()
    return Values(raw.view(dtype), held)
