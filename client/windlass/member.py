"""One process's membership of a cluster: what `connect` makes and `Cluster` and its stores use.

Invariant: updates from the scheduler are taken by the watch thread alone and reach the data plane through the pump's inbox.
The data plane goes on while the scheduler is away.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from windlass.data_link import Target
from windlass.dense_table import DenseTable
from windlass.pump import Pump
from windlass.ticket import Ticket
from windlass_proto import limits
from windlass_proto.errors import ClosedError, UnavailableError, UsageError, WindlassError
from windlass_proto.links import arena, preamble

if TYPE_CHECKING:
    from windlass_proto.control_link import Beater, ControlLink
    from windlass_proto.gen import control_pb2

_LINKS = ("tcp", "unix", "shm")


class Member:
    """A joined worker or observer.

    Args:
        control: the link to the scheduler.
        request: what to join as.
        token: the cluster's secret.
        wait_s: how long to wait for live peers.
    """

    def __init__(self, control: ControlLink, request: control_pb2.JoinRequest, token: bytes, *, wait_s: float) -> None:
        from windlass_proto import beats
        from windlass_proto.control_link import Beater
        from windlass_proto.gen import control_pb2 as pb

        self.control = control
        self.wait_s = wait_s
        self.joined = control.join(request)
        self.session = self.joined.session
        self.vshards = self.joined.vshards
        self.clocks: Callable[[], list[tuple[int, int]]] = list
        self.on_metrics: Callable[[Any], None] | None = None
        self.on_event: Callable[[str, str, float], None] | None = None
        self.routing: control_pb2.Routing | None = None
        self.rosters: dict[int, Any] = {}
        self.heap: arena.ArenaHeap | None = None
        self.all_shared = False
        self.peers: dict[int, str] = {}
        self._owners: list[int] = []
        self._owned: set[int] = set()
        self._closed: WindlassError | None = None
        self._routed = threading.Condition()
        self._pid = os.getpid()
        key = preamble.link_key(token, self.joined.cluster_id)
        self._link_kind = _link_kind()
        self.pump = Pump(self.session, key, None)
        self.pump.on_idle_wait = self._say_who_is_awaited
        host = control.address.rpartition(":")[0]
        self._beater: Beater = Beater(
            host,
            self.joined.beat_port,
            self.joined.member_id,
            self.joined.beat_s,
            beats.derive_key(token, self.joined.cluster_id),
            oldest_frame_age_ms=lambda: 0,
            clocks=lambda: self.clocks(),
        )
        watch = pb.WatchRequest(member_id=self.joined.member_id, session=self.session, metrics=True)
        control.watch(watch, self._on_update, self._on_lost)

    # ---- routing -----------------------------------------------------------------------------------------------------

    def await_routing(self, timeout_s: float) -> None:
        """Wait until the key ranges have been handed out.

        Raises:
            UnavailableError: servers are missing; how many is said.
        """
        with self._routed:
            ready = self._routed.wait_for(lambda: self.routing is not None or self._closed is not None, timeout_s)
        if self._closed is not None:
            raise self._closed
        if not ready:
            raise UnavailableError(
                "the cluster's key ranges have not been handed out",
                servers_declared=self.joined.servers_declared,
                waited_s=timeout_s,
                next_move="Start the missing servers; `windlass status` shows those that are there.",
            )

    def server_of(self, vshard: int) -> int:
        """The index of the server that owns `vshard`."""
        return self._owners[vshard]

    def _take_routing(self, routing: control_pb2.Routing) -> None:
        if not routing.servers or (self.routing is not None and routing.generation < self.routing.generation):
            return
        owners = [0] * routing.vshards
        targets = {}
        for server in routing.servers:
            targets[server.index] = _target(server, self._link_kind)
            for run in server.runs:
                owners[run.begin : run.end] = [server.index] * (run.end - run.begin)
        if self.heap is None and any(target.kind == "shm" for target in targets.values()):
            self.heap = self.pump.heap = arena.ArenaHeap()
        self.all_shared = all(target.kind == "shm" for target in targets.values())
        self._owners = owners
        self.pump.route(owners.__getitem__, max(1, routing.generation), targets)
        with self._routed:
            self.routing = routing
            self._routed.notify_all()

    # ---- memory ------------------------------------------------------------------------------------------------------

    def own(self, array: npt.NDArray[Any]) -> None:
        """`array` was made by `store.empty`: pushes of it are lent, not copied."""
        address = array.__array_interface__["data"][0]
        self._owned.add(address)
        weakref.finalize(array, self._owned.discard, address).atexit = False

    def lends(self, table: DenseTable, tensor: int, array: npt.NDArray[Any]) -> bool:
        """Is `array` one that windlass made, and so may be read until its ticket is done?"""
        if self.heap is not None:
            return table.lies_in_arena(tensor, array)
        return array.__array_interface__["data"][0] in self._owned

    # ---- the scheduler's updates -------------------------------------------------------------------------------------

    def _on_update(self, update: control_pb2.Update) -> None:
        what = update.WhichOneof("what")
        if what == "routing":
            self._take_routing(update.routing)
        elif what == "roster":
            self.rosters[update.roster.store_id] = update.roster
            for peer in update.roster.members:
                self.peers[peer.rank] = peer.host
        elif what == "metrics" and self.on_metrics is not None:
            self.on_metrics(update.metrics)
        elif what == "event" and self.on_event is not None:
            self.on_event(update.event.kind, update.event.text, update.event.unix_s)
        elif what == "ended" and update.ended.session == self.session:
            self._end(update.ended.reason)

    def _on_lost(self, error: WindlassError) -> None:
        if not isinstance(error, UnavailableError):
            self._end(str(error))

    def _end(self, reason: str) -> None:
        if self._closed is not None:  # this worker left, and now hears of it
            return
        self._closed = ClosedError(
            "this worker's session has ended", reason=reason, next_move="Connect again with windlass.connect()."
        )
        self.pump.fail(self._closed)
        with self._routed:
            self._routed.notify_all()

    # ---- waiting -----------------------------------------------------------------------------------------------------

    def _say_who_is_awaited(self, ticket: Ticket, waited_s: float) -> None:
        """After ten seconds one line says for whom; after `wait_s` the wait ends."""
        awaited = self.awaited(ticket)
        if waited_s >= self.wait_s:
            raise UnavailableError(
                f"{ticket.what} waited too long",
                waited_s=round(waited_s),
                clock=ticket.clock,
                awaited=awaited,
                next_move="Look at `windlass status`; raise wait_s in connect() if this is expected.",
            )
        if waited_s < 2 * limits.WAIT_SAID_AFTER_S:
            sys.stderr.write(f"windlass: {ticket.what} has waited {waited_s:.0f} s for {awaited}\n")

    def awaited(self, ticket: Ticket) -> str:
        """Which workers a ticket waits for, in words."""
        try:
            status = self.control.status(timeout_s=2.0)
        except WindlassError as error:
            return f"an unknown worker (the scheduler does not answer: {error.fact})"
        store_id = ticket.store.store_id if ticket.store is not None else 0
        sentences = [
            sentence for store in status.stores if store.store_id == store_id for sentence in store.waiting_for
        ]
        slowest = sorted(
            (clock.clock, member.rank, member.host)
            for member in status.members
            for clock in member.clocks
            if clock.store_id == store_id and clock.clock <= ticket.clock and member.rank != self.joined.rank
        )
        sentences += [f"worker {rank} on {host} at clock {clock}" for clock, rank, host in slowest[:3]]
        return "; ".join(sentences) or "a server"

    def check_open(self) -> None:
        """Raise if this connection cannot be used any more.

        Raises:
            ClosedError: closed, ended by the scheduler, or carried through a fork.
        """
        if os.getpid() != self._pid:
            raise ClosedError(
                "this connection was made in another process",
                made_in=self._pid,
                here=os.getpid(),
                next_move='Start processes with multiprocessing.get_context("spawn") and connect in each.',
            )
        if self._closed is not None:
            raise self._closed

    def close(self) -> None:
        """Leave the cluster in order; join every thread."""
        from windlass_proto.gen import control_pb2 as pb

        if os.getpid() != self._pid:
            return
        ended = self._closed is not None
        self._closed = self._closed or ClosedError("the cluster was closed", next_move="Call windlass.connect() again.")
        self.pump.close()
        self._beater.close()
        if not ended:
            clocks = [pb.StoreClock(store_id=store, clock=clock) for store, clock in self.clocks()]
            request = pb.LeaveRequest(member_id=self.joined.member_id, session=self.session, clocks=clocks)
            try:
                self.control.leave(request, timeout_s=2.0)
            except WindlassError as error:
                sys.stderr.write(f"windlass: leaving was not said: {error}\n")
        self.control.close()
        if self.heap is not None:
            self.heap.close()


def join_request(role: int, job: str, workers: int, rank: int | None, name: str) -> control_pb2.JoinRequest:
    """What this process says when it joins."""
    from windlass_proto.gen import control_pb2 as pb

    request = pb.JoinRequest(
        role=pb.Role.ValueType(role),
        protocol_min=limits.PROTOCOL_MIN,
        protocol_max=limits.PROTOCOL_MAX,
        host=socket.gethostname(),
        pid=os.getpid(),
        name=name,
        job=job,
        workers_declared=workers,
        attempt=secrets.token_bytes(16),
    )
    if rank is not None:
        request.rank = rank
    return request


def _link_kind() -> str:
    kind = os.environ.get("WINDLASS_LINK", "")
    if kind and kind not in _LINKS:
        raise UsageError("a link kind is not known", WINDLASS_LINK=kind, known=", ".join(_LINKS))
    return kind


def _target(server: Any, kind: str) -> Target:
    """Chosen by reachability, not by host name: shared memory where the server's socket can be opened, else TCP."""
    tcp = unix = None
    for address in server.addresses:
        if address.kind == "tcp":
            tcp = address.address
        elif address.kind == "unix" and os.access(address.address, os.W_OK) and Path(address.address).is_socket():
            unix = address.address
    if unix is not None and kind != "tcp":
        return Target("shm" if kind != "unix" and arena.supported() else "unix", unix)
    if tcp is None or kind in ("unix", "shm"):
        raise UnavailableError(
            "a server cannot be reached by the link asked for",
            server=server.index,
            WINDLASS_LINK=kind or "any",
            addresses=", ".join(f"{a.kind}:{a.address}" for a in server.addresses),
            next_move="Unset WINDLASS_LINK, or share the server's socket folder.",
        )
    return Target("tcp", tcp)
