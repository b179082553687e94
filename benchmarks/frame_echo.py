"""The floor of every link: frames of the data plane's size, echoed through a poll loop, nothing computed.

A frame is a 64-byte header with its payload's length, then the payload. The client moves bytes both ways
whenever a socket lets it, as the pump does; the server reads a frame whole before it answers (a server that
updates weights cannot begin earlier) and has up to `DEPTH` of them under way. No checksum, no lock, no table.
Whatever windlass reaches over the same kind of socket, it cannot reach more than this.
"""

from __future__ import annotations

import contextlib
import mmap
import select
import socket
import struct
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from windlass_proto.limits import FRAME_PAYLOAD_BYTES_TARGET

HEADER_BYTES = 64
FRAME_BYTES_MAX = FRAME_PAYLOAD_BYTES_TARGET
DEPTH = 4  # frames the server holds
STALL_S = 30.0
_LENGTH = struct.Struct("<Q")


def tune(connection: socket.socket) -> None:
    """Non-blocking, no Nagle. TCP sizes its own buffers: fixed sizes from 0.5 to 4 MiB gained nothing."""
    connection.setblocking(False)
    if connection.family == socket.AF_INET:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            connection.setsockopt(socket.SOL_SOCKET, option, 1 << 20)


def warm_buffer(payload_bytes: int) -> memoryview:
    """Page-aligned writable memory whose pages exist."""
    memory = memoryview(mmap.mmap(-1, max(payload_bytes, 1)))
    for offset in range(0, payload_bytes, mmap.PAGESIZE):
        memory[offset] = 1
    return memory


@dataclass(slots=True)
class _Transfer:
    """A run of buffers on its way through a socket."""

    buffers: list[memoryview]

    def advance(self, moved_bytes: int) -> None:
        while moved_bytes and moved_bytes >= len(self.buffers[0]):
            moved_bytes -= len(self.buffers.pop(0))
        if moved_bytes:
            self.buffers[0] = self.buffers[0][moved_bytes:]


class EchoClient:
    """One connection; `exchange` sends a payload as frames and reads it back elsewhere."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        tune(connection)
        self._poll = select.poll()
        self._fd = connection.fileno()

    def exchange(self, sent: memoryview, received: memoryview) -> None:
        """Send `sent`, fill `received`; both the same length. Returns when every byte is back."""
        outward, inward = _Transfer([]), _Transfer([])
        headers = memoryview(bytearray(HEADER_BYTES * 2))
        for at in range(0, len(sent), FRAME_BYTES_MAX):
            frame = sent[at : at + FRAME_BYTES_MAX]
            header = bytearray(HEADER_BYTES)
            _LENGTH.pack_into(header, 0, len(frame))
            outward.buffers += [memoryview(header), frame]
            inward.buffers += [headers[HEADER_BYTES:], received[at : at + FRAME_BYTES_MAX]]
        self._send(outward)
        while inward.buffers:
            wanted = select.POLLIN | (select.POLLOUT if outward.buffers else 0)
            self._poll.register(self._fd, wanted)
            ready = self._poll.poll(STALL_S * 1000)
            if not ready:
                raise TimeoutError(f"no byte moved for {STALL_S} s")
            if ready[0][1] & (select.POLLIN | select.POLLHUP):
                self._receive(inward)
            if outward.buffers and ready[0][1] & select.POLLOUT:
                self._send(outward)

    def close(self) -> None:
        self._socket.close()

    def _send(self, outward: _Transfer) -> None:
        with contextlib.suppress(BlockingIOError):
            while outward.buffers:
                outward.advance(self._socket.sendmsg(outward.buffers[:16]))

    def _receive(self, inward: _Transfer) -> None:
        with contextlib.suppress(BlockingIOError):
            moved = self._socket.recvmsg_into(inward.buffers[:2])[0]
            if not moved:
                raise ConnectionResetError("the echo server closed the connection")
            inward.advance(moved)


class EchoServer:
    """Echoes the frames of one connection until it closes. Owned by the process that runs it."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        tune(connection)
        self._free = [memoryview(mmap.mmap(-1, HEADER_BYTES + FRAME_BYTES_MAX)) for _ in range(DEPTH)]
        self._outward: deque[tuple[memoryview, memoryview]] = deque()  # (what is left, the buffer it lies in)
        self._frame: memoryview | None = None
        self._frame_bytes = 0
        self._filled_bytes = 0

    def run(self) -> None:
        poll = select.poll()
        while True:
            wanted = select.POLLIN if self._free or self._frame else 0
            wanted |= select.POLLOUT if self._outward else 0
            poll.register(self._socket.fileno(), wanted)
            for _, events in poll.poll():
                if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and not self._receive():
                    return
                self._send()

    def _receive(self) -> bool:
        """Read towards the end of the present frame, never past it. False when the client is gone."""
        if self._frame is None:
            if not self._free:
                return True
            self._frame, self._frame_bytes, self._filled_bytes = self._free.pop(), HEADER_BYTES, 0
        try:
            moved = self._socket.recv_into(self._frame[self._filled_bytes : self._frame_bytes])
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        self._filled_bytes += moved
        if self._filled_bytes == HEADER_BYTES:
            self._frame_bytes = HEADER_BYTES + _LENGTH.unpack_from(self._frame)[0]
            return bool(moved) and self._receive()
        if self._filled_bytes == self._frame_bytes:
            self._outward.append((self._frame[: self._frame_bytes], self._frame))
            self._frame = None
        return bool(moved)

    def _send(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._outward:
                left, buffer = self._outward[0]
                moved = self._socket.send(left)
                if moved < len(left):
                    self._outward[0] = (left[moved:], buffer)
                else:
                    self._outward.popleft()
                    self._free.append(buffer)


def listen(link: str, folder: Path) -> socket.socket:
    """A listening socket of kind `tcp` (loopback) or `unix` (inside `folder`)."""
    if link == "tcp":
        return socket.create_server(("127.0.0.1", 0), backlog=1)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "echo"))
    listener.listen(1)
    return listener


def main() -> None:
    """Serve one connection on the listening socket whose descriptor is the argument."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    connection, _ = listener.accept()
    listener.close()
    EchoServer(connection).run()


if __name__ == "__main__":
    main()
