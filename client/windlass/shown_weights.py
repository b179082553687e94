"""What this worker was shown of a dense group whose weights come down as deltas (`windlass_proto.weight_deltas`).

`held` is what every worker of the store holds after the same showing, bit for bit. It is beside the arrays that a pull
fills, which are the caller's: a delta needs what came before it as it came.

Answers come into a room of the ticket's own; who waits for the ticket takes the deltas in, and copies what is held then
to the arrays that asked. Who waits for tickets in another order than they were asked for gets the newer values twice.

Invariant: of each segment, `held` is its state number `_numbers`; a change is added once, to the state before it, and
numbers only rise. The store's lock guards `expect`; tickets are finished one at a time, which guards the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from windlass.arrays import Array
from windlass.dense_table import DenseTable, Flat, Span
from windlass.rooms import Room, Rooms
from windlass_proto import memory, weight_deltas
from windlass_proto.codec_specs import CodecSpec
from windlass_proto.codecs import registry
from windlass_proto.errors import ProtocolError
from windlass_proto.layout import Block
from windlass_proto.links.arena import ArenaHeap
from windlass_proto.weight_deltas import EXACT_BASE, Kind

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]

NOTHING_READ: Final = 0


class ShownWeights:
    """See the module."""

    def __init__(self, table: DenseTable, spec: CodecSpec, heap: ArenaHeap | None) -> None:
        self.table = table
        self.codec = registry.build(spec)
        layout = table.layout
        self.held: Floats = memory.aligned_zeros(layout.flat_elements, np.float32).view(np.float32)
        self._numbers = [[NOTHING_READ] * len(block.segments) for block in layout.blocks]
        longest = max((segment.elements for block in layout.blocks for segment in block.segments), default=0)
        self._delta: Floats = memory.aligned_zeros(longest, np.float32).view(np.float32)
        self._rooms = Rooms(heap)

    def expect(
        self,
        spans: list[Span],
        into: Flat | dict[int, Array],
        after: list[Callable[[], None]],
        *,
        exact: bool = False,
    ) -> list[Span]:
        """`spans` with room for their answers; `after` gets what brings the arrays to what they say.

        Args:
            exact: the server's own weights are asked for, which nobody holds.
        """
        blocks = self.table.layout.blocks
        sizes = [weight_deltas.bytes_max(blocks[s.block].segments[s.seg_begin : s.seg_end]) for s in spans]
        room = self._rooms.take(sum(sizes))
        expected, at = [], 0
        for span, nbytes in zip(spans, sizes, strict=True):
            base = EXACT_BASE if exact else min(self._numbers[span.block][span.seg_begin : span.seg_end])
            expected.append(span._replace(out=room.values(at, nbytes), base=base))
            at += nbytes
        after.append(lambda: self._take(expected, sizes, room, into))
        return expected

    def _take(self, spans: list[Span], sizes: list[int], room: Room, into: Flat | dict[int, Array]) -> None:
        arrays = into if isinstance(into, dict) else dict(enumerate(into.tensors))
        at = 0
        for span, nbytes in zip(spans, sizes, strict=True):
            self._take_span_untrusted(span, room.array[at : at + nbytes], arrays)
            at += nbytes
        self._rooms.give(room)

    def _take_span_untrusted(self, span: Span, raw: Bytes, arrays: dict[int, Array]) -> None:
        block = self.table.layout.blocks[span.block]
        number, changes = weight_deltas.head_untrusted(raw, span.seg_end - span.seg_begin)
        at = weight_deltas.head_bytes(len(changes))
        for seg, (change, kind) in enumerate(changes, span.seg_begin):
            segment = block.segments[seg]
            end = at + weight_deltas.segment_bytes(self.codec, kind, segment.elements)
            if end > raw.nbytes:
                raise ProtocolError("a server showed more than was asked for", nbytes=end, bytes_max=raw.nbytes)
            values = self._take_segment_untrusted(block, seg, change, kind, raw[at:end])
            if kind != Kind.EXACT:
                self._numbers[span.block][seg] = max(self._numbers[span.block][seg], number)
            array, begin = arrays[segment.tensor], segment.tensor_begin
            if array.flags.c_contiguous:
                array.reshape(-1)[begin : begin + segment.elements] = values
            else:
                array.flat[begin : begin + segment.elements] = values
            at = end

    def _take_segment_untrusted(self, block: Block, seg: int, change: int, kind: int, raw: Bytes) -> Floats:
        """The segment's values after an answer."""
        segment = block.segments[seg]
        begin = block.flat_begin + segment.begin
        held, known = self.held[begin : begin + segment.elements], self._numbers[block.index][seg]
        if kind == Kind.EXACT:
            return raw[: held.nbytes].view(np.float32)
        if kind != Kind.WHOLE and known == NOTHING_READ:
            raise ProtocolError("a server showed a change of weights that were never read", block=block.index)
        if change <= known:
            return held
        if kind == Kind.WHOLE:
            np.copyto(held, raw[: held.nbytes].view(np.float32))
        elif kind == Kind.DELTA:
            delta = self._delta[: segment.elements]
            self.codec.decode_untrusted(raw[: self.codec.wire_bytes(segment.elements)], delta)
            np.add(held, delta, out=held)
        else:
            raise ProtocolError("a server left out a change of weights", change=change, known=known)
        return held
