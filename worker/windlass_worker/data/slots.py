"""A slot: shared memory for one batch, between the loop and its worker processes.

A slot is a file without a name (a memfd, elsewhere an unlinked one), so when the last process that has it ends, by
whatever cause, its memory is the system's again. It grows and never shrinks; whoever writes the batch makes it larger,
and tells the size. Between `send` and the answer it is the worker process's to write, afterwards the loop's.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UnavailableError
from windlass_worker.data.dataset import Rows

_ALIGNED_TO = 64
_BYTES_MIN = 1 << 16


class Slot:
    """One slot as one process sees it. `descriptor` belongs to it."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.memory: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._end = 0

    @classmethod
    def create(cls) -> Slot:
        """An empty slot."""
        if hasattr(os, "memfd_create"):
            return cls(os.memfd_create("windlass-batch", os.MFD_CLOEXEC))
        with tempfile.TemporaryFile() as unnamed:
            return cls(os.dup(unnamed.fileno()))

    def close(self) -> None:
        """Give the descriptor back; arrays on the memory keep it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def reach(self, nbytes: int) -> npt.NDArray[np.uint8]:
        """The memory, of `nbytes` at least, grown where the file is smaller.

        Raises:
            UnavailableError: the system has no more.
        """
        if nbytes > self.memory.size:
            size = os.fstat(self.descriptor).st_size
            if nbytes > size:
                size = max(_BYTES_MIN, 1 << (nbytes - 1).bit_length())
                self._grow(size)
            self.memory = np.frombuffer(mmap.mmap(self.descriptor, size), np.uint8)
        return self.memory

    def _grow(self, size: int) -> None:
        try:
            os.ftruncate(self.descriptor, size)
            if hasattr(os, "posix_fallocate"):  # else a full system kills at the first touch
                os.posix_fallocate(self.descriptor, 0, size)
        except OSError as cause:
            raise UnavailableError(
                "no shared memory for a batch",
                bytes=size,
                reason=str(cause),
                next_move="Take a smaller batch_size or prefetch, or num_workers=0.",
            ) from cause

    def put_rows(self, rows: Rows) -> None:
        """Leave the rows of an order at the slot's beginning."""
        self.reach(rows.nbytes)[: rows.nbytes].view(np.int64)[:] = rows

    def take_rows(self, count: int) -> Rows:
        """The rows of an order, a copy; from here on the memory is the batch's."""
        self._end = 0
        return self.reach(8 * count)[: 8 * count].view(np.int64).copy()

    def room(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Memory for one array of the batch, behind the others."""
        kind = np.dtype(dtype)
        begin = -(-self._end // _ALIGNED_TO) * _ALIGNED_TO
        self._end = begin + kind.itemsize * int(np.prod(shape, dtype=np.int64))
        return self.reach(self._end)[begin : self._end].view(kind).reshape(shape)

    def place(self, array: npt.NDArray[Any]) -> int:
        """The array's offset; it is copied here if it lies elsewhere or is not contiguous."""
        offset = array.ctypes.data - self.memory.ctypes.data
        if not (array.flags.c_contiguous and 0 <= offset <= offset + array.nbytes <= self.memory.size):
            inside = self.room(array.shape, array.dtype)
            inside[...] = array
            offset = inside.ctypes.data - self.memory.ctypes.data
        return offset


class Lease:
    """The loop's hold on a slot's memory: while an array of the batch lives, so does this, and the slot is not reused.

    NumPy keeps the object whose `__array_interface__` it was given, which is what makes that so.
    """

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        self._memory = memory
        self.__array_interface__ = memory.__array_interface__
