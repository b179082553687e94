"""Memory that kernels touch: aligned, pre-touched, pooled.

Invariant: every array from here starts on 64 bytes. A `BufferPool` never holds or lends more than `bytes_max`, and a
buffer is lent to one borrower at a time. The pool owns its free lists under its own lock.

First touch of fresh pages costs eight times a warm write (64 MiB: 111 ms against 6 ms), so buffers are kept and lent
again instead of being returned to the system. Sizes are powers of two from 64 KiB: at most twice what was asked for,
and every freed buffer fits the next frame of its kind.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto import limits
from windlass_proto.errors import UnavailableError

_SIZE_MIN = 64 * limits.KIB
_COLOUR_BYTES = 12 * limits.KIB
_HUGE_FROM = 2 * limits.MIB
_POPULATE_WRITE = 23  # Linux 5.14; Python does not name it
# Python names it from 3.13 on; 0x4000 is Linux's, where it matters: else a table's addresses would count as memory.
_NORESERVE = 0x4000 if sys.platform == "linux" else 0


def map_pages(size_bytes: int) -> mmap.mmap:
    """Anonymous private memory of `size_bytes`, on huge pages where the system gives them."""
    pages = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE") and size_bytes >= 2 * limits.MIB:
        pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


def reserve(nbytes: int) -> tuple[mmap.mmap, npt.NDArray[np.uint8]]:
    """Addresses for `nbytes` of zeros, whose memory is only taken where it is touched.

    Raises:
        UnavailableError: the system gives none.
    """
    size = max(mmap.PAGESIZE, -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE)
    try:
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
    except (OSError, ValueError, OverflowError) as cause:
        raise UnavailableError(
            "the system gives no addresses for a table",
            bytes=size,
            reason=str(cause),
            next_move="Declare it with fewer bytes_max=.",
        ) from cause
    if hasattr(mmap, "MADV_HUGEPAGE") and size > _HUGE_FROM:
        # The first bytes stay on small pages: a table of a few rows would else hold 2 MiB an array.
        pages.madvise(mmap.MADV_HUGEPAGE, _HUGE_FROM, size - _HUGE_FROM)
    return pages, np.frombuffer(pages, dtype=np.uint8)


def populate(array: npt.NDArray[Any]) -> None:
    """Take memory for the whole pages of `array` now; their contents stay what they are, others may write to them.

    It holds no interpreter lock. Where the system does not know how (Linux before 5.14, others) nothing happens: pages
    are then taken when they are first touched.
    """
    begin = -(-array.ctypes.data // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (array.ctypes.data + array.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    for at in range(begin, end, _HUGE_FROM):
        if _madvise(at, min(_HUGE_FROM, end - at), _POPULATE_WRITE):
            return


def _madvise(begin: int, nbytes: int, advice: int) -> int:
    if sys.platform != "linux":
        return -1
    result: int = ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(nbytes), advice)
    return result


_colours = itertools.cycle(range(0, 16 * _COLOUR_BYTES, _COLOUR_BYTES))


def aligned_zeros(elements: int, dtype: npt.DTypeLike) -> npt.NDArray[np.floating]:
    """A 1-D array of zeros that starts on 64 bytes; its memory is touched.

    Large arrays start at staggered offsets of a page run: weights, slots and gradients that all begin at the same
    offset contend for the same cache sets (64 MiB with a slot: 28 GB/s against 35 to 40).
    """
    kind = np.dtype(dtype)
    size = max(elements * kind.itemsize, 1)
    begin = next(_colours) if size >= limits.MIB else 0
    array: npt.NDArray[np.floating] = np.frombuffer(map_pages(begin + size), dtype=kind, count=elements, offset=begin)
    array.fill(0)
    return array


class Buffer:
    """A lent run of bytes: `array` is uint8, of the size asked for; each holder calls `release()` once."""

    __slots__ = ("_pages", "_pool", "array", "holders")

    def __init__(self, pages: npt.NDArray[np.uint8], pool: BufferPool, nbytes: int) -> None:
        self._pages = pages
        self._pool = pool
        self.array = pages[:nbytes]
        self.holders = 1

    def hold(self) -> None:
        """One more holder must release before the buffer is lent again. Called by a thread that holds it."""
        with self._pool.lock:
            self.holders += 1

    def release(self) -> None:
        """One holder less; the last one's release gives the memory back to the pool."""
        self._pool.give(self)


def _fresh_pages(size_bytes: int) -> npt.NDArray[np.uint8]:
    return np.frombuffer(map_pages(size_bytes), dtype=np.uint8)


class BufferPool:
    """Buffers of page-aligned bytes, lent and given back by any thread.

    Args:
        bytes_max: lent at most, but for what is lent `beyond`.
        fresh: makes memory of a size: ordinary pages, or a device's, which is sliced and viewed as they are.
    """

    def __init__(self, bytes_max: int, fresh: Callable[[int], npt.NDArray[np.uint8]] = _fresh_pages) -> None:
        self.bytes_max = bytes_max
        self._fresh = fresh
        self.bytes_lent = 0
        self.bytes_kept = 0
        self.lock = threading.Lock()
        self._free: dict[int, list[npt.NDArray[np.uint8]]] = defaultdict(list)

    def take(self, nbytes: int, *, beyond: bool = False) -> Buffer:
        """Lend a buffer of at least `nbytes`; its contents are whatever its last borrower left.

        `beyond` lends past the limit: for what must not fail once an operation is admitted. Admission looks at `full`.

        Raises:
            UnavailableError: if the pool would lend more than `bytes_max`.
        """
        size = max(_SIZE_MIN, 1 << (max(nbytes, 1) - 1).bit_length())
        with self.lock:
            if self.bytes_lent + size > self.bytes_max and not beyond:
                raise UnavailableError(
                    "the buffer pool is exhausted",
                    bytes_lent=self.bytes_lent,
                    bytes_asked=size,
                    bytes_max=self.bytes_max,
                    next_move="Wait for answers before pushing more, or give the server more memory.",
                )
            self.bytes_lent += size
            free = self._free[size]
            pages = free.pop() if free else None
            if pages is not None:
                self.bytes_kept -= size
            else:
                self._let_go()
        if pages is None:
            try:
                pages = self._fresh(size)
            except BaseException:
                with self.lock:
                    self.bytes_lent -= size
                raise
        return Buffer(pages, self, nbytes)

    @property
    def full(self) -> bool:
        """Is as much lent as may be?"""
        return self.bytes_lent >= self.bytes_max

    def give(self, buffer: Buffer) -> None:
        """Take `buffer` back once its last holder gives it."""
        size = buffer._pages.size
        with self.lock:
            buffer.holders -= 1
            if buffer.holders > 0:
                return
            self.bytes_lent -= size
            if self.bytes_kept + self.bytes_lent + size <= self.bytes_max:
                self._free[size].append(buffer._pages)
                self.bytes_kept += size

    def _let_go(self) -> None:
        """Return kept buffers to the system until kept and lent together are within the bound. The caller locks."""
        for size, free in self._free.items():
            while free and self.bytes_kept + self.bytes_lent > self.bytes_max:
                free.pop()
                self.bytes_kept -= size

    def reserve(self, nbytes: int, count: int) -> None:
        """Touch `count` buffers of `nbytes` now, so that the first frames find them warm."""
        held = [self.take(nbytes) for _ in range(count)]
        for buffer in held:
            buffer.array[:: mmap.PAGESIZE] = 0
        for buffer in held:
            buffer.release()
