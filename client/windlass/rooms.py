"""Rooms: memory that what a ticket sends or receives lies in, until the ticket is settled.

Invariant: a room belongs to one ticket at a time, starts on 64 bytes, and lies in shared memory where there is some.
Sizes are powers of two, so that what one call gives back the next of its size finds warm.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from windlass.data_link import InArena, InFrame
from windlass_proto import memory
from windlass_proto.frames import aligned
from windlass_proto.links.arena import ArenaHeap

_SIZE_MIN = 4096
_FREE_MAX = 8

Bytes = npt.NDArray[np.uint8]


class Room:
    """`array` is uint8; `values` names a part of it for an entry."""

    __slots__ = ("array", "place")

    def __init__(self, array: Bytes, place: tuple[int, int] | None) -> None:
        self.array = array
        self.place = place

    def values(self, offset: int, nbytes: int) -> InFrame | InArena | None:
        """Where an entry's values lie; None for no bytes."""
        if not nbytes:
            return None
        if self.place is not None:
            return InArena(self.place[0], self.place[1] + offset, nbytes)
        return InFrame((self.array[offset : offset + nbytes].data,), nbytes)


class Rooms:
    """Lends rooms. Its owner's lock guards `take`; `give` is called by whoever settles a ticket."""

    def __init__(self, heap: ArenaHeap | None) -> None:
        self._heap = heap
        self._free: dict[int, list[Room]] = {}

    def take(self, nbytes: int) -> Room:
        """Room for `nbytes`, warm where one of its size has been given back."""
        size = max(_SIZE_MIN, 1 << (max(nbytes, 1) - 1).bit_length())
        free = self._free.get(size)
        if free:
            return free.pop()
        if self._heap is None:
            return Room(memory.aligned_zeros(size, np.uint8).view(np.uint8), None)
        piece = self._heap.take(size)
        return Room(piece.array, (piece.segment_id, piece.offset))

    def lay_out(self, sizes: list[int]) -> tuple[Room, list[int]]:
        """Room for parts of these bytes, and where each begins: on multiples of 64, as entries' values must."""
        begins = [0, *itertools.accumulate(map(aligned, sizes))]
        return self.take(begins[-1]), begins[:-1]

    def give(self, room: Room) -> None:
        """Done with it."""
        free = self._free.setdefault(room.array.nbytes, [])
        if len(free) < _FREE_MAX:
            free.append(room)
