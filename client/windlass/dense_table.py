"""A dense group as a worker sees it: from arrays by name to entries by block.

Values travel as they lie. A *flat* array holds the whole group in its layout, so each block is one run. *Scattered*
arrays (the user's own, borrowed, or taken one by one from shared memory) are gathered segment by segment; where
neighbours follow each other in shared memory they still make one run.

Invariant: an entry's values cover whole segments, padding included; padding on the wire is zeros and padding that
arrives goes to a sink or to memory set aside for it, never to a user's array.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from windlass.data_link import InArena, InFrame
from windlass_proto import limits, memory
from windlass_proto.layout import Block, GroupLayout
from windlass_proto.links.arena import ArenaHeap

Vector = npt.NDArray[Any]

_ZEROS = memoryview(bytes(limits.ALIGN_BYTES))
_SINK = memoryview(bytearray(limits.ALIGN_BYTES))
_PLANS_MAX = 8


class Flat:
    """Memory for one whole group in its layout. `tensors` are views of it by tensor number, in their shapes."""

    __slots__ = ("arena", "array", "bytes", "tensors")

    def __init__(self, layout: GroupLayout, heap: ArenaHeap | None) -> None:
        nbytes = layout.flat_elements * layout.dtype.itemsize
        if heap is None:
            self.array: Vector = memory.aligned_zeros(layout.flat_elements, layout.dtype)
            self.arena: tuple[int, int] | None = None
        else:
            piece = heap.take(nbytes)
            piece.array[:] = 0
            self.array = piece.array.view(layout.dtype)
            self.arena = (piece.segment_id, piece.offset)
            for tensor, begin in zip(layout.tensors, layout.flat_begins[:-1], strict=True):
                size = tensor.elements * layout.dtype.itemsize
                if size:
                    heap.own_span(piece, begin * layout.dtype.itemsize, size)
        self.bytes = self.array.view(np.uint8).data
        self.tensors = list(layout.views(self.array).values())


class Span(NamedTuple):
    """One entry to be: segments [seg_begin, seg_end) of a block, where its values lie, where its answer goes.

    `rows`: how many rows of a dense tensor it is about; None: it is about whole segments, or of a sparse table.
    `base`: where weights come down as deltas, the state that was read last; None: they come as long as `out`.
    `factor`: what a gradient is multiplied with by the server; None: its weight in the mean is what counts.
    """

    share: tuple[int, int]
    block: int
    seg_begin: int
    seg_end: int
    payload: InFrame | InArena | None
    out: InFrame | InArena | None
    rows: int | None = None
    base: int | None = None
    factor: float | None = None


Place = Flat | dict[int, Vector] | None
"""Where values lie: a flat group, arrays by tensor number (C-contiguous), or nowhere."""


class DenseTable:
    """Layout and memory of one group in one worker.

    Args:
        layout: the declared layout.
        store_id: its store.
        heap: shared memory, or None.
    """

    def __init__(self, layout: GroupLayout, store_id: int, heap: ArenaHeap | None) -> None:
        self.layout = layout
        self.store_id = store_id
        self.heap = heap
        self.table_id = layout.table_id
        self._free: list[Flat] = []
        self._plans: dict[Any, tuple[list[Span], Any]] = {}

    # ---- memory ------------------------------------------------------------------------------------------------------

    def take_flat(self) -> Flat:
        """A flat array that nobody uses; its contents are what its last user left."""
        return self._free.pop() if self._free else Flat(self.layout, self.heap)

    def give_flat(self, flat: Flat) -> None:
        """Done with it: the next `take_flat` finds it warm."""
        if len(self._free) < 4:
            self._free.append(flat)

    def lies_in_arena(self, tensor: int, array: Vector) -> bool:
        """May the servers read and write this array where it is, padding included?"""
        return self._arena_place(tensor, array) is not None

    def _arena_place(self, tensor: int, array: Vector) -> tuple[int, int] | None:
        if self.heap is None:
            return None
        begins = self.layout.flat_begins
        nbytes = (begins[tensor + 1] - begins[tensor]) * self.layout.dtype.itemsize
        return self.heap.place_of(array.__array_interface__["data"][0], nbytes)

    # ---- entries -----------------------------------------------------------------------------------------------------

    def spans(
        self, tensors: tuple[int, ...], source: Place, out: Place, borders: frozenset[tuple[int, int]] = frozenset()
    ) -> list[Span]:
        """The entries for these tensors (ascending), in flat order. Repeated calls with the same memory are cached.

        borders: (block, segment) at which an entry begins in any case.
        """
        key = (tensors, _key(source), _key(out), borders)
        found = self._plans.get(key)
        if found is not None:
            return found[0]
        spans = [
            span
            for block, begin, end in self._runs(tensors)
            for span in self._cut(block, begin, end, source, out, borders)
        ]
        if len(self._plans) >= _PLANS_MAX:
            self._plans.clear()
        self._plans[key] = (spans, (source, out))  # they stay alive, so their ids stay their own
        return spans

    def _runs(self, tensors: tuple[int, ...]) -> list[tuple[Block, int, int]]:
        """Runs of neighbouring segments of the named tensors, block by block."""
        blocks = self.layout.blocks
        if len(tensors) == len(self.layout.tensors):
            return [(block, 0, len(block.segments)) for block in blocks]
        runs: list[tuple[Block, int, int]] = []
        for tensor in tensors:
            for b, s in self.layout.segments_of[tensor]:
                if runs and runs[-1][0].index == b and runs[-1][2] == s:
                    runs[-1] = (runs[-1][0], runs[-1][1], s + 1)
                else:
                    runs.append((blocks[b], s, s + 1))
        return runs

    def _cut(
        self, block: Block, begin: int, end: int, source: Place, out: Place, borders: frozenset[tuple[int, int]]
    ) -> list[Span]:
        """One span, or several where shared memory is not in one run, or a border says so."""
        share = (self.table_id, block.vshard)
        cuts = {begin, end} | self._breaks(block, begin, end, source) | self._breaks(block, begin, end, out)
        if borders:
            cuts |= {s for s in range(begin + 1, end) if (block.index, s) in borders}
        return [
            Span(
                share,
                block.index,
                a,
                b,
                self._values(block, a, b, source, _ZEROS),
                self._values(block, a, b, out, _SINK),
            )
            for a, b in itertools.pairwise(sorted(cuts))
        ]

    def _breaks(self, block: Block, begin: int, end: int, place: Place) -> set[int]:
        """Segments at which scattered shared memory does not follow on its predecessor."""
        if not isinstance(place, dict) or self.heap is None:
            return set()
        breaks: set[int] = set()
        follows: tuple[int, int] | None = None
        for s in range(begin, end):
            at = self._segment_place(block, s, place)
            if s > begin and at != follows:
                breaks.add(s)
            follows = None
            if at is not None:
                segment = block.segments[s]
                follows = (at[0], at[1] + (segment.end - segment.begin) * self.layout.dtype.itemsize)
        return breaks

    def _segment_place(self, block: Block, s: int, arrays: dict[int, Vector]) -> tuple[int, int] | None:
        segment = block.segments[s]
        place = self._arena_place(segment.tensor, arrays[segment.tensor])
        if place is None:
            return None
        return place[0], place[1] + segment.tensor_begin * self.layout.dtype.itemsize

    def _values(
        self, block: Block, begin: int, end: int, place: Place, padding: memoryview
    ) -> InFrame | InArena | None:
        if place is None:
            return None
        itemsize = self.layout.dtype.itemsize
        first, last = block.span(begin, end)
        nbytes = (last - first) * itemsize
        if isinstance(place, Flat):
            at = (block.flat_begin + first) * itemsize
            if place.arena is not None:
                return InArena(place.arena[0], place.arena[1] + at, nbytes)
            return InFrame((place.bytes[at : at + nbytes],), nbytes)
        shared = self._segment_place(block, begin, place) if self.heap is not None else None
        if shared is not None:
            return InArena(shared[0], shared[1], nbytes)
        views: list[memoryview] = []
        for segment in block.segments[begin:end]:
            raw = place[segment.tensor].reshape(-1).view(np.uint8).data
            views.append(raw[segment.tensor_begin * itemsize : (segment.tensor_begin + segment.elements) * itemsize])
            pad = (segment.end - segment.begin - segment.elements) * itemsize
            if pad:
                views.append(padding[:pad])
        return InFrame(tuple(view for view in views if view.nbytes), nbytes)


def tensors_between(layout: GroupLayout, block: int, begin: int, end: int) -> list[str]:
    """Names of the tensors in segments [begin, end) of a block."""
    return [layout.tensors[segment.tensor].name for segment in layout.blocks[block].segments[begin:end]]


def not_finite(layout: GroupLayout, block: int, begin: int, end: int, raw: bytes) -> dict[str, int]:
    """Tensors in segments [begin, end) of a block whose values in `raw` are not all finite, and how many are not."""
    values: Vector = np.frombuffer(raw, dtype=layout.dtype)
    if layout.dtype_name == "bfloat16":
        values = (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    bad = ~np.isfinite(values)
    first = layout.blocks[block].segments[begin].begin
    counts = {
        layout.tensors[segment.tensor].name: int(bad[segment.begin - first :][: segment.elements].sum())
        for segment in layout.blocks[block].segments[begin:end]
    }
    return {name: count for name, count in counts.items() if count}


def _key(place: Place) -> Any:
    """What a place is known by while the plan that holds it lives."""
    return tuple(map(id, place.values())) if isinstance(place, dict) else id(place)
