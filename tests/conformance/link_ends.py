"""Two joined ends of each kind of link, with values put in at one and looked at at the other.

The four links differ in what carries the bytes and in where values lie; a test written against `LinkEnds` holds for all
of them. `Dripping` makes any channel as stingy as a slow network.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from windlass_proto import frames
from windlass_proto.errors import ProtocolError
from windlass_proto.frames import Entry, Header, Kind, Op
from windlass_proto.links import arena
from windlass_proto.links.memory_pipe import memory_pipe
from windlass_proto.links.stream import Channel, Frame, FrameReader, FrameWriter, Place

KINDS = ("tcp", "unix", "shm", "memory")
TURNS_MAX = 2_000_000


class Dripping:
    """A channel that moves at most so many bytes a call, and every other call none."""

    def __init__(self, channel: Any, read_max: int, write_max: int) -> None:
        self.channel = channel
        self.read_max = read_max
        self.write_max = write_max
        self._calls = 0

    def recv_into(self, buffer: memoryview) -> int:
        self._sometimes_block()
        return int(self.channel.recv_into(buffer[: self.read_max]))

    def recvmsg_into(self, buffers: list[memoryview], ancbufsize: int = 0) -> tuple[int, list[Any], int, Any]:
        self._sometimes_block()
        found: tuple[int, list[Any], int, Any] = self.channel.recvmsg_into([buffers[0][: self.read_max]], ancbufsize)
        return found

    def sendmsg(self, buffers: list[Any], ancdata: list[Any] | None = None) -> int:
        self._sometimes_block()
        first = next((buffer for buffer in buffers if len(buffer)), b"")
        return int(self.channel.sendmsg([first[: self.write_max]], *([ancdata] if ancdata else [])))

    def _sometimes_block(self) -> None:
        self._calls += 1
        if self._calls % 2:
            raise BlockingIOError


class LinkEnds:
    """A sender and a receiver. `put` queues one frame, `pump` moves bytes, `values_of` shows what arrived."""

    def __init__(self, kind: str, sending: Any, receiving: Any, *, drip: tuple[int, int] | None = None) -> None:
        self.kind = kind
        self.sending = sending
        self.receiving = receiving
        self.heap = arena.ArenaHeap() if kind == "shm" else None
        self.attached: dict[int, arena.SharedSegment] = {}
        self.arrived: list[Frame] = []
        self.sent = 0
        self._segments_sent = 0
        self._kept: list[Any] = []
        to, of = sending, receiving
        if drip is not None:
            to, of = Dripping(sending, *drip), Dripping(receiving, *drip)
        self.writer = FrameWriter(to, checksum=kind == "tcp")
        self.reader = FrameReader(of, self.place, checksum=kind == "tcp", descriptors=kind in ("unix", "shm"))

    def place(self, header: Header, entries: list[Entry]) -> Place:
        """A fresh array for each entry's values and one for each gap, scattered as a worker's are."""
        views: list[memoryview] = []
        found: list[np.ndarray] = []
        at = 0
        for entry in entries:
            if entry.arena:
                segment = self.attached.get(entry.arena)
                if segment is None or entry.offset + entry.nbytes > segment.size_bytes:
                    raise ProtocolError("an entry names shared memory that is not there", segment=entry.arena)
                found.append(segment.array[entry.offset : entry.offset + entry.nbytes].copy())
                continue
            views.append(memoryview(bytearray(entry.offset - at)))
            found.append(np.zeros(entry.nbytes, np.uint8))
            views.append(found[-1].data)
            at = entry.offset + entry.nbytes
        views.append(memoryview(bytearray(header.payload_bytes - at)))
        return Place(views, found)

    def put(self, values: list[np.ndarray], *, done: Callable[[], None] | None = None) -> None:
        """Queue a frame of these byte arrays; its clock counts frames."""
        entries: list[Entry] = []
        payload: list[memoryview] = []
        at = 0
        for value in values:
            if self.heap is not None:
                piece = self.heap.take(value.nbytes)
                piece.array[:] = value
                self._kept.append(piece)
                entries.append(_entry(len(entries), piece.offset, value.nbytes, piece.segment_id))
                continue
            entries.append(_entry(len(entries), at, value.nbytes, 0))
            padding = -value.nbytes % 64
            payload += [value.data, memoryview(bytes(padding))]
            at += value.nbytes + padding
        self.attach()
        header = Header(Kind.REQUEST, 0, len(entries), 1, at, 1, self.sent, 0, 0)
        self.writer.put(header, frames.pack_entries(entries), payload, done)
        self.sent += 1

    def attach(self) -> None:
        """Queue the descriptors of segments that the receiver has not seen."""
        while self.heap is not None and self._segments_sent < len(self.heap.segments):
            segment = self.heap.segments[self._segments_sent]
            self._segments_sent += 1
            header = Header(Kind.ARENA, 0, 0, self._segments_sent, 0, 0, segment.size_bytes, 0, 0)
            self.writer.put(header, b"", [], None, segment.descriptor)

    def pump(self, wanted: int | None = None) -> list[Frame]:
        """Move bytes both ends until `wanted` frames (all that were put) have arrived; returns them."""
        wanted = self.sent if wanted is None else wanted
        for _ in range(TURNS_MAX):
            self.writer.flush()
            self.read_once()
            if len(self.arrived) >= wanted:
                return self.arrived
        raise AssertionError(f"{len(self.arrived)} of {wanted} frames arrived")

    def read_once(self) -> None:
        """Take what frames there are."""
        while (frame := self.reader.read()) is not None:
            if frame.header.kind == Kind.ARENA:
                assert frame.descriptor is not None
                segment = arena.attach_untrusted(frame.descriptor, frame.header.clock)
                segment.close()
                self.attached[frame.header.store] = segment
            else:
                self.arrived.append(frame)

    def close(self) -> None:
        self.reader.close()
        self.writer.abandon()
        self.sending.close()
        self.receiving.close()
        if self.heap is not None:
            self.heap.close()


def values_of(frame: Frame) -> list[bytes]:
    """The values of each entry of a frame."""
    return [value.tobytes() for value in frame.placed]


def _entry(tag: int, offset: int, nbytes: int, segment: int) -> Entry:
    return Entry(Op.PUSH, 0, 0, 1, 0, tag, 0, 0, 0, 1, offset, nbytes, segment, 0, 0, 1.0, 0, 0, 0)


def socket_pair(kind: str, buffer_bytes: int = 0) -> tuple[socket.socket, socket.socket]:
    """Two joined non-blocking sockets; with `buffer_bytes` their buffers are as small as the system allows."""
    if kind == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as listener:
            one = socket.create_connection(listener.getsockname())
            two = listener.accept()[0]
    else:
        one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in (one, two):
        if buffer_bytes:  # of TCP the sender's alone: a tiny window makes the kernel wait 200 ms for each probe
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            if kind != "tcp":
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        end.setblocking(False)
    return one, two


@contextlib.contextmanager
def link_ends(kind: str, *, drip: tuple[int, int] | None = None, small: bool = False) -> Iterator[LinkEnds]:
    """A fresh link of this kind."""
    pair: tuple[Any, Any]
    pair = memory_pipe(4096 if small else 1 << 20) if kind == "memory" else socket_pair(kind, 4096 if small else 0)
    ends = LinkEnds(kind, *pair, drip=drip)
    try:
        yield ends
    finally:
        ends.close()


def memfd(size: int, *, seals: int = 0, allocate: bool = True) -> int:
    """A memfd that the caller closes."""
    import fcntl

    descriptor = os.memfd_create("of-a-test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size)
    if allocate and size:
        os.posix_fallocate(descriptor, 0, size)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


__all__ = ["KINDS", "Channel", "Dripping", "LinkEnds", "link_ends", "memfd", "socket_pair", "values_of"]
