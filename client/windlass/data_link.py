"""One worker's link to one server.

Invariant: the pump's holder owns it. Answers' values go from the socket straight to the arrays that asked;
shared-memory answers are there already when their entry arrives.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from windlass.window_core import OutFrame, Request, WindowCore
from windlass_proto import errors, frames, limits
from windlass_proto.errors import ProtocolError, UnavailableError, UsageError
from windlass_proto.frames import Entry, Header, Kind, Op, Status
from windlass_proto.links import arena, buffers, preamble
from windlass_proto.links.stream import Frame, FrameReader, FrameWriter, Place

_SINK = memoryview(bytearray(64 * limits.KIB))
_ZEROS = memoryview(bytes(limits.ALIGN_BYTES))


@dataclass(frozen=True, slots=True)
class InFrame:
    """Values that travel in frames: byte views whose lengths add up to `nbytes`."""

    views: tuple[memoryview, ...]
    nbytes: int


@dataclass(frozen=True, slots=True)
class InArena:
    """Values that lie in shared memory."""

    segment_id: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Target:
    """Where a server can be reached: "tcp" (host:port), "unix" or "shm" (a path)."""

    kind: str
    address: str


def open_socket(target: Target, key: bytes, session: bytes, timeout_s: float) -> socket.socket:
    """Connect and pass the preamble.

    Raises:
        UnavailableError: nobody there.
        UsageError: refused in words.
    """
    try:
        if target.kind == "tcp":
            host, _, port = target.address.rpartition(":")
            sock = socket.create_connection((host.strip("[]"), int(port)), timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            buffers.notice_loss(sock)
        else:
            sock = _unix_socket(target.address, timeout_s)
    except OSError as cause:
        raise UnavailableError(
            "a server could not be reached",
            address=f"{target.kind}:{target.address}",
            reason=str(cause),
            next_move="Look at the server's log, or at `windlass status`.",
        ) from cause
    buffers.enlarge(sock)
    try:
        preamble.greet(sock, key, session, timeout_s=timeout_s)
    except BaseException:
        sock.close()
        raise
    return sock


def _unix_socket(path: str, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        sock.connect(path)
    except OSError:
        sock.close()
        raise
    return sock


class DataLink:
    """Frames to and from one server."""

    def __init__(
        self,
        server: int,
        target: Target,
        sock: socket.socket,
        window: WindowCore,
        heap: arena.ArenaHeap | None,
    ) -> None:
        self.server = server
        self.target = target
        self.sock = sock
        self.window = window
        self.heap = heap
        self.shares_memory = target.kind == "shm" and heap is not None
        stream = target.kind == "tcp"
        self.reader = FrameReader(sock, self._place, checksum=stream)
        self.writer = FrameWriter(sock, checksum=stream)
        self.segments_attached = 0

    def _attach_new_segments(self) -> None:
        """Pass on the segments that the server has not seen."""
        if self.heap is None or not self.shares_memory:
            return
        while self.segments_attached < len(self.heap.segments):
            segment = self.heap.segments[self.segments_attached]
            self.segments_attached += 1
            header = Header(Kind.ARENA, 0, 0, self.segments_attached, 0, 0, segment.size_bytes, 0, 0)
            self.writer.put(header, b"", [], None, segment.descriptor)

    def put(self, frame: OutFrame) -> None:
        """Queue a frame of requests."""
        self._attach_new_segments()
        entries: list[Entry] = []
        payload: list[memoryview] = []
        at = 0
        for request in frame.requests:
            source = request.payload
            if source is None:
                entries.append(_entry(request, 0, 0, 0, shared=self.shares_memory))
            elif type(source) is InArena and self.shares_memory:
                entries.append(_entry(request, source.offset, source.nbytes, source.segment_id, shared=True))
            else:
                entries.append(_entry(request, at, source.nbytes, 0, shared=self.shares_memory))
                payload += self._views(source)
                at += source.nbytes
                if at & 63:
                    payload.append(_ZEROS[: -at & 63])
                    at += -at & 63
        header = Header(Kind.REQUEST, frame.flags, len(entries), frame.store, at, frame.generation, frame.clock, 0, 0)
        self.writer.put(header, frames.pack_entries(entries), payload)

    def goodbye(self) -> None:
        """Queue the frame that says nothing follows."""
        self.writer.put(Header(Kind.GOODBYE, 0, 0, 0, 0, 0, 0, 0, 0), b"", [])

    def _views(self, values: InFrame | InArena) -> list[memoryview]:
        """The bytes of `values` as this process sees them."""
        if type(values) is InArena:
            assert self.heap is not None
            segment = self.heap.segments[values.segment_id - 1]
            return [segment.array[values.offset : values.offset + values.nbytes].data]
        return list(values.views) if isinstance(values, InFrame) else []

    def read(self) -> Frame | None:
        """The next frame of answers, or None until more arrives."""
        return self.reader.read()

    def close(self) -> None:
        """Close the socket."""
        self.writer.abandon()
        self.sock.close()

    def _place(self, header: Header, entries: list[Entry]) -> Place:
        """Values go to the arrays that asked; error records into bytes, by tag."""
        if header.kind != Kind.ANSWER:
            raise ProtocolError("a server sent a frame of another role", kind=header.kind)
        views: list[memoryview] = []
        records: dict[int, bytearray] = {}
        at = 0
        for entry in entries:
            if not entry.nbytes:
                continue
            if entry.offset < at:
                raise ProtocolError("a server's answers overlap", offset=entry.offset, at=at)
            views += _sink(entry.offset - at)
            views += self._destination(entry, records)
            at = entry.offset + entry.nbytes
        views += _sink(header.payload_bytes - at)
        return Place(views, records)

    def _destination(self, entry: Entry, records: dict[int, bytearray]) -> list[memoryview]:
        if entry.status == Status.ERROR:
            record = records[entry.tag] = bytearray(entry.nbytes)
            return [memoryview(record)]
        request = self.window.request_of(self.server, entry.tag)
        if request is None or request.owner is None:
            return _sink(entry.nbytes)  # answered before over a link that broke, or given up
        if request.out is not None and request.base is not None and request.out.nbytes > entry.nbytes:
            (room,) = self._views(request.out)
            return [room[: entry.nbytes]]
        if request.out is None or request.out.nbytes != entry.nbytes:
            raise ProtocolError("a server sent values that were not asked for", nbytes=entry.nbytes)
        return self._views(request.out)


def _sink(nbytes: int) -> list[memoryview]:
    whole, rest = divmod(nbytes, len(_SINK))
    return [_SINK] * whole + ([_SINK[:rest]] if rest else [])


def bytes_of(values: Any, heap: arena.ArenaHeap | None) -> bytes:
    """A copy of the bytes of `values`."""
    if isinstance(values, InArena):
        assert heap is not None
        return heap.segments[values.segment_id - 1].array[values.offset : values.offset + values.nbytes].tobytes()
    return b"".join(values.views) if isinstance(values, InFrame) else b""


def error_of(entry: Entry, records: dict[int, bytearray]) -> errors.WindlassError:
    """The error that an answer of status ERROR carries; if its record cannot be read, that."""
    try:
        return errors.from_wire_untrusted(bytes(records.get(entry.tag, b"")))
    except ProtocolError as unreadable:
        return unreadable


def refusal_of(status: Status, tensors: str, *, worker: object) -> errors.WindlassError:
    """The error that a status stands for which is no success and brings no record."""
    if status is Status.REJECTED:
        return UsageError(
            "a gradient holds values that are not finite",
            tensors=tensors,
            worker=worker,
            next_move="It was not applied and its step went on without it. Look for an overflow or a division by 0.",
        )
    return UnavailableError(
        "the server does not hold these tensors" if status is Status.UNKNOWN else "the server has lost their updates",
        tensors=tensors,
        status=status.name,
        next_move="It was restarted: start the job again. store.resume goes on from the newest checkpoint.",
    )


def _entry(request: Request, offset: int, nbytes: int, segment_id: int, *, shared: bool) -> Entry:
    out = request.out
    out_arena, out_offset = (out.segment_id, out.offset) if shared and type(out) is InArena else (0, 0)
    half = request.base if request.rows is None else request.rows
    return Entry(
        request.op,
        frames.priority_byte(request.priority) if request.priority else 0,
        request.flags,
        request.share[0],
        request.block,
        request.tag,
        request.seq,
        request.clock,
        request.seg_begin,
        request.seg_end,
        offset,
        nbytes,
        segment_id,
        out_arena,
        out_offset,
        request.weight,
        request.stamp.version if request.stamp is not None else 0,
        request.share[1],
        request.read if half is None else half | (request.read & 0xFFFFFFFF) << 32,
    )


def describe(request: Request) -> dict[str, Any]:
    """A request in words, for errors and the story."""
    return {"op": Op(request.op).name, "block": request.block, "seq": request.seq, "clock": request.clock}
