"""The memory link: two joined channels inside one process.

Invariant: bytes come out in the order they went in, at most `capacity` of them wait; like a non-blocking socket, a
full or empty pipe raises BlockingIOError and a closed one reads as ended. One thread drives both ends (tests, the
simulator).
"""

from __future__ import annotations

from collections import deque
from typing import Any


class _Bytes:
    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.held = 0
        self.closed = False
        self.chunks: deque[bytes] = deque()


class MemoryChannel:
    """One end of a memory link."""

    def __init__(self, incoming: _Bytes, outgoing: _Bytes) -> None:
        self._in = incoming
        self._out = outgoing

    def recv_into(self, buffer: memoryview) -> int:
        """Move waiting bytes into `buffer`; 0 at the end of the stream."""
        return self.recvmsg_into([buffer])[0]

    def recvmsg_into(self, buffers: list[memoryview], ancbufsize: int = 0) -> tuple[int, list[Any], int, None]:
        """Move waiting bytes into `buffers`, in order."""
        if not self._in.held:
            if self._in.closed:
                return 0, [], 0, None
            raise BlockingIOError
        moved = 0
        for buffer in buffers:
            at = 0
            while at < buffer.nbytes and self._in.chunks:
                chunk = self._in.chunks.popleft()
                part = chunk[: buffer.nbytes - at]
                buffer[at : at + len(part)] = part
                at += len(part)
                if len(part) < len(chunk):
                    self._in.chunks.appendleft(chunk[len(part) :])
            moved += at
        self._in.held -= moved
        return moved, [], 0, None

    def sendmsg(self, buffers: list[Any], ancdata: list[Any] | None = None) -> int:
        """Take as many bytes as there is room for."""
        if self._out.closed:
            raise BrokenPipeError("the other end is closed")
        room = self._out.capacity - self._out.held
        if room <= 0:
            raise BlockingIOError
        sent = 0
        for buffer in buffers:
            part = bytes(memoryview(buffer)[: room - sent])
            if part:
                self._out.chunks.append(part)
                sent += len(part)
            if sent >= room:
                break
        self._out.held += sent
        return sent

    def close(self) -> None:
        """End both directions."""
        self._in.closed = self._out.closed = True


def memory_pipe(capacity: int = 1 << 20) -> tuple[MemoryChannel, MemoryChannel]:
    """Two ends of a fresh memory link."""
    one, two = _Bytes(capacity), _Bytes(capacity)
    return MemoryChannel(one, two), MemoryChannel(two, one)
