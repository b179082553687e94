"""Shared memory between a worker and the servers on its host.

A worker makes segments (`SharedSegment.create`), passes their descriptors over the unix link, and lends pieces of them
as arrays (`ArenaHeap`). A server maps what it is given (`attach_untrusted`).

Invariants: a segment is a memfd sealed against shrinking and growing before anyone maps it, so nobody can take pages
away under a reader (SIGBUS); it is populated at creation and at attach (first touch of 64 MiB costs 111 ms, afterwards
6). A segment never grows: more memory is another segment. Every lent piece starts on 64 bytes. Only values are read in
place; offsets and lengths travel on the socket. The heap's lists are owned by its lock; pieces come back when the last
array on them is collected.
"""

from __future__ import annotations

import bisect
import fcntl
import mmap
import os
import stat
import threading
import weakref

import numpy as np
import numpy.typing as npt

from windlass_proto import limits
from windlass_proto.errors import ProtocolError, UnavailableError

_SEALS = 0
if hasattr(fcntl, "F_SEAL_SHRINK"):
    _SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_SEGMENT_BYTES_MIN = 16 * limits.MIB


def supported() -> bool:
    """Does this system have sealed memfds?"""
    return hasattr(os, "memfd_create") and bool(_SEALS)


class SharedSegment:
    """One sealed memfd, mapped; `array` is its bytes."""

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
        pages = mmap.mmap(descriptor, size_bytes, flags=flags)
        self.descriptor = descriptor
        self.size_bytes = size_bytes
        self.array: npt.NDArray[np.uint8] = np.frombuffer(pages, dtype=np.uint8)
        self.address = self.array.__array_interface__["data"][0]

    @classmethod
    def create(cls, size_bytes: int) -> SharedSegment:
        """A fresh segment of zeros, sealed and populated.

        Raises:
            UnavailableError: the system gave no memory.
        """
        descriptor = os.memfd_create("windlass", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(descriptor, size_bytes)
            os.posix_fallocate(descriptor, 0, size_bytes)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            return cls(descriptor, size_bytes)
        except OSError as cause:
            os.close(descriptor)
            raise UnavailableError(
                "shared memory could not be had",
                bytes=size_bytes,
                reason=str(cause),
                next_move="Free memory (or enlarge /dev/shm's limit), or set WINDLASS_LINK=tcp.",
            ) from cause

    def close(self) -> None:
        """Close the descriptor; the mapping goes with its last array."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def attach_untrusted(descriptor: int, size_bytes: int) -> SharedSegment:
    """Map a peer's segment after checking that it cannot be taken away. Closes the descriptor if it is refused.

    Raises:
        ProtocolError: not a memfd, not sealed, or not of the size told.
    """
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ProtocolError("a shared-memory descriptor is not a file", mode=oct(status.st_mode))
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        needed = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
        if seals & needed != needed:
            raise ProtocolError("a shared-memory segment is not sealed", seals=seals, needed=needed)
        if status.st_size != size_bytes or not 0 < size_bytes <= limits.ARENA_BYTES_MAX:
            raise ProtocolError("a shared-memory segment has another size", got=status.st_size, told=size_bytes)
        if status.st_blocks * 512 < size_bytes:  # populating it would make its pages ours to pay for
            raise ProtocolError("a shared-memory segment has holes", bytes=status.st_blocks * 512, told=size_bytes)
        return SharedSegment(descriptor, size_bytes)
    except OSError as cause:
        os.close(descriptor)
        raise ProtocolError("a shared-memory descriptor cannot be used", reason=str(cause)) from cause
    except ProtocolError:
        os.close(descriptor)
        raise


class Piece:
    """A lent run of a segment: `array` is uint8 on 64 bytes."""

    __slots__ = ("array", "offset", "segment_id")

    def __init__(self, segment_id: int, offset: int, array: npt.NDArray[np.uint8]) -> None:
        self.segment_id = segment_id
        self.offset = offset
        self.array = array


class ArenaHeap:
    """Lends pieces of shared segments; makes another segment when none has room.

    `segments[i]` has the id i + 1 (0 means "in the frame").
    """

    def __init__(self) -> None:
        self.segments: list[SharedSegment] = []
        self._free: list[list[tuple[int, int]]] = []  # per segment: free (offset, size), by offset
        self._spans: dict[int, tuple[int, int, int]] = {}  # address -> (segment id, offset, bytes that may be used)
        self._owned: dict[tuple[int, int], list[int]] = {}
        self._lock = threading.RLock()  # a collected array may give its piece back inside `take`

    def take(self, nbytes: int) -> Piece:
        """Lend `nbytes`, zeroed where the memory is fresh, starting on 64 bytes.

        Raises:
            UnavailableError: the system or the limit gives no more.
        """
        size = max(64, (nbytes + 63) & ~63)
        with self._lock:
            for index, free in enumerate(self._free):
                for at, (offset, room) in enumerate(free):
                    if room >= size:
                        if room == size:
                            del free[at]
                        else:
                            free[at] = (offset + size, room - size)
                        return self._lend(index, offset, size, nbytes)
            index = self._grow(size)
            free = self._free[index]
            offset, room = free.pop()
            if room > size:
                free.append((offset + size, room - size))
            return self._lend(index, offset, size, nbytes)

    def own_span(self, piece: Piece, offset: int, nbytes: int) -> None:
        """Say that an array at `offset` of `piece` may be read and written up to `nbytes` rounded up to 64."""
        address = self.segments[piece.segment_id - 1].address + piece.offset + offset
        with self._lock:
            self._spans[address] = (piece.segment_id, piece.offset + offset, (nbytes + 63) & ~63)
            self._owned.setdefault((piece.segment_id, piece.offset), []).append(address)

    def place_of(self, address: int, nbytes: int) -> tuple[int, int] | None:
        """(segment id, offset) of an array of `own_span` with room for `nbytes`, padding included, else None."""
        found = self._spans.get(address)
        return (found[0], found[1]) if found is not None and found[2] >= nbytes else None

    def close(self) -> None:
        """Close all descriptors; arrays stay usable until collected."""
        for segment in self.segments:
            segment.close()

    def _lend(self, index: int, offset: int, size: int, nbytes: int) -> Piece:
        raw = np.frombuffer(self.segments[index].array.data, dtype=np.uint8, count=nbytes, offset=offset)
        weakref.finalize(raw, self._give, index, offset, size).atexit = False
        return Piece(index + 1, offset, raw)

    def _give(self, index: int, offset: int, size: int) -> None:
        with self._lock:
            for address in self._owned.pop((index + 1, offset), ()):
                self._spans.pop(address, None)
            free = self._free[index]
            at = bisect.bisect_left(free, (offset, 0))
            if at < len(free) and offset + size == free[at][0]:
                size += free.pop(at)[1]
            if at > 0 and free[at - 1][0] + free[at - 1][1] == offset:
                offset, size = free[at - 1][0], free[at - 1][1] + size
                at -= 1
                free.pop(at)
            free.insert(at, (offset, size))

    def _grow(self, size: int) -> int:
        total = sum(segment.size_bytes for segment in self.segments)
        room = limits.ARENA_BYTES_MAX - total
        wanted = max(size, min(total, limits.GIB), _SEGMENT_BYTES_MIN)
        rounded = (wanted + mmap.PAGESIZE - 1) // mmap.PAGESIZE * mmap.PAGESIZE
        if rounded > room or len(self.segments) >= limits.ARENA_SEGMENTS_MAX:
            raise UnavailableError(
                "a session's shared memory is used up",
                bytes_used=total,
                bytes_asked=size,
                bytes_max=limits.ARENA_BYTES_MAX,
                next_move="Let go of arrays from store.empty.",
            )
        segment = SharedSegment.create(rounded)
        self.segments.append(segment)
        self._free.append([(0, rounded)])
        return len(self.segments) - 1
