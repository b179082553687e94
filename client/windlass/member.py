"""One process's membership of a cluster: what `connect` makes and `Cluster` and its stores use.

Invariant: updates from the scheduler are taken by the watch thread alone and reach the data plane through the pump's
inbox. The data plane goes on while the scheduler is away.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
import secrets
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from windlass.data_link import Target
from windlass.dense_table import DenseTable
from windlass.finding import Patience
from windlass.live_rules import LiveRules
from windlass.plateau import PlateauWatch
from windlass.pump import Pump
from windlass.ticket import Ticket
from windlass_proto import limits, memory
from windlass_proto.errors import ClosedError, UnavailableError, UsageError, WindlassError
from windlass_proto.links import arena, preamble
from windlass_proto.schedules import Plateau

if TYPE_CHECKING:
    from windlass_proto.checkpoint_format import Position
    from windlass_proto.control_link import Beater, ControlLink
    from windlass_proto.gen import control_pb2

Reply = TypeVar("Reply")

_LINKS = ("tcp", "unix", "shm")
_SERVER_GONE = re.compile(r"server \d+[, ].*(is gone|has not beaten)")


class Member:
    """A joined worker or observer.

    Args:
        control: the link to the scheduler.
        request: what to join as.
        token: the cluster's secret.
        patience: how long to wait, for whom.
    """

    def __init__(
        self, control: ControlLink, request: control_pb2.JoinRequest, token: bytes, *, patience: Patience
    ) -> None:
        from windlass_proto import beats
        from windlass_proto.control_link import Beater
        from windlass_proto.gen import control_pb2 as pb

        self.control = control
        self.patience = patience
        self.observes = request.role == pb.ROLE_OBSERVER
        self.joined = control.join(request)
        self.session = self.joined.session
        self.vshards = self.joined.vshards
        self.clocks: Callable[[], list[tuple[int, int]]] = list
        self.on_metrics: Callable[[Any], None] | None = None
        self.on_event: Callable[[str, str, float], None] | None = None
        self.routing: control_pb2.Routing | None = None
        self.rosters: dict[int, control_pb2.Roster] = {}
        self._learning = threading.Lock()
        self._live: dict[int, LiveRules] = {}
        self._watches: dict[int, PlateauWatch] = {}
        self.heap: arena.ArenaHeap | None = None
        self.all_shared = False
        self.peers: dict[int, str] = {}
        self.positions: dict[str, tuple[Position, int]] = {}  # by data set: where this worker is, epochs begun before
        self.resumed: dict[str, Position] = {}  # by data set: where a checkpoint was
        self._owners: list[int] = []
        self._owned: set[int] = set()
        self._closed: WindlassError | None = None
        self._routed = threading.Condition()
        self._pid = os.getpid()
        key = preamble.link_key(token, self.joined.cluster_id)
        self._link_kind = _link_kind()
        self.pump = Pump(self.session, key, None, rpc_s=patience.rpc_s, said_after_s=patience.said_after_s)
        self.pump.on_idle_wait = self._say_who_is_awaited
        host = control.address.rpartition(":")[0]
        self._beater: Beater = Beater(
            host,
            self.joined.beat_port,
            self.joined.member_id,
            self.joined.beat_s,
            beats.derive_key(token, self.joined.cluster_id),
            oldest_frame_age_ms=lambda: 0,
            clocks=lambda: self.clocks(),  # noqa: PLW0108 - it is replaced when the cluster is made
        )
        watch = pb.WatchRequest(member_id=self.joined.member_id, session=self.session, metrics=True)
        _MEMBERS.add(self)
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

    @property
    def generation(self) -> int:
        """The placement's number, -1 before there is one."""
        return self.routing.generation if self.routing is not None else -1

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

    def live(self, store_id: int) -> LiveRules:
        """What was changed live in a store of this job."""
        return self._live.setdefault(store_id, LiveRules())

    def learn_roster(self, roster: control_pb2.Roster) -> None:
        """The scheduler says a roster, maybe an older one than is known."""
        with self._learning:
            known = self.rosters.get(roster.store_id)
            if known is None or known.version <= roster.version:
                self.rosters[roster.store_id] = roster
        for peer in roster.members:
            self.peers[peer.rank] = peer.host

    def watch(self, store_id: int, plateau: Plateau | None) -> PlateauWatch | None:
        """In worker 0: the watch over a store's plateau, a new one where another metric or manner is asked for.

        What was due until now has been seen to.
        """
        if plateau is None or self.joined.rank != 0 or self.observes:
            self._watches.pop(store_id, None)
            return None
        known = self._watches.get(store_id)
        if known is None or dataclasses.replace(known.plateau, lr=plateau.lr) != plateau:
            known = self._watches[store_id] = PlateauWatch(plateau)
        known.lowered(plateau)
        return known

    def _take_metrics(self, metrics: control_pb2.Metrics) -> None:
        """Scalars merged over the workers: for whoever logs them, and for the watches over plateaus."""
        if self.on_metrics is not None:
            self.on_metrics(metrics)
        for watch in list(self._watches.values()):
            for record in metrics.records:
                watch.observe({scalar.name: scalar.value for scalar in record.scalars})

    # ---- memory ------------------------------------------------------------------------------------------------------

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """Memory that pushes lend: shared with the servers of this host, if there are such."""
        count = math.prod(shape)
        if self.heap is None:
            array = memory.aligned_zeros(count, dtype)
            self.own(array)
        else:
            piece = self.heap.take(count * dtype.itemsize)
            self.heap.own_span(piece, 0, count * dtype.itemsize)
            array = piece.array.view(dtype)
        return array.reshape(shape)

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
            self.learn_roster(update.roster)
        elif what == "rule":
            self.live(update.rule.store_id).learn(update.rule.record)
        elif what == "metrics":
            self._take_metrics(update.metrics)
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
        status = self._status()
        awaited = self._awaited(status, ticket)
        gone = [sentence for sentence in status.sentences if _SERVER_GONE.match(sentence)] if status is not None else []
        if gone and waited_s >= self.patience.rpc_s:
            raise UnavailableError(
                "a server does not answer",
                servers="; ".join(gone),
                waited_s=round(waited_s, 1),
                rpc_s=self.patience.rpc_s,
                next_move="Look at `windlass status` and the server's log.",
            )
        if waited_s >= self.patience.wait_s:
            raise UnavailableError(
                f"{ticket.what} waited too long",
                waited_s=round(waited_s),
                clock=ticket.clock,
                awaited=awaited,
                next_move="Look at `windlass status`; raise wait_s in connect() if this is expected.",
            )
        if waited_s < 2 * self.patience.said_after_s:
            sys.stderr.write(f"windlass: {ticket.what} has waited {waited_s:.0f} s for {awaited}\n")

    def ask_peers(self, call: Callable[..., Reply], request: Any, what: str, *, wait_s: float | None = None) -> Reply:
        """Make a call whose answer other workers may delay: once, after ten seconds, one line says for whom it waits.

        The call is repeated at that rhythm (each finds its earlier answer), for `wait_s` in all.

        Raises:
            UnavailableError: the peers did not come, or the scheduler was away for `rpc_s`.
        """
        limit_s = self.patience.wait_s if wait_s is None else wait_s
        began = heard = time.monotonic()
        said = False
        while True:
            self.check_open()
            left_s = limit_s - (time.monotonic() - began)
            try:
                return call(request, timeout_s=max(0.1, min(self.patience.said_after_s, left_s)))
            except UnavailableError as error:
                now = time.monotonic()
                reason = error.values.get("reason", "")
                if "address" not in error.values:
                    heard = now  # the scheduler itself said that its time was up
                elif now - heard >= self.patience.rpc_s:
                    raise
                if now - began >= limit_s:
                    raise UnavailableError(
                        f"{what} waited too long",
                        waited_s=round(now - began),
                        awaited=reason,
                        next_move="Look at `windlass status`; raise wait_s in connect() if this is expected.",
                    ) from error
                if "waited_s" not in error.values and "address" not in error.values:
                    raise
            if not said:
                said = True
                sys.stderr.write(f"windlass: {what} has waited {now - began:.0f} s: {reason}\n")

    def _status(self) -> control_pb2.StatusReply | None:
        try:
            return self.control.status(timeout_s=2.0)
        except WindlassError:
            return None

    def _awaited(self, status: control_pb2.StatusReply | None, ticket: Ticket) -> str:
        """Which workers a ticket waits for, in words."""
        if status is None:
            return "an unknown worker (the scheduler does not answer)"
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
        if self.is_forked():
            raise _made_elsewhere(self._pid)
        if self._closed is not None:
            raise self._closed

    def is_forked(self) -> bool:
        """Is this process a fork of the one that connected?"""
        return os.getpid() != self._pid

    def forked(self) -> None:
        """This process is a fork: the connection stays with the parent, whose threads run there alone."""
        self._closed = _made_elsewhere(self._pid)
        self._routed = threading.Condition()
        self.pump.orphan(self._closed)

    def close(self, *, flush_s: float = 5.0) -> None:
        """Leave the cluster in order, with `flush_s` for what is still to be answered; join every thread."""
        from windlass_proto.gen import control_pb2 as pb

        if self.is_forked():
            return
        ended = self._closed is not None
        self._closed = self._closed or ClosedError("the cluster was closed", next_move="Call windlass.connect() again.")
        self.pump.close(flush_s)
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


def _made_elsewhere(pid: int) -> ClosedError:
    return ClosedError(
        "this connection was made in another process",
        made_in=pid,
        here=os.getpid(),
        next_move='Start processes with multiprocessing.get_context("spawn") and connect in each.',
    )


def _after_fork() -> None:
    for member in list(_MEMBERS):
        member.forked()


_MEMBERS: weakref.WeakSet[Member] = weakref.WeakSet()
os.register_at_fork(after_in_child=_after_fork)


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
