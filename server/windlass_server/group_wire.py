"""How a dense group's values travel: what an entry's bytes must be, and what they say.

A gradient under a codec is its segments' encodings one after the other, each filled up to 64 bytes; half tensors travel
as they lie in a worker. They are decoded here, before the share's lock is taken, into pooled buffers of what the group
is held in; weights are encoded when an answer is made. So cores, rules and memories know nothing of it.

Invariant: nothing a peer sent is used before its length, scales and places are checked; what may change while it is
read (a worker's shared memory) is copied first where its integers address memory. Any thread may call it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import xxhash

from windlass_proto import weight_deltas
from windlass_proto.codec_specs import TopK
from windlass_proto.codecs import halves, registry
from windlass_proto.errors import ProtocolError, UnavailableError
from windlass_proto.frames import Op
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import HALVES, Block
from windlass_proto.memory import Buffer, BufferPool
from windlass_server import dense_rows
from windlass_server.dense_memory import Bytes, DenseMemory, Gradient, Values, Vector
from windlass_server.dense_rows import NamedRows
from windlass_server.gradient_cleaning import GradientCleaning
from windlass_server.shown_weights import ShownWeights

_GRADIENTS: Final = frozenset({Op.PUSH, Op.PUSH_PULL})


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


class GroupWire:
    """The wire of one group.

    Args:
        spec: the declared group.
        pool: where decoded gradients wait until they are applied.
    """

    def __init__(self, spec: GroupSpec, pool: BufferPool) -> None:
        self.traffic = Traffic()
        self._layout = spec.layout
        self._dtype = spec.layout.held
        self._halves = halves.build(spec.layout.dtype_name) if spec.layout.dtype_name in HALVES else None
        self._pool = pool
        self._cleaning = GradientCleaning(spec.transfer.nonfinite, spec.layout.held, pool)
        self._up = registry.build(spec.transfer.up) if spec.transfer.up is not None else None
        self._down = registry.build(spec.transfer.down) if spec.transfer.down is not None else None
        self.deltas = spec.transfer.deltas
        self._sizes: dict[tuple[bool, int, int, int], int] = {}

    def bytes_up(self, op: int, block: Block, seg_begin: int, seg_end: int) -> int:
        """How long the values of such an entry are."""
        if self._up is None or op not in _GRADIENTS:
            begin, end = block.span(seg_begin, seg_end)
            return (end - begin) * self._layout.dtype.itemsize
        return self._encoded_bytes(self._up, (True, block.index, seg_begin, seg_end))

    def bytes_down(self, block: Block, seg_begin: int, seg_end: int) -> int:
        """How long weights of such an entry are on their way to a worker; deltas: at most."""
        if self._down is None:
            begin, end = block.span(seg_begin, seg_end)
            return (end - begin) * self._layout.dtype.itemsize
        if self.deltas:
            return weight_deltas.bytes_max(block.segments[seg_begin:seg_end])
        return self._encoded_bytes(self._down, (False, block.index, seg_begin, seg_end))

    def _encoded_bytes(self, codec: registry.Codec, key: tuple[bool, int, int, int]) -> int:
        found = self._sizes.get(key)
        if found is None:
            _, block, seg_begin, seg_end = key
            segments = self._layout.blocks[block].segments[seg_begin:seg_end]
            found = sum(codec.room(segment.elements) for segment in segments)
            if len(self._sizes) < 2 * len(self._layout.blocks) + 4096:
                self._sizes[key] = found
        return found

    # ---- down --------------------------------------------------------------------------------------------------------

    @property
    def encodes(self) -> bool:
        """Do weights travel as something else than they are held in?"""
        return self._down is not None or self._halves is not None

    @property
    def halves_rows(self) -> bool:
        """Do rows of its tensors travel as halves? Those under a codec travel as they are."""
        return self._halves is not None

    @property
    def answers_in(self) -> np.dtype[Any]:
        """What an answer's memory is seen as: bytes where weights are encoded."""
        return np.dtype(np.uint8) if self.encodes else self._dtype

    def shown(self, block: Block) -> ShownWeights | None:
        """What workers hold of a new block, where its weights come down as deltas."""
        if self._down is None or not self.deltas:
            return None
        layout, seed = self._layout, getattr(self._down.spec, "seed", 0)
        seeds = [
            xxhash.xxh3_64_intdigest(layout.tensors[segment.tensor].name.encode(), seed) ^ segment.tensor_begin
            for segment in block.segments
        ]
        return ShownWeights(block, self._down, seeds, self._pool)

    def count_down(self, block: Block, seg_begin: int, seg_end: int, nbytes: int | None = None) -> None:
        """Weights go to a worker, as so many bytes (None: those of every such entry)."""
        begin, end = block.span(seg_begin, seg_end)
        self.traffic.bytes_out += self.bytes_down(block, seg_begin, seg_end) if nbytes is None else nbytes
        self.traffic.raw_out += (end - begin) * self._dtype.itemsize

    def halve(self, rows: Vector, out: Vector) -> None:
        """Write pieces of rows of a half tensor into `out`."""
        assert self._halves is not None
        self._halves.to_half(rows, out.view(np.uint16))

    def encode(self, present: Vector, out: Bytes, block: Block, seg_begin: int, seg_end: int) -> None:
        """Write weights of segments [seg_begin, seg_end) into `out`, which has `bytes_down`."""
        if self._halves is not None:
            self._halves.to_half(present, out.view(np.uint16))
            return
        assert self._down is not None
        at, first = 0, block.span(seg_begin, seg_end)[0]
        for segment in block.segments[seg_begin:seg_end]:
            nbytes, room = self._down.wire_bytes(segment.elements), self._down.room(segment.elements)
            begin = segment.begin - first
            self._down.encode(present[begin : begin + segment.elements], out[at : at + nbytes])
            out[at + nbytes : at + room] = 0
            at += room

    # ---- up ----------------------------------------------------------------------------------------------------------

    def arrived_untrusted(
        self, raw: Bytes, held: Buffer | None, what: Gradient, memory: DenseMemory
    ) -> tuple[Values | None, bool]:
        """What an entry's bytes say, where they wait in `memory`, and whether all are finite; as `values_untrusted`.

        Values that travelled encoded are decoded there, if it can; what is not finite and to be cleaned, on the host.
        """
        there = memory.receive_encoded(raw, what) if self.decodes else None
        if there is not None and (there[1] or not self._cleans(what)):
            self._count_up(raw, what)
            return there
        if there is not None and there[0].buffer is not None:
            there[0].buffer.release()
        values = self.values_untrusted(raw, held, what)
        return (None, True) if values is None else memory.receive(values)

    def values_untrusted(self, raw: Bytes, held: Buffer | None, what: Gradient) -> Values | None:
        """What an entry's bytes say; None where the pool has no room to decode them.

        Args:
            raw: of `bytes_up`; in `held`, which the caller holds, or (None) in a worker's shared memory.

        Raises:
            ProtocolError: they cannot be read.
        """
        begin, end = what.block.span(what.seg_begin, what.seg_end)
        self._count_up(raw, what)
        if self._halves is None and (self._up is None or what.op not in _GRADIENTS):
            values = _as_received(raw, held, self._dtype)
        else:
            try:
                buffer = self._pool.take((end - begin) * self._dtype.itemsize, beyond=what.extends)
            except UnavailableError:
                return None
            try:
                if held is None and self._up is not None and isinstance(self._up.spec, TopK):
                    raw = raw.copy()
                if self._halves is not None:
                    self._halves.to_single(raw.view(np.uint16), buffer.array.view(self._dtype))
                else:
                    self._decode_untrusted(raw, buffer.array.view(self._dtype), what)
            except ProtocolError:
                buffer.release()
                raise
            values = Values(buffer.array.view(self._dtype), buffer)
        if not self._cleans(what):
            return values
        return self._cleaning.cleaned(values, what.rank, what.block.index, lambda array: self._not_finite(array, what))

    def _count_up(self, raw: Bytes, what: Gradient) -> None:
        begin, end = what.block.span(what.seg_begin, what.seg_end)
        self.traffic.bytes_in += raw.nbytes
        self.traffic.raw_in += (end - begin) * self._dtype.itemsize

    def _cleans(self, what: Gradient) -> bool:
        return self._cleaning.cleans and what.op in _GRADIENTS

    def _decode_untrusted(self, raw: Bytes, values: Vector, what: Gradient) -> None:
        assert self._up is not None
        at, first = 0, what.block.span(what.seg_begin, what.seg_end)[0]
        for segment in what.block.segments[what.seg_begin : what.seg_end]:
            begin = segment.begin - first
            nbytes = self._up.wire_bytes(segment.elements)
            self._up.decode_untrusted(raw[at : at + nbytes], values[begin : begin + segment.elements])
            values[begin + segment.elements : segment.end - first] = 0
            at += self._up.room(segment.elements)

    def rows_arrived_untrusted(
        self, named: NamedRows, raw: Bytes, held: Buffer | None, what: Gradient, memory: DenseMemory, *, lazy: bool
    ) -> tuple[Values | None, bool]:
        """The gradient of the segment that rows of it stand for, as `arrived_untrusted`; `lazy`: of the rows alone.

        `raw` lies in `held`, or (None) in a worker's shared memory.
        """
        nbytes = named.segment_elements * self._dtype.itemsize
        self.traffic.bytes_in += raw.nbytes
        self.traffic.raw_in += nbytes
        pieces = dense_rows.pieces_of(named, raw, self._layout.dtype)
        if self._halves is not None:
            halved, pieces, held = pieces, np.empty(pieces.size, self._dtype), None
            self._halves.to_single(halved.view(np.uint16), pieces)
        if lazy:
            values = dense_rows.as_rows(named, pieces, held)
        else:
            there = memory.receive_rows(named, pieces) if not self._cleans(what) else None
            if there is not None:
                return there
            try:
                run = self._pool.take(nbytes, beyond=what.extends)
            except UnavailableError:
                return None, True
            values = dense_rows.as_dense(named, pieces, self._dtype, run)
        name = self._layout.tensors[what.block.segments[what.seg_begin].tensor].name
        return memory.receive(self._cleaning.cleaned(values, what.rank, what.block.index, lambda _: [name]))

    # ---- values that are not finite ----------------------------------------------------------------------------------

    @property
    def decodes(self) -> bool:
        """Do gradients need room to be decoded into?"""
        return self._up is not None or self._halves is not None

    @property
    def looks(self) -> bool:
        """Is a gradient that is not finite rejected?"""
        return self._cleaning.looks

    def _not_finite(self, values: Vector, what: Gradient) -> list[str]:
        first = what.block.span(what.seg_begin, what.seg_end)[0]
        return [
            self._layout.tensors[segment.tensor].name
            for segment in what.block.segments[what.seg_begin : what.seg_end]
            if not np.isfinite(values[segment.begin - first : segment.end - first]).all()
        ]


def _as_received(raw: Bytes, held: Buffer | None, dtype: np.dtype[np.floating]) -> Values:
    if held is not None:
        held.hold()
    return Values(raw.view(dtype), held)
