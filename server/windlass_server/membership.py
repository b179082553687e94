"""A server's place in the cluster: join, beats, the watch stream, votes, reports.

Invariant: what the scheduler says reaches the node in the order it was said, from the watch thread alone. While the
scheduler is away the server goes on serving.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable

from windlass_proto import beats, limits, own_readers, own_rules, step_modes
from windlass_proto.control_link import Beater, ControlLink
from windlass_proto.errors import UnavailableError, WindlassError
from windlass_proto.gen import control_pb2 as pb
from windlass_proto.own_readers import InstalledReader
from windlass_proto.own_rules import InstalledRule
from windlass_server.ingress import Ingress
from windlass_server.node import ServerNode
from windlass_server.peers import PeerAddress
from windlass_server.share_events import LEFT, Member, Roster
from windlass_server.store_figures import StoreFigures

_LOG = logging.getLogger("windlass.server")
_REPORT_S = 1.0


def join(
    control: ControlLink,
    name: str,
    addresses: list[tuple[str, str]],
    rules: tuple[InstalledRule, ...] = (),
    readers: tuple[InstalledReader, ...] = (),
) -> pb.JoinReply:
    """Become a member of the cluster. A name such as "server-3" asks for index 3."""
    request = pb.JoinRequest(
        role=pb.ROLE_SERVER,
        protocol_min=limits.PROTOCOL_MIN,
        protocol_max=limits.PROTOCOL_MAX,
        host=socket.gethostname(),
        pid=os.getpid(),
        name=name,
        addresses=[pb.Address(kind=kind, address=address) for kind, address in addresses],
        attempt=secrets.token_bytes(16),
        rules=[own_rules.installed_message(rule) for rule in rules],
        readers=[own_readers.installed_message(reader) for reader in readers],
    )
    number = name.rpartition("-")[2]
    if number.isdecimal():
        request.rank = int(number)
    return control.join(request)


class Membership:
    """The threads that keep a joined server in the cluster. `close` leaves it.

    Args:
        on_ended: called once if the scheduler ends this server's session.
    """

    def __init__(
        self,
        control: ControlLink,
        joined: pb.JoinReply,
        token: bytes,
        node: ServerNode,
        ingress: Ingress,
        on_ended: Callable[[str], None],
    ) -> None:
        self.control = control
        self.joined = joined
        self.node = node
        self.ingress = ingress
        self.on_ended = on_ended
        self._closed = threading.Event()
        host = control.address.rpartition(":")[0]
        self._beater = Beater(
            host,
            joined.beat_port,
            joined.member_id,
            joined.beat_s,
            beats.derive_key(token, joined.cluster_id),
            oldest_frame_age_ms=ingress.oldest_frame_age_ms,
            clocks=tuple,
        )
        control.watch(
            pb.WatchRequest(member_id=joined.member_id, session=joined.session), self._on_update, self._on_lost
        )
        self._reporter = threading.Thread(target=self._report, name="reports")
        self._reporter.start()

    def close(self) -> None:
        """Leave the cluster, end every thread."""
        self._closed.set()
        self._reporter.join()
        self._beater.close()
        try:
            self.control.leave(
                pb.LeaveRequest(member_id=self.joined.member_id, session=self.joined.session), timeout_s=1.0
            )
        except WindlassError as error:
            _LOG.info("leave_not_said reason=%r", str(error))
        self.control.close()

    def _on_update(self, update: pb.Update) -> None:
        what = update.WhichOneof("what")
        if what == "routing":
            self._take_routing(update.routing)
        elif what == "roster":
            self.node.set_roster(update.roster.store_id, _roster(update.roster), self.ingress.deliver)
        elif what == "prepare":
            self._vote(update.prepare)
        elif what == "freed":
            self.node.free_stores(frozenset(update.freed.store_ids))
        elif what == "ended":
            if update.ended.session == self.joined.session:
                if not self._closed.is_set():  # else it is our own leaving
                    self.on_ended(update.ended.reason)
            else:
                self.ingress.end_session(update.ended.session, update.ended.reason)

    def _take_routing(self, routing: pb.Routing) -> None:
        peers = self.node.reductions.peers
        if peers is not None:
            peers.know(tuple(_peer(server) for server in routing.servers if server.runs))
        for server in routing.servers:
            if server.member_id == self.joined.member_id and server.runs:
                vshards = range(server.runs[0].begin, server.runs[-1].end)
                self.node.own(vshards, routing.generation)
                _LOG.info("key_range_taken vshards=%d..%d generation=%d", *_ends(vshards), routing.generation)

    def _vote(self, prepare: pb.Prepare) -> None:
        accepted, highest = self.node.prepare(prepare.store_id, prepare.clock, prepare.proposal, mode=prepare.mode)
        vote = pb.VoteRequest(
            member_id=self.joined.member_id,
            session=self.joined.session,
            store_id=prepare.store_id,
            proposal=prepare.proposal,
            accepted=accepted,
            clock_highest=highest,
        )
        try:
            self.control.vote(vote, timeout_s=2.0)
        except UnavailableError as error:
            _LOG.warning("vote_not_said proposal=%d reason=%r", prepare.proposal, str(error))

    def _on_lost(self, error: WindlassError) -> None:
        if isinstance(error, UnavailableError):
            _LOG.info("scheduler_lost reason=%r", str(error))
        elif not self._closed.is_set():
            self.on_ended(str(error))

    def _report(self) -> None:
        while not self._closed.wait(_REPORT_S):
            figures = self.node.figures()
            figures["connections"] = float(self.ingress.connections())
            try:
                report = pb.ReportRequest(
                    member_id=self.joined.member_id,
                    session=self.joined.session,
                    figures=figures,
                    device=self.node.device_in_words,
                    stores=map(_store_figures, self.node.store_figures()),
                )
                self.control.report(report, timeout_s=_REPORT_S)
            except WindlassError as error:
                _LOG.debug("report_not_said reason=%r", str(error))


def _peer(server: pb.ServerRoute) -> PeerAddress:
    runs = range(server.runs[0].begin, server.runs[-1].end)
    return PeerAddress(f"server-{server.index}", runs, tuple((a.kind, a.address) for a in server.addresses))


def _ends(vshards: range) -> tuple[int, int]:
    return vshards.start, vshards.stop


def _roster(roster: pb.Roster) -> Roster:
    members = tuple(Member(m.session, m.rank, m.join_clock) for m in roster.members)
    return Roster(roster.version, roster.started, members, roster.proposal_settled, step_modes.changes_of(roster.modes))


def _store_figures(found: StoreFigures) -> pb.StoreFigures:
    return pb.StoreFigures(
        store_id=found.store_id,
        bytes=found.nbytes,
        rows_bytes=found.rows_nbytes,
        staleness=[pb.Staleness(lag=lag, pushes=pushes) for lag, pushes in sorted(found.staleness.items())],
        workers=[
            pb.WorkerSteps(
                session=session,
                clock=steps.closed if steps.closed < LEFT else 0,
                last=steps.last,
                waited_s=steps.waited_s,
                awaited_s=found.awaited_s.get(session, 0.0),
                late_steps=found.late_steps.get(session, 0),
            )
            for session, steps in found.workers.items()
        ],
    )
