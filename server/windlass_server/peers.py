"""Peers: this server's links to other servers, on which it says its partial norms and is answered with totals.

A server connects to another one when it first has something to say to it, with the frames and the preamble of any data
link. Each link has a thread of its own, which waits for its socket and its bell alone.

Invariant: what was said is kept until it is answered, and said again after a link broke; of what is said of one block
and scope the newest is enough (`reduction_core`), so a link keeps one message for each of them. Nobody waits here with
a lock held: `say` notes, the link's thread sends.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from windlass_proto import frames, limits
from windlass_proto.errors import ProtocolError, WindlassError
from windlass_proto.frames import Entry, Header, Kind, Op, Status
from windlass_proto.links import buffers, preamble
from windlass_proto.links.bell import Bell
from windlass_proto.links.stream import Frame, FrameReader, FrameWriter, Place
from windlass_server.share_events import LEFT, Totals

_LOG = logging.getLogger("windlass.server")
_AGAIN_S = 0.05  # after a peer that does not know the table yet, or a link that could not be made
_CONNECT_S = 3.0
_TAG_MAX = (1 << 32) - 1


class Partial(NamedTuple):
    """What is said of a block: its sums in a phase of step `clock`; without sums, that steps below `clock` are over."""

    table: int
    scope: int
    block: int
    clock: int
    phase: int
    sums: Totals


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """Another server: the vshards it owns and where it can be reached, ("tcp", host:port) or ("unix", path)."""

    name: str
    vshards: range
    addresses: tuple[tuple[str, str], ...]


class Peers:
    """The other servers of the cluster.

    Args:
        key: of every data link of the cluster.
        session: this server's.
        on_told: takes an answer; called by a link's thread, with no lock held.
    """

    def __init__(self, key: bytes, session: bytes, on_told: Callable[[Partial, Totals], None]) -> None:
        self._key = key
        self._session = session
        self._on_told = on_told
        self._known: tuple[PeerAddress, ...] = ()
        self._links: dict[str, PeerLink] = {}
        self._lock = threading.Lock()

    def know(self, peers: tuple[PeerAddress, ...]) -> None:
        """The routing says who owns what."""
        with self._lock:
            self._known = peers

    def say(self, vshard: int, said: Partial) -> None:
        """To the owner of `vshard`; called under a share's lock."""
        with self._lock:
            peer = next(peer for peer in self._known if vshard in peer.vshards)
            link = self._links.get(peer.name)
            if link is None:
                link = self._links[peer.name] = PeerLink(peer, self._key, self._session, self._on_told)
        link.say(said)

    def forget(self, table: int, *, but_the_end: bool = False) -> None:
        """Nothing more is to be said of a table; `but_the_end`: but that its blocks will say nothing more."""
        with self._lock:
            links = list(self._links.values())
        for link in links:
            link.forget(table, but_the_end=but_the_end)

    def close(self) -> None:
        """End every link and join its thread."""
        with self._lock:
            links = list(self._links.values())
        for link in links:
            link.close()


class PeerLink:
    """What is said to one server, and the thread that says it."""

    def __init__(
        self, peer: PeerAddress, key: bytes, session: bytes, on_told: Callable[[Partial, Totals], None]
    ) -> None:
        self.peer = peer
        self._key = key
        self._session = session
        self._on_told = on_told
        self._lock = threading.Lock()
        self._kept: dict[tuple[int, int, int], Partial] = {}  # (table, scope, block) -> not answered yet
        self._unsent: dict[tuple[int, int, int], None] = {}
        self._tags: dict[int, Partial] = {}  # of this connection
        self._tag = 0
        self._again: dict[tuple[int, int, int], None] = {}  # sent away, to be said again
        self._again_s = 0.0  # and when
        self._since_s = 0.0  # since when something is kept
        self._said_s = 0.0
        self._stopping = False
        self._bell = Bell()
        self._thread = threading.Thread(target=self._run, name=f"peer {peer.name}")
        self._thread.start()

    def say(self, said: Partial) -> None:
        """Note it for the thread; any thread may."""
        key = said[:3]
        with self._lock:
            if not self._kept:
                self._since_s = time.monotonic()
            self._kept[key] = said
            self._unsent[key] = None
            self._bell.ring()

    def forget(self, table: int, *, but_the_end: bool = False) -> None:
        """Say nothing more of a table, or only the end of its blocks."""
        with self._lock:
            self._kept = {
                key: said for key, said in self._kept.items() if key[0] != table or (but_the_end and said.clock == LEFT)
            }
            self._unsent = {key: None for key in self._unsent if key in self._kept}

    def close(self) -> None:
        self._stopping = True
        self._bell.ring()
        self._thread.join()
        self._bell.close()

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            sock = None
            try:
                sock = self._connect()
                self._serve(sock)
            except (WindlassError, OSError) as error:
                if not self._stopping:
                    _LOG.info("peer_lost server=%s kept=%d reason=%r", self.peer.name, len(self._kept), str(error))
            finally:
                if sock is not None:
                    sock.close()
            if not self._stopping:
                self._pause()

    def _pause(self) -> None:
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        deadline = time.monotonic() + _AGAIN_S
        while not self._stopping and (left := deadline - time.monotonic()) > 0:
            if poll.poll(left * 1000):
                self._bell.hear()

    def _connect(self) -> socket.socket:
        """The Unix socket where it is on this host, else TCP."""
        found = dict(self.peer.addresses)
        if "unix" in found and Path(found["unix"]).exists():
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(_CONNECT_S)
            with contextlib.ExitStack() as undo:
                undo.callback(sock.close)
                sock.connect(found["unix"])
                undo.pop_all()
        else:
            host, _, port = found["tcp"].rpartition(":")
            sock = socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            buffers.notice_loss(sock)
        try:
            preamble.greet(sock, self._key, self._session, timeout_s=_CONNECT_S)
        except BaseException:
            sock.close()
            raise
        return sock

    def _serve(self, sock: socket.socket) -> None:
        checked = sock.family != socket.AF_UNIX
        reader = FrameReader(sock, _place, checksum=checked)
        writer = FrameWriter(sock, checksum=checked)
        with self._lock:
            self._tags.clear()
            self._again = {}
            self._unsent = dict.fromkeys(self._kept)
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.register(sock, select.POLLIN)
        while not self._stopping:
            self._send(writer)
            poll.modify(sock, select.POLLIN | (0 if writer.flush() else select.POLLOUT))
            ready = dict(poll.poll(self._patience_ms()))
            if self._bell.fileno() in ready:
                self._bell.hear()
            if sock.fileno() in ready:
                while (frame := reader.read()) is not None:
                    self._take(frame)
                    if not reader.mid_frame():
                        break

    def _patience_ms(self) -> float | None:
        """Until something is said again, or a line is due about whom we wait for."""
        now_s = time.monotonic()
        with self._lock:
            if self._again and now_s >= self._again_s:
                self._unsent |= self._again
                self._again = {}
                return 0.0
            waits = any(said.sums for said in self._kept.values())
            waited_s = now_s - max(self._since_s, self._said_s)
            if waits and waited_s >= limits.WAIT_SAID_AFTER_S:
                self._said_s = now_s
                oldest = min((said for said in self._kept.values() if said.sums), key=lambda said: said.clock)
                _LOG.warning("total_awaited server=%s table=%d step=%d", self.peer.name, oldest.table, oldest.clock)
            if self._again:
                return max(1.0, (self._again_s - now_s) * 1000)
        return limits.WAIT_SAID_AFTER_S * 1000 if waits else None

    def _send(self, writer: FrameWriter) -> None:
        with self._lock:
            said = [self._kept[key] for key in self._unsent if key in self._kept][: limits.FRAME_ENTRIES_MAX]
            for each in said:
                del self._unsent[each[:3]]
            if not self._unsent.keys() <= self._kept.keys():
                self._unsent = {key: None for key in self._unsent if key in self._kept}
            if self._unsent:
                self._bell.ring()
        if not said:
            return
        entries, payload = [], bytearray()
        for each in said:
            self._tag = self._tag % _TAG_MAX + 1
            self._tags[self._tag] = each
            raw = struct.pack(f"<{len(each.sums)}d", *each.sums)
            entries.append(_entry(each, self._tag, len(payload), len(raw)))
            payload += raw + bytes(-len(raw) % limits.ALIGN_BYTES)
        header = Header(Kind.REQUEST, 0, len(entries), 0, len(payload), 0, 0, 0, 0)
        writer.put(header, frames.pack_entries(entries), [memoryview(payload)] if payload else [])

    def _take(self, frame: Frame) -> None:
        """Answers: totals go on, the rest is dropped or kept to be said again."""
        raw: bytearray = frame.placed
        told = []
        with self._lock:
            for entry in frame.entries:
                said = self._tags.pop(entry.tag, None)
                if said is None or self._kept.get(said[:3]) != said:
                    continue  # something newer has been said of the block since
                if entry.status in (Status.UNKNOWN, Status.RETRY):
                    self._again[said[:3]] = None
                    self._again_s = time.monotonic() + _AGAIN_S
                    continue
                del self._kept[said[:3]]
                if said.sums and entry.status == Status.OK:
                    told.append((said, _totals_untrusted(entry, raw, len(said.sums))))
        for said, totals in told:
            self._on_told(said, totals)


def _place(header: Header, _entries: list[Entry]) -> Place:
    if header.kind != Kind.ANSWER or header.payload_bytes > limits.MIB:
        raise ProtocolError("a server answered another with something else", kind=header.kind)
    raw = bytearray(header.payload_bytes)
    return Place([memoryview(raw)], raw)


def _totals_untrusted(entry: Entry, raw: bytearray, count: int) -> Totals:
    """The totals of an answer; () where it has none, because the step is over."""
    if entry.aux == 0:
        return ()
    if entry.aux != count or entry.nbytes < 8 * count:
        raise ProtocolError("totals are not as many as were asked for", got=entry.aux, expected=count)
    return struct.unpack_from(f"<{count}d", raw, entry.offset)


def _entry(said: Partial, tag: int, offset: int, nbytes: int) -> Entry:
    """A REDUCE entry: its segments end is the scope, its stamp the phase."""
    return Entry(
        Op.REDUCE, 0, 0, said.table, said.block, tag, 0, said.clock, 0, said.scope, offset, nbytes, 0, 0, 0, 0.0,
        said.phase, 0, 0,
    )  # fmt: skip
