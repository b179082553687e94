"""What the workers hold of a block whose weights come down as deltas (`windlass_proto.weight_deltas`).

    shown += decoded(encoded(weights - shown))

Every worker computes the same from the same bytes, so `values` is what each of them holds, bit for bit, as of its last
read. What a delta lost stays in weights - shown and is part of the next delta: error feedback without an array of its
own, with one state for a block however many workers there are.

A segment is shown when somebody reads it after it was stepped: under bsp that is once a step. Where the weights moved
otherwise (first or assigned values, a restored checkpoint), where no delta can say what they are (values that are not
finite), where an encoding is no shorter, and in modes without common steps, the weights themselves are shown.

Invariant: `number` rises by one with each showing. Of each segment the last change and the one before it are known, and
the bytes of the last one are kept; all of it is guarded by the lock of the block's share. It lies in host memory, also
where the weights do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from windlass_proto import finite, keys, memory, weight_deltas
from windlass_proto.codecs.registry import Codec
from windlass_proto.layout import Block
from windlass_proto.memory import BufferPool
from windlass_proto.weight_deltas import EXACT_BASE, Kind

Bytes = npt.NDArray[np.uint8]
Vector = npt.NDArray[np.floating]

_FLOAT32: Final = np.dtype(np.float32)


class Showing(NamedTuple):
    """An answer about segments [seg_begin, seg_end): (number, kind) of each, and how long it is."""

    seg_begin: int
    changes: Sequence[tuple[int, int]]
    nbytes: int


class ShownWeights:
    """One block's.

    Args:
        codec: what deltas are encoded with.
        seeds: by segment, what its chances are made of, with its count of updates.
        pool: where a segment's delta is made.
    """

    def __init__(self, block: Block, codec: Codec, seeds: Sequence[int], pool: BufferPool) -> None:
        count = len(block.segments)
        self.values: Vector = memory.aligned_zeros(block.elements, _FLOAT32)
        self.number = 0
        self._block = block
        self._codec = codec
        self._seeds = seeds
        self._pool = pool
        self._finite = finite.build(_FLOAT32)
        self._last = [0] * count
        self._before = [0] * count  # the change before the last; as high as that where it cannot be said as a delta
        self._stepped = [False] * count
        sizes = [0 if self._is_whole(seg) else codec.room(block.segments[seg].elements) for seg in range(count)]
        self._at = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64))).tolist()
        self._wire: Bytes = memory.aligned_zeros(max(self._at[-1], 1), np.dtype(np.uint8)).view(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes kept beside the weights."""
        return self.values.nbytes + self._wire.nbytes

    # ---- changes -----------------------------------------------------------------------------------------------------

    def step(self, seg_begin: int, seg_end: int) -> None:
        """The weights of these segments have moved."""
        self._stepped[seg_begin:seg_end] = [True] * (seg_end - seg_begin)

    def begin_anew(self, seg_begin: int, seg_end: int, values: Vector) -> None:
        """Other values were stored: `values` of the span are what all are to hold."""
        begin, end = self._block.span(seg_begin, seg_end)
        self.number += 1
        np.copyto(self.values[begin:end], values)
        self._whole(range(seg_begin, seg_end))

    def show(self, present: Vector, seg_begin: int, seg_end: int, updates: Sequence[int], *, lossy: bool) -> None:
        """Show what was stepped of these segments, whose weights are `present`.

        Args:
            updates: of every segment of the block, which decide on chances: a resumed run takes the same.
            lossy: as deltas; otherwise the weights themselves.
        """
        stepped = [seg for seg in range(seg_begin, seg_end) if self._stepped[seg]]
        if not stepped:
            return
        self.number += 1
        first = self._block.segments[seg_begin].begin
        for seg in stepped:
            segment = self._block.segments[seg]
            weights = present[segment.begin - first : segment.begin - first + segment.elements]
            shown = self.values[segment.begin : segment.begin + segment.elements]
            if lossy and not self._is_whole(seg) and self._encode(seg, weights, shown, updates[seg]):
                self._before[seg], self._last[seg] = self._last[seg], self.number
                self._stepped[seg] = False
            else:
                np.copyto(shown, weights)
                self._whole((seg,))

    def _whole(self, segments: Sequence[int]) -> None:
        for seg in segments:
            self._before[seg] = self._last[seg] = self.number
            self._stepped[seg] = False

    def _encode(self, seg: int, weights: Vector, shown: Vector, updates: int) -> bool:
        """Move `shown` by what travels; False if no delta can say it."""
        buffer = self._pool.take(max(weights.nbytes, 1), beyond=True)
        try:
            delta = buffer.array[: weights.nbytes].view(np.float32)
            np.subtract(weights, shown, out=delta)
            if not self._finite.all_finite(delta):
                return False
            wire = self._wire_of(seg)[: self._codec.wire_bytes(weights.size)]
            self._codec.encode(delta, wire, None, keys.mix64(self._seeds[seg] ^ updates))
            self._codec.decode_untrusted(wire, delta)
            np.add(shown, delta, out=shown)
            return True
        finally:
            buffer.release()

    # ---- answers -----------------------------------------------------------------------------------------------------

    def showing(self, base: int, seg_begin: int, seg_end: int) -> Showing:
        """What is said to somebody who read state `base`."""
        changes = [(self._last[seg], self._kind(base, seg)) for seg in range(seg_begin, seg_end)]
        nbytes = weight_deltas.head_bytes(len(changes))
        for segment, (_, kind) in zip(self._block.segments[seg_begin:seg_end], changes, strict=True):
            nbytes += weight_deltas.segment_bytes(self._codec, kind, segment.elements)
        return Showing(seg_begin, changes, nbytes)

    def write(self, showing: Showing, present: Vector, out: Bytes) -> None:
        """Write an answer; `present` are the weights of its span."""
        at = weight_deltas.pack_head(self.number, showing.changes, out)
        first = self._block.segments[showing.seg_begin].begin
        for seg, (_, kind) in enumerate(showing.changes, showing.seg_begin):
            segment = self._block.segments[seg]
            end = at + weight_deltas.segment_bytes(self._codec, kind, segment.elements)
            if kind == Kind.DELTA:
                out[at:end] = self._wire_of(seg)
            elif kind != Kind.SAME:
                source, begin = (self.values, 0) if kind == Kind.WHOLE else (present, first)
                values = source[segment.begin - begin : segment.begin - begin + segment.elements]
                out[at : at + values.nbytes].view(np.float32)[:] = values
                out[at + values.nbytes : end] = 0
            at = end

    def _kind(self, base: int, seg: int) -> Kind:
        if base == EXACT_BASE:
            return Kind.EXACT
        if self._last[seg] <= base:
            return Kind.SAME
        return Kind.DELTA if self._before[seg] <= base and base else Kind.WHOLE

    def _is_whole(self, seg: int) -> bool:
        return weight_deltas.travels_whole(self._codec, self._block.segments[seg].elements)

    def _wire_of(self, seg: int) -> Bytes:
        return self._wire[self._at[seg] : self._at[seg + 1]]
