"""Frames over a non-blocking byte stream.

Invariant: neither end ever blocks here: `read` and `flush` move what the channel takes or gives and return. Values go
from the channel straight into the buffers that `place` names; only the first bytes of a frame pass through the staging
buffer. A frame is handed out whole and, on links that need it, only after its checksum matched. One thread at a time
owns a reader or a writer.

The staging read is 4 KiB: header, entry table and values of a small frame come with one system call, and of a large
frame at most 4 KiB is copied twice.
"""

from __future__ import annotations

import array
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import xxhash

from windlass_proto import frames, limits
from windlass_proto.errors import ProtocolError, UnavailableError
from windlass_proto.frames import Entry, Header

_STAGING_READ = 4096
_FD_SPACE = socket.CMSG_SPACE(4) if hasattr(socket, "CMSG_SPACE") else 0

View = memoryview


class Channel(Protocol):
    """What a link needs of a stream: the non-blocking calls of a socket."""

    def recv_into(self, buffer: View, /) -> int: ...
    def recvmsg_into(self, buffers: list[View], ancbufsize: int = 0, /) -> tuple[int, list[Any], int, Any]: ...
    def sendmsg(self, buffers: list[Any], ancdata: list[Any] = ..., /) -> int: ...


class Frame(NamedTuple):
    """A frame that arrived whole; its values lie where `place` put them (`placed`)."""

    header: Header
    entries: list[Entry]
    placed: Any
    descriptor: int | None


class Place(NamedTuple):
    """Where a frame's payload goes: views whose lengths add up to it, and what the reader hands back with the frame."""

    views: list[View]
    placed: Any = None


def link_lost(reason: str) -> UnavailableError:
    """The peer is gone."""
    return UnavailableError("the link was lost", reason=reason, next_move="Reconnect and send again.")


class FrameReader:
    """Cuts the incoming bytes of one channel into frames.

    Args:
        channel: a non-blocking stream.
        place: says where a frame's payload goes; called once its header and entries are checked.
        checksum: whether this link's frames carry one.
        descriptors: whether file descriptors may come along (unix).
    """

    def __init__(
        self,
        channel: Channel,
        place: Callable[[Header, list[Entry]], Place],
        *,
        checksum: bool,
        descriptors: bool = False,
    ) -> None:
        self.channel = channel
        self.place = place
        self.checksum = checksum
        self.descriptors = descriptors
        self.bytes_read = 0
        self._staging = bytearray(_STAGING_READ)
        self._view = memoryview(self._staging)
        self._begin = 0
        self._end = 0
        self._header: Header | None = None
        self._entries: list[Entry] = []
        self._table: bytes = b""
        self._place: Place | None = None
        self._left: list[View] = []
        self._fds: deque[int] = deque()

    def read(self) -> Frame | None:
        """The next whole frame, or None until the channel has more.

        Raises:
            UnavailableError: the peer closed the stream.
            ProtocolError: the bytes are not frames; close the channel.
        """
        if self._header is None and not self._read_header():
            return None
        if self._place is None and not self._read_table():
            return None
        if self._left and not self._read_payload():
            return None
        return self._finish()

    def mid_frame(self) -> bool:
        """Has part of a frame been read?"""
        return self._header is not None or self._end > self._begin

    def close(self) -> Any:
        """Close descriptors that were not taken; returns what `place` gave for a frame that never was whole."""
        while self._fds:
            os.close(self._fds.popleft())
        place, self._place = self._place, None
        return place.placed if place is not None else None

    def _read_header(self) -> bool:
        if not self._stage(frames.HEADER_BYTES):
            return False
        raw = self._view[self._begin : self._begin + frames.HEADER_BYTES]
        self._header = frames.parse_header_untrusted(raw)
        self._begin += frames.HEADER_BYTES
        return True

    def _read_table(self) -> bool:
        header = self._header
        assert header is not None
        size = frames.table_bytes(header.entry_count)
        if not self._stage(size):
            return False
        table = self._view[self._begin : self._begin + size]
        self._entries = frames.parse_entries_untrusted(table, header)
        if self.checksum:
            self._table = bytes(table)
        self._begin += size
        self._place = self.place(header, self._entries)
        self._left = [view for view in self._place.views if view.nbytes]
        if sum([view.nbytes for view in self._left]) != header.payload_bytes:
            raise ProtocolError("a frame's values do not fit their place", bytes=header.payload_bytes)
        self._drain_staging()
        return True

    def _drain_staging(self) -> None:
        """Move payload bytes that came with the head to their place."""
        while self._left and self._end > self._begin:
            target = self._left[0]
            moved = min(target.nbytes, self._end - self._begin)
            target[:moved] = self._view[self._begin : self._begin + moved]
            self._begin += moved
            if moved == target.nbytes:
                del self._left[0]
            else:
                self._left[0] = target[moved:]

    def _read_payload(self) -> bool:
        while self._left:
            try:
                if len(self._left) == 1:
                    got = self.channel.recv_into(self._left[0])
                else:
                    got = self.channel.recvmsg_into(self._left[: limits.SENDMSG_BUFFERS_MAX])[0]
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as cause:
                raise link_lost(str(cause)) from cause
            if got == 0:
                raise link_lost("end of stream inside a frame")
            self.bytes_read += got
            _advance(self._left, got)
        return True

    def _finish(self) -> Frame:
        header, place = self._header, self._place
        assert header is not None
        assert place is not None
        if self.checksum and header.checksum != checksum_of(self._table, place.views):
            raise ProtocolError("a frame's checksum does not match", bytes=header.payload_bytes)
        descriptor = None
        if header.kind == frames.Kind.ARENA:
            if not self._fds:
                raise ProtocolError("a shared-memory frame came without its descriptor")
            descriptor = self._fds.popleft()
        frame = Frame(header, self._entries, place.placed, descriptor)
        self._header = None
        self._place = None
        self._entries = []
        return frame

    def _stage(self, size: int) -> bool:
        """Have `size` bytes in the staging buffer, reading if needed."""
        if self._end - self._begin >= size:
            return True
        if self._begin + size > len(self._staging) or self._begin == self._end:
            self._make_room(size)
        while self._end - self._begin < size:
            limit = self._view[self._end : max(self._begin + size, min(len(self._staging), _STAGING_READ))]
            try:
                got = self._receive(limit)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as cause:
                raise link_lost(str(cause)) from cause
            if got == 0:
                raise link_lost("end of stream")
            self.bytes_read += got
            self._end += got
        return True

    def _make_room(self, size: int) -> None:
        if self._begin == self._end and size <= len(self._staging):
            self._begin = self._end = 0
            return
        held = bytes(self._view[self._begin : self._end])
        if size > len(self._staging):
            self._view.release()
            self._staging = bytearray(size)
            self._view = memoryview(self._staging)
        self._view[: len(held)] = held
        self._begin, self._end = 0, len(held)

    def _receive(self, view: View) -> int:
        if not self.descriptors:
            return self.channel.recv_into(view)
        got, ancillary, flags, _ = self.channel.recvmsg_into([view], _FD_SPACE)
        for level, kind, raw in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC or len(self._fds) > 4:
            raise ProtocolError("a peer sent more descriptors than a frame may carry")
        return got


class _Pending(NamedTuple):
    view: View
    done: Callable[[], None] | None
    descriptor: int | None = None  # goes beside the first byte


class FrameWriter:
    """Sends frames on one channel, in order, as far as the channel takes them.

    Values are sent from where they lie; `done` is called once the last byte of a frame has left.
    """

    def __init__(self, channel: Channel, *, checksum: bool) -> None:
        self.channel = channel
        self.checksum = checksum
        self.bytes_written = 0
        self.frames_written = 0
        self._pending: deque[_Pending] = deque()
        self._descriptors = 0

    def put(
        self,
        header: Header,
        table: bytes,
        payload: list[View],
        done: Callable[[], None] | None = None,
        descriptor: int | None = None,
    ) -> None:
        """Queue a frame. `payload` are byte views that stay unchanged until `done`; their lengths are the header's."""
        checksum = checksum_of(table, payload) if self.checksum else 0
        head = frames.pack_header(header, checksum, self.frames_written & 0xFFFFFFFF)
        first = memoryview(head + table)
        if descriptor is not None:
            self._descriptors += 1
        self.frames_written += 1
        if not payload:
            self._pending.append(_Pending(first, done, descriptor))
            return
        self._pending.append(_Pending(first, None, descriptor))
        for view in payload[:-1]:
            self._pending.append(_Pending(view, None))
        self._pending.append(_Pending(payload[-1], done))

    def waiting(self) -> bool:
        """Are there bytes that have not left?"""
        return bool(self._pending)

    def flush(self) -> bool:
        """Send what the channel takes; True when nothing is left.

        Raises:
            UnavailableError: the peer closed the stream.
        """
        pending = self._pending
        while pending:
            try:
                sent = self._send()
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as cause:
                raise link_lost(str(cause)) from cause
            self.bytes_written += sent
            while pending:
                head = pending[0]
                if sent < head.view.nbytes:
                    if sent:
                        pending[0] = _Pending(head.view[sent:], head.done)
                    break
                sent -= head.view.nbytes
                pending.popleft()
                if head.done is not None:
                    head.done()
        return True

    def abandon(self) -> None:
        """The channel is gone: let go of what has not left."""
        while self._pending:
            pending = self._pending.popleft()
            if pending.done is not None:
                pending.done()

    def _send(self) -> int:
        pending = self._pending
        if self._descriptors:
            return self._send_with_descriptors()
        return self.channel.sendmsg([item.view for item in itertools.islice(pending, limits.SENDMSG_BUFFERS_MAX)])

    def _send_with_descriptors(self) -> int:
        """Up to the next frame that a descriptor goes with, or that frame alone."""
        head = self._pending[0]
        if head.descriptor is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [head.descriptor]))]
            sent = self.channel.sendmsg([head.view], rights)
            self._descriptors -= 1
            self._pending[0] = head._replace(descriptor=None)
            return sent
        ahead = itertools.takewhile(lambda item: item.descriptor is None, self._pending)
        return self.channel.sendmsg([item.view for item in itertools.islice(ahead, limits.SENDMSG_BUFFERS_MAX)])


def checksum_of(table: bytes, payload: list[View]) -> int:
    """XXH3-64 of an entry table and the values after it; never 0."""
    digest = xxhash.xxh3_64(table)
    for view in payload:
        digest.update(view)
    return digest.intdigest() or 1


def _advance(views: list[View], count: int) -> None:
    while count:
        if count < views[0].nbytes:
            views[0] = views[0][count:]
            return
        count -= views[0].nbytes
        del views[0]
