"""An encoder: what a worker's gradients of one dense group become on their way up, and what they lost.

Each segment is encoded by itself, from the caller's array: nothing of it is lent or copied. The bytes lie in a room of
the ticket's own until it is settled, so an entry that is sent again is sent as it was. What a segment lost is in
`error`, which is laid out as the group is, and goes into the segment's next gradient.

Invariant: encoding happens once a call, after its arguments were found good. What was lost changes then, not when an
entry is answered or sent again. A call whose gradients are not finite leaves it as it was: they are not applied.

Owner: the store's lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from windlass.arrays import Array
from windlass.dense_table import DenseTable, Place, Span
from windlass.replaced_values import ReplacedValues
from windlass.rooms import Room, Rooms
from windlass_proto import finite, keys, memory
from windlass_proto.codecs import registry
from windlass_proto.links.arena import ArenaHeap
from windlass_proto.transfer_specs import Nonfinite, Transfer

if TYPE_CHECKING:
    from windlass.clipping import Clipping

Floats = npt.NDArray[np.float32]


class Encoder:
    """See the module.

    Args:
        table: the group as this worker sees it.
        transfer: how it travels; it has a codec for the way up.
        rank: this worker's; it is part of what chances are drawn from, so that workers draw different ones.
        steps_done: which step of the run this is, over all its resumptions; also part of it.
        replaced: where values are counted that are not finite, and are not what is encoded.
    """

    def __init__(
        self,
        table: DenseTable,
        transfer: Transfer,
        heap: ArenaHeap | None,
        *,
        rank: int,
        steps_done: Callable[[], int],
        replaced: ReplacedValues,
    ) -> None:
        assert transfer.up is not None
        self.table = table
        self.codec = registry.build(transfer.up)
        self.error: Floats | None = None
        if transfer.up.feedback:
            self.error = memory.aligned_zeros(table.layout.flat_elements, np.float32).view(np.float32)
        self._policy = transfer.nonfinite
        self._rooms = Rooms(heap)
        self._rank = rank
        self._steps_done = steps_done
        self._step, self._calls = -1, 0
        seed = getattr(transfer.up, "seed", 0)
        self._seeds = [xxhash.xxh3_64_intdigest(tensor.name.encode(), seed) for tensor in table.layout.tensors]
        self._finite = finite.build(table.layout.dtype)
        self._replaced = replaced

    def spans(
        self,
        tensors: dict[int, Array],
        out: Place,
        settle: list[Callable[[], None]],
        clipping: Clipping | None,
        squares: dict[tuple[int, int, int], float],
    ) -> list[Span]:
        """The entries of a push of `tensors` (ascending), encoded; `settle` gets what gives their memory back.

        Where this worker's norms clip it, `squares` gets the sums of squares of what will arrive.
        """
        numbers = tuple(tensors)
        borders = clipping.borders_ahead(numbers) if clipping is not None else frozenset()
        spans = self.table.spans(numbers, None, out, borders)
        vectors = {number: np.ascontiguousarray(array).reshape(-1) for number, array in tensors.items()}
        bad = [number for number, vector in vectors.items() if not self._finite.all_finite(vector)]
        keeps = self.error is not None
        if bad and self._policy in (Nonfinite.ZERO, Nonfinite.CLIP):
            self._clean(vectors, bad)
        elif bad:
            keeps = False
        room = self._rooms.take(sum(map(self._bytes, spans)))
        settle.append(lambda: self._rooms.give(room))
        chance = self._chance()
        encoded, at = [], 0
        for span in spans:
            nbytes = self._bytes(span)
            self._encode(span, vectors, room, at, chance, keeps=keeps)
            if clipping is not None:
                self._measure(span, room.array[at : at + nbytes], clipping, squares)
            encoded.append(span._replace(payload=room.values(at, nbytes)))
            at += nbytes
        return encoded

    def not_finite(self, block: int, begin: int, end: int, raw: bytes) -> list[str]:
        """Names of the tensors in segments [begin, end) of a block whose encodings in `raw` are not all finite."""
        names, at, layout = [], 0, self.table.layout
        encoded = np.frombuffer(raw, np.uint8)
        for segment in layout.blocks[block].segments[begin:end]:
            values = np.empty(segment.elements, np.float32)
            self.codec.decode_untrusted(encoded[at : at + self.codec.wire_bytes(values.size)], values)
            if not np.isfinite(values).all():
                names.append(layout.tensors[segment.tensor].name)
            at += self.codec.room(values.size)
        return names

    # ---- inside ------------------------------------------------------------------------------------------------------

    def _bytes(self, span: Span) -> int:
        segments = self.table.layout.blocks[span.block].segments[span.seg_begin : span.seg_end]
        return sum(self.codec.room(segment.elements) for segment in segments)

    def _encode(self, span: Span, vectors: dict[int, Any], room: Room, at: int, chance: int, *, keeps: bool) -> None:
        block = self.table.layout.blocks[span.block]
        for segment in block.segments[span.seg_begin : span.seg_end]:
            nbytes = self.codec.wire_bytes(segment.elements)
            values = vectors[segment.tensor][segment.tensor_begin : segment.tensor_begin + segment.elements]
            error = None
            if keeps and self.error is not None:
                begin = block.flat_begin + segment.begin
                error = self.error[begin : begin + segment.elements]
            seed = keys.mix64(chance ^ self._seeds[segment.tensor] ^ segment.tensor_begin)
            self.codec.encode(values, room.array[at : at + nbytes], error, seed)
            at += self.codec.room(segment.elements)

    def _measure(
        self,
        span: Span,
        raw: npt.NDArray[np.uint8],
        clipping: Clipping,
        squares: dict[tuple[int, int, int], float],
    ) -> None:
        """Of what the servers will have of each segment."""
        at, segments = 0, self.table.layout.blocks[span.block].segments
        for s in range(span.seg_begin, span.seg_end):
            values = np.empty(segments[s].elements, np.float32)
            self.codec.decode_untrusted(raw[at : at + self.codec.wire_bytes(values.size)], values)
            squares[self.table.table_id, span.block, s] = clipping.segment_sum(values)
            at += self.codec.room(values.size)

    def _chance(self) -> int:
        """What this call's seeds are made of: the step, which call of it this is, the rank."""
        step = self._steps_done()
        self._calls = self._calls + 1 if step == self._step else 0
        self._step = step
        return keys.mix64(keys.mix64(step << 20 | self._calls) ^ self._rank)

    def _clean(self, vectors: dict[int, Any], bad: list[int]) -> None:
        for number in bad:
            cleaned = np.empty_like(vectors[number])
            self._finite.cleaned(vectors[number], cleaned, self._policy)
            count = vectors[number].size - int(np.count_nonzero(np.isfinite(vectors[number])))
            self._replaced.count(self.table.layout.tensors[number].name, count, self._policy, self._rank)
            vectors[number] = cleaned
