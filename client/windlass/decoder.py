"""A decoder: what weights of one dense group become when they arrive in a codec.

Answers come into a room of the ticket's own; who waits for the ticket decodes them into the arrays that asked.

Invariant: a segment is decoded by itself, as it was encoded; only its own elements of an array are written.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from windlass.arrays import Array
from windlass.dense_table import DenseTable, Flat, Span
from windlass.rooms import Room, Rooms
from windlass_proto.codec_specs import CodecSpec
from windlass_proto.codecs import registry
from windlass_proto.links.arena import ArenaHeap


class Decoder:
    """See the module. The store's lock guards `expect`."""

    def __init__(self, table: DenseTable, spec: CodecSpec, heap: ArenaHeap | None) -> None:
        self.table = table
        self.codec = registry.build(spec)
        self._rooms = Rooms(heap)

    def expect(self, spans: list[Span], into: Flat | dict[int, Array], after: list[Callable[[], None]]) -> list[Span]:
        """`spans` with room for their answers; `after` gets what decodes them into the arrays."""
        sizes = [self._bytes(span) for span in spans]
        room = self._rooms.take(sum(sizes))
        expected, at = [], 0
        for span, nbytes in zip(spans, sizes, strict=True):
            expected.append(span._replace(out=room.values(at, nbytes)))
            at += nbytes
        after.append(lambda: self._decode(expected, room, into))
        return expected

    def _decode(self, spans: list[Span], room: Room, into: Flat | dict[int, Array]) -> None:
        arrays = into if isinstance(into, dict) else dict(enumerate(into.tensors))
        at = 0
        for span in spans:
            block = self.table.layout.blocks[span.block]
            for segment in block.segments[span.seg_begin : span.seg_end]:
                wire = room.array[at : at + self.codec.wire_bytes(segment.elements)]
                self._into(arrays[segment.tensor], segment.tensor_begin, segment.elements, wire)
                at += self.codec.room(segment.elements)
        self._rooms.give(room)

    def _into(self, array: Array, begin: int, elements: int, wire: Array) -> None:
        if array.flags.c_contiguous:
            self.codec.decode_untrusted(wire, array.reshape(-1)[begin : begin + elements])
            return
        values = np.empty(elements, np.float32)
        self.codec.decode_untrusted(wire, values)
        array.flat[begin : begin + elements] = values

    def _bytes(self, span: Span) -> int:
        segments = self.table.layout.blocks[span.block].segments[span.seg_begin : span.seg_end]
        return sum(self.codec.room(segment.elements) for segment in segments)
