"""A TCP relay that lets so many bytes a second pass each way: a slow network on one machine, without root.

    python -m benchmarks.throttle 127.0.0.2:5000 127.0.0.1:5000 100e6      # listen, upstream, bytes a second

Its buffers are small (64 KiB each), so that what a sender has handed over has nearly arrived. Prints a line when it
listens, ends with its input. `passed_up` counts bytes towards the server, `passed_down` those back; with one
connection they are exact.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time

CHUNK_BYTES = 1 << 16
LATE_S = 0.005  # what the relay was woken too late, up to this, is made up for


def main(listen: str, upstream: str, bytes_per_s: str) -> None:
    with Throttle(_address(listen), _address(upstream), float(bytes_per_s)):
        print("ready", flush=True)
        sys.stdin.read()


class Throttle:
    """Relays connections to `listen` on to `upstream` until it is closed."""

    def __init__(self, listen: tuple[str, int], upstream: tuple[str, int], bytes_per_s: float) -> None:
        self.upstream = upstream
        self.bytes_per_s = bytes_per_s
        self.passed_up = 0
        self.passed_down = 0
        self._closing = threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK_BYTES)
        self._listener.bind(listen)
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept, name="throttle")]
        self._threads[0].start()

    def close(self) -> None:
        """End every connection, join every thread."""
        self._closing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for sock in [self._listener, *self._sockets]:
            sock.close()

    def __enter__(self) -> Throttle:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._sockets.append(client)
            server = socket.socket()
            self._sockets.append(server)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, CHUNK_BYTES)
            try:
                server.connect(self.upstream)
            except OSError:
                client.shutdown(socket.SHUT_RDWR)
                continue
            for sock in (client, server):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, CHUNK_BYTES)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            left = [client, server]
            for source, target in ((client, server), (server, client)):
                ends = (source, target, left)
                thread = threading.Thread(target=self._relay, args=ends, kwargs={"up": source is client})
                self._threads.append(thread)
                thread.start()

    def _relay(self, source: socket.socket, target: socket.socket, left: list[socket.socket], *, up: bool) -> None:
        free_at = 0.0  # when the line has passed on what it was given
        with contextlib.suppress(OSError):
            while raw := source.recv(CHUNK_BYTES):
                free_at = max(free_at, time.monotonic() - LATE_S) + len(raw) / self.bytes_per_s
                self._closing.wait(max(0.0, free_at - time.monotonic()))
                target.sendall(raw)
                if up:
                    self.passed_up += len(raw)
                else:
                    self.passed_down += len(raw)
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        left.remove(source)
        if not left:  # the other way has ended, too
            source.close()
            target.close()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    main(*sys.argv[1:])
