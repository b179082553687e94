"""Arrays that start on 64 bytes and whose pages exist, and the floor of moving them: memcpy."""

from __future__ import annotations

import ctypes
import time

import numpy as np
from numpy.typing import NDArray

ALIGNMENT_BYTES = 64
Vector = NDArray[np.float32]


def aligned_vector(elements: int) -> Vector:
    """A float32 vector on a 64-byte boundary, filled, so that every page has been touched."""
    payload_bytes = elements * 4
    raw = np.empty(payload_bytes + ALIGNMENT_BYTES, np.uint8)
    skip = -raw.ctypes.data % ALIGNMENT_BYTES
    vector: Vector = raw[skip : skip + payload_bytes].view(np.float32)
    vector.fill(0.5)
    assert vector.ctypes.data % ALIGNMENT_BYTES == 0
    return vector


class MemoryCopy:
    """memcpy from one warm aligned vector to another. Counted as bytes copied, as the links are."""

    def __init__(self, payload_bytes: int) -> None:
        self._source = aligned_vector(payload_bytes // 4)
        self._target = aligned_vector(payload_bytes // 4)
        self._arguments = (
            ctypes.c_void_p(self._target.ctypes.data),
            ctypes.c_void_p(self._source.ctypes.data),
            ctypes.c_size_t(payload_bytes),
        )

    def exchange(self) -> None:
        """One copy there and one back: the traffic of a push_pull that copied each byte once."""
        target, source, size = self._arguments
        ctypes.memmove(target, source, size.value)
        ctypes.memmove(source, target, size.value)


def seconds_of(copy: MemoryCopy, count: int) -> list[float]:
    seconds = []
    for _ in range(count):
        begin = time.monotonic()
        copy.exchange()
        seconds.append(time.monotonic() - begin)
    return seconds
