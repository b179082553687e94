"""A TCP proxy that breaks links on purpose, between any two processes.

It follows the frames of both directions (the preamble's bytes pass untouched), so that faults hit the n-th frame of all
that passed, at a byte that a seed chooses. Of a frame that is cut, the bytes before that one do arrive.

    with FaultProxy(("127.0.0.1", 5000), Faults(cut_every=50)) as proxy:
        connect(proxy.address)

Owner of sockets and counters: the proxy's thread. `faults` may be replaced by any thread at any time.
"""

from __future__ import annotations

import contextlib
import random
import selectors
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType

from windlass_proto import frames
from windlass_proto.links.bell import Bell

_READ_BYTES = 1 << 16
_HELD_BYTES_MAX = 1 << 20
_PREAMBLE_BYTES = {"up": 64 + 32, "down": 96 + 8}


@dataclass(frozen=True, slots=True)
class Faults:
    """What goes wrong. 0 or None: never.

    cut_every: every n-th frame is cut: what came before arrives, then both ends are reset.
    truncate_every: the same, but the links end in order (FIN).
    corrupt_every: one byte of every n-th frame arrives with a bit flipped.
    delay_s: every byte arrives this much later.
    hold: nothing passes and nobody is told; it passes once `hold` is taken back.
    """

    cut_every: int = 0
    truncate_every: int = 0
    corrupt_every: int = 0
    delay_s: float = 0.0
    hold: bool = False


class _Direction:
    """One way of one connection: what has been read and not sent, and where its frames are."""

    def __init__(self, source: socket.socket, target: socket.socket, way: str) -> None:
        self.source = source
        self.target = target
        self.pending: deque[tuple[float, bytes]] = deque()
        self.held = 0
        self.ended = False
        self._until_header = _PREAMBLE_BYTES[way]
        self._header = b""
        self._strike_in = -1  # bytes until the byte that the present frame's fault hits
        self._fault = ""

    def take(self, proxy: FaultProxy, raw: bytes) -> tuple[bytes, str]:
        """What of `raw` goes on, and the fault that ends the link with it ("" for none)."""
        out = bytearray()
        while raw:
            if self._until_header:
                part, raw = raw[: self._until_header], raw[self._until_header :]
                self._until_header -= len(part)
            else:
                need = frames.HEADER_BYTES - len(self._header)
                part, raw = raw[:need], raw[need:]
                self._header += part
                if len(self._header) == frames.HEADER_BYTES:
                    self._begin_frame(proxy)
            struck = self._strike(out, part)
            if struck:
                return bytes(out), struck
        return bytes(out), ""

    def _begin_frame(self, proxy: FaultProxy) -> None:
        count, payload = struct.unpack_from("<I", self._header, 8)[0], struct.unpack_from("<Q", self._header, 16)[0]
        self._until_header = frames.table_bytes(count) + payload
        self._header = b""
        proxy.frames += 1
        self._fault = proxy.fault_of(proxy.frames)
        if self._fault:
            proxy.struck += 1
            self._strike_in = proxy.random.randrange(max(1, self._until_header)) + 1

    def _strike(self, out: bytearray, part: bytes) -> str:
        """Send `part` on; the fault if its byte lies in it and ends the link."""
        if self._strike_in < 0 or len(part) == 0:
            out += part
            return ""
        if self._until_header and self._strike_in > len(part):
            self._strike_in -= len(part)
            out += part
            return ""
        at = min(self._strike_in, len(part)) - 1
        fault, self._fault, self._strike_in = self._fault, "", -1
        if fault == "corrupt":
            out += part[:at] + bytes([part[at] ^ 0x10]) + part[at + 1 :]
            return ""
        out += part[:at]
        return fault


class FaultProxy:
    """Passes connections on to `upstream`, with `faults`."""

    def __init__(
        self,
        upstream: tuple[str, int],
        faults: Faults = Faults(),
        *,
        listen: tuple[str, int] = ("127.0.0.1", 0),
        seed: int = 0,
    ) -> None:
        self.upstream = upstream
        self.faults = faults
        self.random = random.Random(seed)
        self.frames = 0
        self.struck = 0
        self.connections = 0
        self._listener = socket.create_server(listen, backlog=64)
        self._listener.setblocking(False)
        self.host, self.port = self._listener.getsockname()[:2]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._directions: dict[socket.socket, _Direction] = {}
        self._stop = Bell()
        self._selector.register(self._stop, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="fault-proxy")
        self._thread.start()

    @property
    def address(self) -> str:
        return f"{self.host}:{self.port}"

    def fault_of(self, number: int) -> str:
        """What happens to frame `number` of all."""
        faults = self.faults
        for every, fault in (
            (faults.cut_every, "cut"),
            (faults.truncate_every, "truncate"),
            (faults.corrupt_every, "corrupt"),
        ):
            if every and number % every == 0:
                return fault
        return ""

    def close(self) -> None:
        self._stop.ring()
        self._thread.join()
        for sock in [*self._directions, self._listener]:
            sock.close()
        self._selector.close()
        self._stop.close()

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select(0.005 if self._waiting() else 0.05):
                if key.fileobj == self._stop:
                    return
                if key.fileobj is self._listener:
                    self._accept()
                else:
                    found = self._directions.get(key.fileobj)  # type: ignore[call-overload]
                    if found is not None:
                        self._read(found)
            for direction in list(self._directions.values()):
                self._send(direction)

    def _waiting(self) -> bool:
        return any(direction.pending for direction in self._directions.values())

    def _accept(self) -> None:
        client = self._listener.accept()[0]
        try:
            server = socket.create_connection(self.upstream, 5.0)
        except OSError:
            client.close()
            return
        self.connections += 1
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
        self._directions[client] = _Direction(client, server, "up")
        self._directions[server] = _Direction(server, client, "down")
        for sock in (client, server):
            self._selector.register(sock, selectors.EVENT_READ)

    def _read(self, direction: _Direction) -> None:
        if direction.held > _HELD_BYTES_MAX or self.faults.hold or direction.ended:
            return
        try:
            raw = direction.source.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._end(direction, "cut")
            return
        out, fault = direction.take(self, raw)
        if out:
            direction.pending.append((time.monotonic() + self.faults.delay_s, out))
            direction.held += len(out)
        if fault or not raw:
            direction.ended = True
            self._send(direction, flush=bool(fault))
            if fault or not direction.pending:
                self._end(direction, fault or "truncate")

    def _send(self, direction: _Direction, *, flush: bool = False) -> None:
        while direction.pending and not self.faults.hold:
            due, raw = direction.pending[0]
            if due > time.monotonic() and not flush:
                return
            try:
                sent = direction.target.send(raw)
            except BlockingIOError:
                return
            except OSError:
                self._end(direction, "cut")
                return
            direction.held -= sent
            if sent == len(raw):
                direction.pending.popleft()
            else:
                direction.pending[0] = (due, raw[sent:])
        if direction.ended and not direction.pending:
            self._end(direction, "truncate")

    def _end(self, direction: _Direction, fault: str) -> None:
        for sock in (direction.source, direction.target):
            if self._directions.pop(sock, None) is None:
                continue
            self._selector.unregister(sock)
            if fault == "cut":  # reset, so that what lies in buffers is lost as well
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
