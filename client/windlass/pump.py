"""The pump: moves a session's bytes both ways.

Writing all requests and then reading all answers deadlocks as soon as both directions exceed the socket buffers. So
whoever waits for a ticket takes the pump and moves bytes of all links in both directions until its own ticket is done;
the thread that waits is the thread that works. `submit` sends inline what the sockets take. A background thread takes
the pump only when something is open and nobody has held it for a millisecond.

Invariant: one thread at a time holds the pump (`_pumping`), and only it touches window and links. `_state` guards the
inbox and who pumps, and is never held over a system call. Others hand their wishes in through the inbox and ring.
"""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from windlass.data_link import DataLink, Target, error_of, open_socket, refusal_of
from windlass.reads import Read
from windlass.ticket import Ticket
from windlass.window_core import Finished, Request, Stamp, WindowCore
from windlass_proto import limits
from windlass_proto.errors import ClosedError, ProtocolError, UnavailableError, WindlassError
from windlass_proto.frames import Op, Status
from windlass_proto.links.arena import ArenaHeap
from windlass_proto.links.bell import Bell

_BACKGROUND_AFTER_S = 0.001
_BACKGROUND_TURN_S = 0.05
_CONNECT_S = 3.0
_RECONNECT_PAUSE_S = 0.1
_BRIEF_S = 1.0  # a link that ends sooner, with nothing read, counts for no link: a server that refuses what it is sent
_RETRY_PAUSE_S = 0.005  # a server whose pool is full frees a 2 MiB buffer about every millisecond
_READS = frozenset({Op.PULL, Op.PUSH_PULL})
_SUCCESSES = frozenset({Status.OK, Status.DUPLICATE, Status.LATE})
_READ_WRITE = select.POLLIN | select.POLLOUT


class Mark(NamedTuple):
    """A step to close: its store, clock, and the servers that hold a share of the store."""

    store: int
    clock: int
    servers: tuple[int, ...]
    leaves: bool = False
    stamp: Stamp | None = None


class _Submission(NamedTuple):
    requests: list[Request]
    mark: Mark | None


class _Routing(NamedTuple):
    server_of: Callable[[int], int]
    generation: int
    targets: dict[int, Target]


class Pump:
    """All links of one session.

    Args:
        session: 16 bytes from the scheduler.
        key: the data links' key.
        heap: shared memory that shm links pass on; None where it is not to be used.
        rpc_s: how long a server may be unreachable before what was asked of it fails.
        said_after_s: how long a wait may be before `on_idle_wait` hears of it, and again after each such time.
    """

    def __init__(
        self,
        session: bytes,
        key: bytes,
        heap: ArenaHeap | None,
        *,
        rpc_s: float = limits.RPC_S,
        said_after_s: float = limits.WAIT_SAID_AFTER_S,
    ) -> None:
        self.session = session
        self.key = key
        self.heap = heap
        self.rpc_s = rpc_s
        self.said_after_s = said_after_s
        self.window = WindowCore(_unrouted)
        self.links: dict[int, DataLink] = {}
        self.targets: dict[int, Target] = {}
        self.on_idle_wait: Callable[[Ticket, float], None] | None = None
        self.bytes_in = 0
        self.bytes_out = 0
        self._failed: WindlassError | None = None
        self._state = threading.Condition()
        self._pumping = False
        self._waiters = 0
        self._inbox: deque[Any] = deque()
        self._down_since: dict[int, float] = {}
        self._came_up: dict[int, tuple[float, float]] = {}  # when a link came up, and since when there was none
        self._retry_at: dict[int, float] = {}
        self._paused: dict[int, float] = {}
        self._connecting: dict[int, threading.Thread] = {}
        self._poll = select.poll()
        self._interest: dict[int, tuple[DataLink, int]] = {}
        self._bell = Bell()
        self._poll.register(self._bell, select.POLLIN)
        self._stopping = False
        self._work = threading.Event()
        self._closing = threading.Event()
        self._held_s = 0.0
        self._background = threading.Thread(target=self._run_background, name="windlass-pump", daemon=True)
        self._background.start()

    # ---- for any thread ----------------------------------------------------------------------------------------------

    def submit(self, requests: list[Request], mark: Mark | None = None) -> None:
        """Queue requests (and the step they close), sending inline what the sockets take."""
        self._hand_in(_Submission(requests, mark))

    def submit_to_wait(self, requests: list[Request], mark: Mark | None) -> bool:
        """`submit` by a thread that goes on to `wait_on`: True if it holds the pump from here to there."""
        with self._state:
            if self._failed is not None:
                raise self._failed
            self._inbox.append(_Submission(requests, mark))
            if self._pumping:
                held = False
            else:
                held = self._pumping = True
                self._waiters += 1
        if not held:
            self._ring()
        return held

    def wait_on(self, ticket: Ticket, *, held: bool) -> None:
        """Wait for what `submit_to_wait` queued; `held` is what it returned."""
        if held:
            self._pump_until(ticket, time.monotonic() + self.said_after_s)
        if ticket.left:
            self.wait(ticket, None, waited_s=self.said_after_s if held else 0.0)

    def route(self, server_of: Callable[[int], int], generation: int, targets: dict[int, Target]) -> None:
        """Vshards have these owners, reachable there."""
        self._hand_in(_Routing(server_of, generation, targets))

    def fail(self, error: WindlassError) -> None:
        """The session has ended: everything open and everything asked later fails with `error`."""
        self._hand_in(error)

    def wait(self, ticket: Ticket, timeout_s: float | None, *, waited_s: float = 0.0) -> None:
        """Move bytes until `ticket` is done. `waited_s`: how long it has been waited for already.

        Raises:
            TimeoutError: not done within `timeout_s`.
        """
        began = time.monotonic() - waited_s
        deadline = None if timeout_s is None else began + timeout_s
        notice_at = began + self.said_after_s
        while ticket.left:
            if self._stopping:
                raise self._failed or ClosedError("the cluster was closed")
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise TimeoutError(f"{ticket.what} was not answered within {timeout_s} s; it goes on")
            if now >= notice_at:
                notice_at = now + self.said_after_s
                if self.on_idle_wait is not None:
                    self.on_idle_wait(ticket, now - began)
            until = notice_at if deadline is None else min(deadline, notice_at)
            self._wait_once(ticket, until)

    def orphan(self, error: WindlassError) -> None:
        """This process is a fork of the one that made the pump, whose threads and links stay with that one."""
        self._state = threading.Condition()
        self._failed = error
        self._stopping = True
        for link in self.links.values():
            link.sock.close()
        self._bell.close()

    def close(self, timeout_s: float = 5.0) -> None:
        """Send what is queued, say goodbye, close every link, join every thread. Unfinished requests fail."""
        deadline = time.monotonic() + timeout_s
        if self._take_pump(deadline):
            try:
                self._say_goodbye(deadline)
            finally:
                self._give_pump()
        self._stopping = True
        self._closing.set()
        self._work.set()
        self._ring()
        self._background.join()
        for thread in list(self._connecting.values()):
            thread.join()
        for item in self._inbox:
            if isinstance(item, tuple) and isinstance(item[-1], socket.socket):
                item[-1].close()  # a link that nobody took any more
        for link in self.links.values():
            link.close()
        self._bell.close()

    # ---- who pumps ---------------------------------------------------------------------------------------------------

    def _hand_in(self, item: Any) -> None:
        with self._state:
            if self._failed is not None:
                raise self._failed
            self._inbox.append(item)
            if self._pumping:
                ring = True
            else:
                self._pumping, ring = True, False
        if ring:
            self._ring()
            return
        try:
            self._turn(0.0)
        finally:
            self._give_pump()

    def _wait_once(self, ticket: Ticket, until: float) -> None:
        """Pump until the ticket is done or `until`; or, if another thread pumps, wait for it to be done or to leave."""
        with self._state:
            self._waiters += 1
            if self._pumping:
                self._ring()
                self._state.wait(max(0.0, until - time.monotonic()))
                self._waiters -= 1
                return
            self._pumping = True
        self._pump_until(ticket, until)

    def _pump_until(self, ticket: Ticket, until: float) -> None:
        """The caller holds the pump and is counted as a waiter; both end here."""
        try:
            while ticket.left and (now := time.monotonic()) < until:
                self._turn(until - now)
        finally:
            self._waiters_left()
            self._give_pump()

    def _waiters_left(self) -> None:
        with self._state:
            self._waiters -= 1

    def _take_pump(self, deadline: float) -> bool:
        with self._state:
            self._waiters += 1
            self._ring()
            free = self._state.wait_for(lambda: not self._pumping, max(0.0, deadline - time.monotonic()))
            self._waiters -= 1
            if free:
                self._pumping = True
            return free

    def _give_pump(self) -> None:
        while self._inbox and not self._stopping and self._failed is None:
            self._turn(0.0)
        with self._state:
            self._pumping = False
            self._held_s = time.monotonic()
            if self._waiters:
                self._state.notify_all()
        if not self._work.is_set() and self._has_work():
            self._work.set()

    def _ring(self) -> None:
        with contextlib.suppress(OSError):
            self._bell.ring()

    def _run_background(self) -> None:
        """Pump when something is open and nobody has for a millisecond.

        Nobody wakes this thread at every call, for that would cost more than the call: it is woken by work that is
        left behind, and looks a millisecond later.
        """
        while not self._stopping:
            self._work.wait()
            self._closing.wait(_BACKGROUND_AFTER_S)
            if self._take_idle_pump():
                self._pump_unwanted()

    def _pump_unwanted(self) -> None:
        """Pump until nothing is open or somebody wants the pump."""
        try:
            while self._waiters == 0 and not self._stopping and self._has_work():
                self._turn(_BACKGROUND_TURN_S)
            if not self._has_work():
                self._work.clear()
        finally:
            self._give_pump()

    def _take_idle_pump(self) -> bool:
        """Take the pump if nobody holds it, wants it, or has held it within a millisecond."""
        with self._state:
            if self._pumping:
                self._work.clear()  # who holds it sets this again if work is left then
                return False
            if self._stopping or self._waiters > 0 or time.monotonic() - self._held_s < _BACKGROUND_AFTER_S:
                return False
            self._pumping = True
            return True

    def _has_work(self) -> bool:
        window = self.window
        if self._inbox or self._connecting or window.open_requests():
            return True
        return any(link.writer.waiting() for link in self.links.values()) or any(map(window.wants, window.lanes))

    # ---- one turn of the pump ----------------------------------------------------------------------------------------

    def _turn(self, wait_s: float) -> None:
        """Take the inbox, send, wait up to `wait_s` for a link, read what is there. The caller holds the pump."""
        if self._inbox:
            self._take_inbox()
        if self._down_since:
            self._reconnect()
        if self._paused:
            self._paused = {server: until for server, until in self._paused.items() if until > time.monotonic()}
        for server, link in list(self.links.items()):
            if link.writer.waiting() or (self.window.wants(server) and server not in self._paused):
                self._send(link)
        if wait_s <= 0.0:
            return
        if self._down_since:
            wait_s = min(wait_s, self._next_retry_s())
        if self._paused:
            wait_s = min(wait_s, _RETRY_PAUSE_S)
        for descriptor, _ in self._poll.poll(max(0, int(wait_s * 1000 + 0.999))):
            if descriptor == self._bell.fileno():
                self._bell.hear()
                continue
            found = self._interest.get(descriptor)
            if found is not None:
                self._read(found[0])

    def _take_inbox(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            if type(item) is _Submission:
                for request in item.requests:
                    self.window.submit(request)
                if item.mark is not None:
                    store, clock, servers, leaves, stamp = item.mark
                    self.window.close_step(store, clock, servers, leaves=leaves, stamp=stamp)
            elif isinstance(item, WindlassError):
                self._fail(item)
            elif type(item) is _Routing:
                self.targets = item.targets
                self.window.set_routing(item.server_of, item.generation)
                for server in item.targets:
                    if server not in self.links:
                        self._down_since.setdefault(server, time.monotonic())
            else:
                self._link_arrived(*item)

    def _send(self, link: DataLink) -> None:
        """Send what the socket takes; ask to be told when it takes more."""
        writer, window = link.writer, self.window
        try:
            while writer.flush() and window.wants(link.server):
                frame = window.next_frame(link.server)
                if frame is None:
                    break
                link.put(frame)
        except UnavailableError as error:
            self._link_lost(link, error)
            return
        self._register(link, _READ_WRITE if writer.waiting() else select.POLLIN)

    def _read(self, link: DataLink) -> None:
        try:
            while (frame := link.read()) is not None:
                self._on_frame(link, frame.entries, frame.placed or {})
                if not link.reader.mid_frame():
                    break  # nothing was read beyond this frame, so poll tells of what comes
        except (UnavailableError, ProtocolError) as error:
            self._link_lost(link, error)

    def _on_frame(self, link: DataLink, entries: Iterable[Any], records: dict[int, bytearray]) -> None:
        for entry in entries:
            finished = self.window.on_answer(link.server, entry)
            if finished is None:
                if entry.status == Status.RETRY:
                    self._paused[link.server] = time.monotonic() + _RETRY_PAUSE_S
                continue
            error: WindlassError | None
            owner: Ticket | None = finished.request.owner
            if finished.status is Status.LATE and owner is not None and owner.store is not None:
                owner.store.open.reach(entry.aux)
            if entry.stamp and owner is not None and owner.store is not None:
                owner.store.exchange.hear_replaced(finished.request, entry.stamp)
            if finished.status is Status.ERROR:
                error = error_of(entry, records)
            elif finished.status in _SUCCESSES:
                error = None
                if entry.aux and owner is not None and entry.status != Status.LATE:
                    _note_read(owner, finished.request, entry.aux)
            else:
                error = _refusal(finished)
            self._finish(owner, error)

    def _finish(self, ticket: Ticket | None, error: WindlassError | None) -> None:
        if ticket is None:
            return
        if error is not None and ticket.error is None:
            ticket.error = error
        if ticket.left == 1 and ticket.store is not None:
            ticket.store.on_done(ticket)
        ticket.left -= 1
        if ticket.left == 0 and self._waiters > 1:
            with self._state:
                self._state.notify_all()

    # ---- links -------------------------------------------------------------------------------------------------------

    def _register(self, link: DataLink, events: int) -> None:
        descriptor = link.sock.fileno()
        known = self._interest.get(descriptor)
        if known is None or known[1] != events:
            self._poll.register(descriptor, events)
            self._interest[descriptor] = (link, events)

    def _link_lost(self, link: DataLink, error: WindlassError) -> None:
        del error  # the link comes back or its requests fail after rpc_s, in `_reconnect`
        descriptor = link.sock.fileno()
        if self._interest.pop(descriptor, None) is not None:
            self._poll.unregister(descriptor)
        self.bytes_in += link.reader.bytes_read
        self.bytes_out += link.writer.bytes_written
        link.close()
        if self.links.get(link.server) is link:
            del self.links[link.server]
            now = time.monotonic()
            came_up, since = self._came_up.pop(link.server)
            if link.reader.bytes_read == 0 and now - came_up < _BRIEF_S:  # what is sent ends it: it was never up
                self._down_since[link.server] = since
                self._retry_at[link.server] = now + _RECONNECT_PAUSE_S
            else:
                self._down_since[link.server] = now
            self.window.link_down(link.server)

    def _next_retry_s(self) -> float:
        waits = [self._retry_at.get(s, 0.0) for s in self._down_since if s not in self._connecting]
        return max(0.0, min(waits) - time.monotonic()) if waits else 3600.0

    def _reconnect(self) -> None:
        """Start a connector for every server that is down; fail what has waited for one longer than `rpc_s`."""
        if not self._down_since or self._stopping:
            return
        now = time.monotonic()
        for server, since in list(self._down_since.items()):
            if server in self._connecting or now < self._retry_at.get(server, 0.0):
                continue
            if now - since > self.rpc_s and self.window.lanes.get(server) is not None:
                self._give_up(server, now - since)
            target = self.targets.get(server)
            if target is None:
                continue
            thread = threading.Thread(
                target=self._connect, args=(server, target), name=f"windlass-connect-{server}", daemon=True
            )
            self._connecting[server] = thread
            thread.start()

    def _connect(self, server: int, target: Target) -> None:
        found: Any
        try:
            found = open_socket(target, self.key, self.session, _CONNECT_S)
        except WindlassError as error:
            found = error
        except OSError as error:
            found = UnavailableError("a server could not be reached", reason=str(error))
        with self._state:
            self._inbox.append((server, target, found))
        self._ring()
        self._work.set()

    def _link_arrived(self, server: int, target: Target, found: Any) -> None:
        self._connecting.pop(server, None)
        if isinstance(found, WindlassError):
            self._retry_at[server] = time.monotonic() + _RECONNECT_PAUSE_S
            if not isinstance(found, UnavailableError | ProtocolError):
                self._fail(found)
            return
        if self._stopping or self.targets.get(server) != target:
            found.close()
            return
        link = DataLink(server, target, found, self.window, self.heap)
        self.links[server] = link
        now = time.monotonic()
        self._came_up[server] = (now, self._down_since.pop(server, now))
        self._retry_at.pop(server, None)
        self.window.link_up(server)
        self._register(link, select.POLLIN)

    def _fail(self, error: WindlassError) -> None:
        """The session cannot go on (refused for good): everything open fails with `error`, and all that follows."""
        self._failed = error
        for request in self.window.abandon():
            self._finish(request.owner, error)

    def _give_up(self, server: int, waited_s: float) -> None:
        target = self.targets.get(server)
        error = UnavailableError(
            "a server has not been reachable",
            server=server,
            address=f"{target.kind}:{target.address}" if target else "unknown",
            waited_s=round(waited_s, 1),
            next_move="Look at `windlass status` and the server's log.",
        )
        lane = self.window.lanes[server]
        for request in [*lane.inflight.values(), *lane.again, *lane.queued()]:
            # It stays queued, so that what follows keeps its order; its values go nowhere.
            owner, request.owner, request.out = request.owner, None, None
            self._finish(owner, error)

    def _say_goodbye(self, deadline: float) -> None:
        while self._has_work() and not self._down_since and time.monotonic() < deadline:
            self._turn(min(0.05, max(0.0, deadline - time.monotonic())))
        error = ClosedError("the cluster was closed", next_move="Call windlass.connect() again.")
        for request in self.window.abandon():
            self._finish(request.owner, error)
        self._failed = error
        for link in list(self.links.values()):
            with contextlib.suppress(UnavailableError):
                link.goodbye()
                link.writer.flush()


def _unrouted(vshard: int) -> int:
    raise UnavailableError("no key range has been handed out yet", vshard=vshard)


def _note_read(ticket: Ticket, request: Request, number: int) -> None:
    if request.op in _READS:
        ticket.reads.append(Read(request.share[0], request.block, request.seg_begin, request.seg_end, number))


def _refusal(finished: Finished) -> WindlassError:
    """Why a request was refused; its store knows which tensors it was about."""
    request = finished.request
    store = getattr(request.owner, "store", None)
    if store is None:
        return refusal_of(finished.status, str(request.share[0]), worker="unknown")
    error: WindlassError = store.refusal(finished.status, request)
    return error
