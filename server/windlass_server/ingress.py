"""The ingress: listeners, the preamble, and a thread per connection.

Invariant: at most `limits.CONNECTIONS_MAX` connections, the one over it being refused in words, and at most
`limits.HANDSHAKES_MAX` peers in their preamble, the one over it taking the place of the one that has been at it
longest. Of a session's connections one reads: a later one begins when the earlier has ended. Every thread started here
is joined by `close`. The accepting thread reads no byte of a peer, so a slow one delays nobody.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from windlass_proto import limits
from windlass_proto.errors import ProtocolError, UnavailableError, UsageError, WindlassError
from windlass_proto.links import buffers, preamble
from windlass_proto.links.bell import Bell
from windlass_server.connection import Connection, hand_over
from windlass_server.node import ServerNode
from windlass_server.replies import Reply

_LOG = logging.getLogger("windlass.server")
_ACCEPT_PAUSE_S = 0.1


def listen_tcp(host: str, port: int) -> socket.socket:
    """A listening TCP socket.

    Raises:
        UsageError: the port is taken or the address is not ours.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(128)
    except OSError as cause:
        sock.close()
        raise UsageError(
            "the server could not listen",
            address=f"{host}:{port}",
            reason=cause.strerror,
            next_move="Choose another port with --listen, or port 0 for a free one.",
        ) from cause
    return sock


def listen_unix(path: Path) -> socket.socket:
    """A listening Unix socket that only this user can open.

    Raises:
        UsageError: the path is too long or its folder is not writable.
    """
    raw = os.fsencode(path)
    if len(raw) > limits.UNIX_PATH_BYTES_MAX:
        raise UsageError(
            "a Unix socket's path is too long",
            bytes=len(raw),
            bytes_max=limits.UNIX_PATH_BYTES_MAX,
            next_move="Point XDG_RUNTIME_DIR or TMPDIR at a shorter folder.",
        )
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.unlink(missing_ok=True)
        sock.bind(str(path))
        path.chmod(0o600)
        sock.listen(128)
    except OSError as cause:
        sock.close()
        raise UsageError("the server could not listen", path=path, reason=cause.strerror) from cause
    return sock


class Ingress:
    """Accepts connections on `listeners` for `node`."""

    def __init__(self, listeners: list[socket.socket], key: bytes, node: ServerNode) -> None:
        self.listeners = listeners
        self.key = key
        self.node = node
        self._builder = ThreadPoolExecutor(1, thread_name_prefix="builder")
        self._connections: set[Connection] = set()
        self._threads: set[threading.Thread] = set()
        self._greeting: dict[socket.socket, None] = {}  # in their preamble, oldest first
        self._lock = threading.Lock()
        self._stopping = Bell()
        self._acceptor = threading.Thread(target=self._accept, name="acceptor")
        self._acceptor.start()

    def oldest_frame_age_ms(self) -> int:
        """How long the frame that has been worked on longest has taken so far."""
        with self._lock:
            began = [at for c in self._connections if (at := c.frame_began_s)]
        return int((time.monotonic() - min(began)) * 1000) if began else 0

    def connections(self) -> int:
        """Connections that stand."""
        with self._lock:
            return len(self._connections)

    def deliver(self, reply: Reply) -> None:
        """Hand an answer to its connection from outside its thread (the roster changed)."""
        hand_over(reply)

    def end_session(self, session: bytes, reason: str) -> None:
        """The scheduler ended `session`: drop its connections and what waits for it."""
        self.node.end_session(session, reason, self.deliver)
        with self._lock:
            found = [connection for connection in self._connections if connection.session == session]
        for connection in found:
            connection.stop()

    def close(self) -> None:
        """Stop listening, end every connection, join every thread."""
        self._stopping.ring()
        self._acceptor.join()
        for sock in self.listeners:
            sock.close()
        with self._lock:
            connections, threads = list(self._connections), list(self._threads)
            for sock in self._greeting:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.stop()
        for thread in threads:
            thread.join()
        self._builder.shutdown()
        self.node.close()
        self._stopping.close()

    def _accept(self) -> None:
        poll = select.poll()
        poll.register(self._stopping, select.POLLIN)
        for sock in self.listeners:
            sock.setblocking(False)
            poll.register(sock, select.POLLIN)
        by_descriptor = {sock.fileno(): sock for sock in self.listeners}
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._stopping.fileno():
                    return
                try:
                    sock = by_descriptor[descriptor].accept()[0]
                except (BlockingIOError, ConnectionError):
                    continue
                except OSError as error:  # out of descriptors or memory: whoever waits may be served later
                    _LOG.warning("accept_failed reason=%r", str(error))
                    select.select([self._stopping], [], [], _ACCEPT_PAUSE_S)
                    continue
                self._welcome(sock)

    def _welcome(self, sock: socket.socket) -> None:
        with self._lock:
            oldest = next(iter(self._greeting)) if len(self._greeting) >= limits.HANDSHAKES_MAX else None
            if oldest is not None:
                self._greeting.pop(oldest)
        if oldest is not None:  # those who hold back their preamble make room for those who come
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        thread = threading.Thread(target=self._serve, args=(sock,), name="connection")
        with self._lock:
            self._threads.add(thread)
            self._greeting[sock] = None
        try:
            thread.start()
        except RuntimeError as error:  # the system gives no more threads
            _LOG.warning("peer_refused reason=%r", str(error))
            with self._lock:
                self._threads.discard(thread)
                self._greeting.pop(sock, None)
            sock.close()

    def _serve(self, sock: socket.socket) -> None:
        connection = None
        try:
            connection = self._admit(sock)
            if connection is not None:
                self._succeed(connection)
                connection.serve()
        except (ProtocolError, OSError) as error:
            _LOG.warning("peer_refused reason=%r", str(error))
        finally:
            sock.close()
            with self._lock:
                self._greeting.pop(sock, None)
                if connection is not None:
                    self._connections.discard(connection)
                self._threads.discard(threading.current_thread())

    def _take_seat(self, sock: socket.socket) -> None:
        """The peer has passed the preamble.

        Raises:
            UnavailableError: there are as many already as may be.
        """
        with self._lock:
            self._greeting.pop(sock, None)
            full = len(self._threads) - len(self._greeting) > limits.CONNECTIONS_MAX
        if full:
            raise UnavailableError(
                "the server has as many connections as it takes",
                connections_max=limits.CONNECTIONS_MAX,
                next_move="Add servers, or connect fewer workers.",
            )

    def _succeed(self, connection: Connection) -> None:
        """Take the place of the session's earlier connection once that has ended.

        What is left in an ended link would otherwise be read beside the new one, and take back the answers that wait.
        """
        with self._lock:
            earlier = [c for c in self._connections if c.session == connection.session]
            self._connections.add(connection)
        for other in earlier:
            other.stop()
            other.ended.wait()

    def _admit(self, sock: socket.socket) -> Connection | None:
        local = sock.family == socket.AF_UNIX
        if local:
            _check_credentials(sock)
        else:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            buffers.notice_loss(sock)
        buffers.enlarge(sock)
        hello = preamble.receive_hello_untrusted(sock, self.key)
        try:
            self._take_seat(sock)
            self.node.check_session(hello.session)
        except WindlassError as refusal:
            preamble.refuse(sock, refusal)
            sock.close()
            return None
        return Connection(sock, hello.session, self.node, self._builder, local=local)


def _check_credentials(sock: socket.socket) -> None:
    """The kernel says which user is at the other end: ours, or root.

    Raises:
        ProtocolError: another user.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return  # macOS: the socket's folder is 0700
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", raw)
    if uid not in (os.getuid(), 0):
        raise ProtocolError("another user opened the server's socket", uid=uid, expected=os.getuid())
