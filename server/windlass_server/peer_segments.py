"""The shared memory that one peer has attached: segments by the number it gave them.

Invariant: a part that is handed out lies inside its segment and begins on 64 bytes; numbers and sizes stay within
`limits`. Its connection's thread owns it; what was handed out keeps its mapping.
"""

from __future__ import annotations

import os

import numpy as np
import numpy.typing as npt

from windlass_proto import limits
from windlass_proto.errors import ProtocolError
from windlass_proto.links import arena
from windlass_proto.links.stream import Frame


class PeerSegments:
    """See the module."""

    def __init__(self) -> None:
        self._held: dict[int, arena.SharedSegment] = {}
        self._bytes = 0

    def attach_untrusted(self, frame: Frame) -> None:
        """Map a segment; the frame's clock is its size, its store its number.

        Raises:
            ProtocolError: there are too many, or it has the number of another.
        """
        header = frame.header
        assert frame.descriptor is not None
        full = len(self._held) >= limits.ARENA_SEGMENTS_MAX
        if full or self._bytes + header.clock > limits.ARENA_BYTES_MAX or header.store in self._held:
            os.close(frame.descriptor)
            raise ProtocolError("a worker attached more shared memory than allowed", segments=len(self._held))
        segment = arena.attach_untrusted(frame.descriptor, header.clock)
        segment.close()  # the mapping stays
        self._held[header.store] = segment
        self._bytes += segment.size_bytes

    def part_untrusted(self, number: int, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """`nbytes` of a segment.

        Raises:
            ProtocolError: there is no such segment, or it does not hold them.
        """
        segment = self._held.get(number)
        if segment is None:
            raise ProtocolError("an entry names a shared segment that was not attached", segment=number)
        if offset & 63 or offset + nbytes > segment.size_bytes:
            raise ProtocolError("an entry leaves its shared segment", offset=offset, nbytes=nbytes)
        return segment.array[offset : offset + nbytes]

    def close(self) -> None:
        """The peer is gone."""
        for segment in self._held.values():
            segment.close()
