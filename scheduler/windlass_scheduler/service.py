"""gRPC in, gRPC out: one method a call of control.proto, none of which decides or blocks.

Every call is authenticated before its handler runs, and its errors cross to the caller (`calls`).
"""

# ruff: noqa: N802 - methods have the names that control.proto gives them

from __future__ import annotations

import asyncio
import functools
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Final, cast

import grpc

from windlass_proto import own_readers, own_rules, rule_records
from windlass_proto.consistency import Consistency
from windlass_proto.errors import InvariantError, UnavailableError, UsageError, WindlassError
from windlass_proto.gen import control_pb2 as pb
from windlass_proto.gen import control_pb2_grpc
from windlass_proto.rule_records import RuleChange, RuleRecord
from windlass_scheduler import (
    agreement_core,
    declaration_core,
    limits,
    live_core,
    membership_core,
    metrics_core,
    rendezvous_core,
    roster_core,
    shards_core,
    wire,
)
from windlass_scheduler import status as status_page
from windlass_scheduler.calls import abort, call
from windlass_scheduler.cluster import Cluster
from windlass_scheduler.declared import Store
from windlass_scheduler.effects import Answer, Effect
from windlass_scheduler.members import Member, Role
from windlass_scheduler.roster import ModeWish
from windlass_scheduler.store_figures import Reported

_log = logging.getLogger("windlass.scheduler")

_WAIT_S_MAX: Final = 86_400.0
# The answer in words must reach the caller before its own deadline does.
_WORDS_FIRST_S: Final = 0.2


class ControlService(control_pb2_grpc.ControlServicer):
    """The service `windlass.v1.Control` over one cluster."""

    def __init__(self, cluster: Cluster, beat_port: Callable[[], int]) -> None:
        self._cluster = cluster
        self._beat_port = beat_port

    async def _ask(
        self,
        context: grpc.aio.ServicerContext,
        step: Callable[[int], list[Effect]],
        waiting_for: Callable[[], list[str]] = list,
        wait_s: float = 0.0,
    ) -> object:
        remaining_s = context.time_remaining()
        bound_s = _WAIT_S_MAX if remaining_s is None else max(remaining_s - _WORDS_FIRST_S, remaining_s / 2)
        if wait_s > 0:
            bound_s = min(bound_s, wait_s)
        return await self._cluster.ask(step, lambda: "; ".join(waiting_for()[:3]), bound_s)

    def _worker(self, session: bytes) -> Member:
        member = self._cluster.membership.member(session)
        if member.role is not Role.WORKER:
            raise UsageError(
                "this call is for workers",
                role=member.role.name.lower(),
                next_move="An observer reads; connect without observe=True to take part.",
            )
        return member

    def _worker_of(self, session: bytes, store_id: int) -> Member:
        member, store = self._worker(session), self._cluster.declarations.store(store_id)
        if store.job != member.job:
            raise UsageError("a store belongs to another job", job=member.job, store_job=store.job, store=store.name)
        return member

    # Members

    @call
    async def Join(self, request: pb.JoinRequest, context: grpc.aio.ServicerContext) -> pb.JoinReply:
        cluster = self._cluster
        live = {member.member_id for member in cluster.membership.members()}
        event = membership_core.Join(
            now_s=cluster.now_s(),
            waiter=0,
            session=os.urandom(16),
            role=request.role,
            protocol_min=request.protocol_min,
            protocol_max=request.protocol_max,
            cluster_id=request.cluster_id,
            host=request.host,
            pid=request.pid,
            name=request.name,
            job=request.job,
            workers_declared=request.workers_declared,
            rank=request.rank if request.HasField("rank") else None,
            old_session=request.old_session,
            addresses=wire.addresses_untrusted(request.addresses),
            attempt=request.attempt[:16],
            state_intact=request.state_intact,
            rules=own_rules.installed_untrusted(request.rules),
            readers=own_readers.installed_untrusted(request.readers),
            ranks_kept=frozenset(o.index for o in cluster.routing.owners if o.member_id not in live),
        )
        joined = await self._ask(context, lambda w: cluster.membership.step(replace(event, waiter=w)))
        member = cast("Member", joined)
        return pb.JoinReply(
            member_id=member.member_id,
            session=member.session,
            rank=member.rank,
            cluster_id=cluster.cluster_id,
            protocol=member.protocol,
            workers_declared=cluster.membership.job(member.job).workers_awaited,
            servers_declared=cluster.routing.servers_declared,
            vshards=cluster.routing.vshards,
            beat_s=cluster.config.timing.beat_s(member.role),
            lease_s=cluster.config.timing.lease_s(member.role),
            beat_port=self._beat_port(),
        )

    @call
    async def Leave(self, request: pb.LeaveRequest, context: grpc.aio.ServicerContext) -> pb.Ack:
        cluster = self._cluster
        member = cluster.membership.member(request.session)
        cluster.clocks_seen(member.member_id, [(c.store_id, c.clock) for c in request.clocks])
        await self._ask(context, lambda w: cluster.membership.step(membership_core.Leave(w, request.session)))
        return pb.Ack()

    async def Watch(self, request: pb.WatchRequest, context: grpc.aio.ServicerContext) -> AsyncIterator[pb.Update]:
        cluster = self._cluster
        try:
            member = cluster.membership.member(request.session)
        except WindlassError as error:
            await abort(context, error)
        watcher = cluster.watchers.open(member, request.metrics)
        opened = membership_core.WatchOpened(cluster.now_s(), member.member_id, watcher.stream)
        cluster.feed(cluster.membership.step(opened))
        try:
            snapshot = cluster.snapshot(member)
            await cluster.settled()
            for update in snapshot:
                yield update
            while True:
                update_or_end = await watcher.updates.get()
                if update_or_end is None:
                    return
                yield update_or_end
        except asyncio.CancelledError:
            if watcher.cut:
                _log.warning("watcher_cut member=%d updates=%d", member.member_id, limits.WATCHER_UPDATES_MAX)
            raise
        finally:
            cluster.watchers.close(watcher)
            closed = membership_core.WatchClosed(cluster.now_s(), member.member_id, watcher.stream)
            cluster.feed(cluster.membership.step(closed))

    # Stores

    @call
    async def OpenStore(self, request: pb.OpenStoreRequest, context: grpc.aio.ServicerContext) -> pb.OpenStoreReply:
        cluster = self._cluster
        member = cluster.membership.member(request.session)
        if request.job not in ("", member.job):
            raise UsageError("a store of another job was asked for", job=member.job, asked=request.job)
        if member.role is Role.OBSERVER:
            return self._open_observed(member.job, request.store)
        self._worker(request.session)
        event = functools.partial(
            declaration_core.OpenStore,
            job=member.job,
            name=request.store,
            consistency=request.consistency,
            rank=member.rank,
        )
        opened = await self._ask(context, lambda w: self._opened(event(waiter=w)))
        store = cast("Store", opened)
        return pb.OpenStoreReply(
            store_id=store.store_id, consistency=store.consistency, roster=self._roster(store.store_id)
        )

    def _roster(self, store_id: int) -> pb.Roster:
        """Who counts in a store, and in which mode, as workers see it."""
        declared = self._cluster.declarations.store(store_id).consistency
        return wire.roster(self._cluster.rosters.roster(store_id), declared)

    def _opened(self, event: declaration_core.OpenStore) -> list[Effect]:
        effects = self._cluster.declarations.step(event)
        for store in self._cluster.declarations.stores():
            if (store.job, store.name) == (event.job, event.name):
                opened = roster_core.Opened(store.store_id, store.job, store.name)
                return [*self._cluster.rosters.step(opened), *effects]
        raise InvariantError("a store was opened and is not there", store=event.name)

    def _open_observed(self, job: str, name: str) -> pb.OpenStoreReply:
        for store in self._cluster.declarations.stores():
            if (store.job, store.name) == (job, name):
                return pb.OpenStoreReply(
                    store_id=store.store_id, consistency=store.consistency, roster=self._roster(store.store_id)
                )
        raise UnavailableError(
            "no worker has opened this store yet",
            job=job,
            store=name,
            next_move="Observe once the job has begun.",
        )

    @call
    async def Declare(self, request: pb.DeclareRequest, context: grpc.aio.ServicerContext) -> pb.DeclareReply:
        cluster = self._cluster
        if cluster.membership.member(request.session).role is Role.OBSERVER:
            return self._declared_observed(request)
        member = self._worker_of(request.session, request.store_id)
        wire.check_own_rule(request, cluster.membership.servers())
        event = functools.partial(
            declaration_core.Declare,
            session=request.session,
            rank=member.rank,
            job=member.job,
            store_id=request.store_id,
            step=request.step,
            tensors=wire.tensors_untrusted(request.tensors),
            rule=request.rule,
            rule_text=wire.rule_text_untrusted(request.rule),
            reduce=request.reduce,
            block_elements_max=request.block_elements_max,
            rank_zero_awaited=cluster.membership.rank_zero_awaited(member.job),
            transfer=request.transfer,
            lazy=request.lazy,
            layout=request.layout or "blocks",
            runs=cluster.routing.runs(),
            vectors=wire.vectors_untrusted(request, cluster.membership.job(member.job)),
            rows_bytes=cluster.held_bytes(member.job, rows=True),
            quota_bytes=cluster.config.job_quotas.of(member.job),
        )
        declared = await self._ask(context, lambda w: cluster.declarations.step(event(waiter=w)))
        reply = cast("declaration_core.Declared", declared)
        return pb.DeclareReply(
            declaration_id=reply.declaration_id,
            granted=reply.granted,
            sealed=reply.sealed,
            groups=[self._cluster.group(group) for group in reply.groups],
            tables=reply.tables,
            record=cluster.live.newest_bytes(request.store_id),
        )

    def _declared_observed(self, request: pb.DeclareRequest) -> pb.DeclareReply:
        """An observer declares nothing: it gets the groups of the names it gives (all, if it gives none)."""
        declarations = self._cluster.declarations
        store, names = declarations.store(request.store_id), {tensor.name for tensor in request.tensors}
        unknown = sorted(names - store.owner_of.keys())
        if unknown:
            raise UnavailableError("no worker has declared these tensors yet", tensors=", ".join(unknown[:5]))
        ids = {store.owner_of[name] for name in names or store.owner_of}
        found = [
            declaration
            for declaration in declarations.declarations(store.store_id)
            if declaration.declaration_id in ids
        ]
        return pb.DeclareReply(
            declaration_id=max(ids, default=0),
            granted=False,
            sealed=all(declaration.sealed for declaration in found),
            groups=[self._cluster.group(group) for declaration in found for group in declaration.groups],
            record=self._cluster.live.newest_bytes(store.store_id),
        )

    @call
    async def Seal(self, request: pb.SealRequest, context: grpc.aio.ServicerContext) -> pb.Ack:
        self._worker_of(request.session, request.store_id)
        event = functools.partial(
            declaration_core.Seal,
            session=request.session,
            declaration_id=request.declaration_id,
            refused=request.refused[: limits.TEXT_BYTES_MAX],
        )
        await self._ask(context, lambda w: self._cluster.declarations.step(event(waiter=w)))
        return pb.Ack()

    @call
    async def AwaitSeal(self, request: pb.AwaitSealRequest, context: grpc.aio.ServicerContext) -> pb.AwaitSealReply:
        member = self._worker_of(request.session, request.store_id)
        event = functools.partial(
            declaration_core.AwaitSeal,
            session=request.session,
            rank=member.rank,
            declaration_id=request.declaration_id,
            rank_zero_awaited=self._cluster.membership.rank_zero_awaited(member.job),
        )
        awaited = await self._ask(
            context,
            lambda w: self._cluster.declarations.step(event(waiter=w)),
            lambda: status_page.store_waits(self._cluster, request.store_id),
        )
        reply = cast("declaration_core.SealAwaited", awaited)
        return pb.AwaitSealReply(sealed=reply.sealed, granted=reply.granted)

    @call
    async def EnterRoster(
        self, request: pb.EnterRosterRequest, context: grpc.aio.ServicerContext
    ) -> pb.EnterRosterReply:
        cluster = self._cluster
        member = self._worker_of(request.session, request.store_id)
        event = functools.partial(
            roster_core.Enter,
            now_s=cluster.now_s(),
            store_id=request.store_id,
            session=request.session,
            rank=member.rank,
            host=member.host,
            declared=cluster.membership.job(member.job).workers_awaited,
        )
        entered = await self._ask(
            context,
            lambda w: cluster.rosters.step(event(waiter=w)),
            lambda: status_page.store_waits(cluster, request.store_id),
        )
        reply = cast("roster_core.Entered", entered)
        return pb.EnterRosterReply(
            join_clock=reply.join_clock,
            roster=self._roster(request.store_id),
            restored=cluster.agreements.restored(request.store_id),
        )

    @call
    async def Vote(self, request: pb.VoteRequest, context: grpc.aio.ServicerContext) -> pb.Ack:
        cluster = self._cluster
        member = cluster.membership.member(request.session)
        if member.role is not Role.SERVER:
            raise UsageError("only servers vote", role=member.role.name.lower())
        voted = roster_core.Voted(
            cluster.now_s(),
            member.member_id,
            request.store_id,
            request.proposal,
            request.accepted,
            request.clock_highest,
        )
        cluster.feed(cluster.rosters.step(voted))
        return pb.Ack()

    @call
    async def Agree(self, request: pb.AgreeRequest, context: grpc.aio.ServicerContext) -> pb.AgreeReply:
        member = self._worker_of(request.session, request.store_id)
        event = functools.partial(
            agreement_core.Agree,
            session=request.session,
            rank=member.rank,
            store_id=request.store_id,
            step=request.step,
            action=request.action,
            key=request.key,
            digest=request.digest,
            text=request.text,
            names=tuple(request.names),
        )
        sets = request.action == "set"
        change: RuleChange | RuleRecord | None = None
        if sets and request.record:
            change = rule_records.from_bytes_untrusted(request.record)
        elif sets and request.change:
            change = rule_records.change_from_bytes_untrusted(request.change)
        if sets and request.consistency:
            Consistency.parse(request.consistency)
        agreed = await self._ask(
            context,
            lambda w: self._agreed(event(waiter=w), change, request.consistency if sets else ""),
            lambda: status_page.store_waits(self._cluster, request.store_id),
        )
        reply = cast("agreement_core.Agreed", agreed)
        record = self._cluster.live.newest_bytes(request.store_id) if sets else b""
        roster = self._roster(request.store_id) if sets else None
        return pb.AgreeReply(
            granted=reply.granted, action_id=reply.action_id, result=reply.result, record=record, roster=roster
        )

    def _agreed(
        self, event: agreement_core.Agree, change: RuleChange | RuleRecord | None, consistency: str
    ) -> list[Effect]:
        """The caller carries its action out, except for a change of rules: that is done when it is agreed on."""
        if change is None or consistency not in ("", self._roster(event.store_id).consistency):
            return self._cluster.agreements.step(event)
        agreements, live = self._cluster.agreements, self._cluster.live
        store = self._cluster.declarations.store(event.store_id)
        changing = live_core.Change(store.store_id, store.name, store.job, event.rank, event.step, change)
        since = live.following(changing).since  # refused, if at all, before anything has changed
        effects = agreements.step(event)
        replies = [cast("agreement_core.Agreed", effect.reply) for effect in effects if isinstance(effect, Answer)]
        if not any(reply.granted for reply in replies):
            return effects
        (granted,) = replies
        effects += agreements.step(agreement_core.Done(event.waiter, event.session, granted.action_id, str(since)))
        stored = [effect for effect in effects if not isinstance(effect, Answer)]
        return [*live.step(changing), *stored, Answer(event.waiter, replace(granted, granted=False, result=str(since)))]

    @call
    async def AgreeDone(self, request: pb.AgreeDoneRequest, context: grpc.aio.ServicerContext) -> pb.Ack:
        self._worker_of(request.session, request.store_id)
        event = functools.partial(
            agreement_core.Done, session=request.session, action_id=request.action_id, result=request.result
        )
        await self._ask(context, lambda w: self._action_done(event(waiter=w)))
        return pb.Ack()

    def _action_done(self, event: agreement_core.Done) -> list[Effect]:
        asked = self._cluster.agreements.granted(event.session, event.action_id)
        effects = self._cluster.agreements.step(event)
        if asked is not None and asked.action == "delete":
            forget = declaration_core.Forget(asked.store_id, frozenset(asked.names))
            return [*self._cluster.declarations.step(forget), *effects]
        return effects

    @call
    async def ChangeMode(self, request: pb.ChangeModeRequest, context: grpc.aio.ServicerContext) -> pb.ChangeModeReply:
        cluster = self._cluster
        member = self._worker_of(request.session, request.store_id)
        mode = str(Consistency.parse(request.consistency))
        if request.change:
            rule_records.change_from_bytes_untrusted(request.change)
        wish = functools.partial(
            ModeWish,
            session=request.session,
            rank=member.rank,
            action_id=request.action_id,
            consistency=mode,
            change=request.change,
        )
        changed = await self._ask(
            context,
            lambda w: cluster.rosters.step(roster_core.ChangeMode(cluster.now_s(), request.store_id, wish(waiter=w))),
            lambda: status_page.store_waits(cluster, request.store_id),
        )
        return pb.ChangeModeReply(
            clock=cast("roster_core.ModeChanged", changed).clock,
            roster=self._roster(request.store_id),
            record=cluster.live.newest_bytes(request.store_id),
        )

    # Jobs

    @call
    async def Barrier(self, request: pb.BarrierRequest, context: grpc.aio.ServicerContext) -> pb.BarrierReply:
        membership = self._cluster.membership
        member = self._worker(request.session)
        event = functools.partial(
            rendezvous_core.Barrier,
            session=request.session,
            job=member.job,
            name=request.name,
            call=request.call,
            live=frozenset(worker.session for worker in membership.workers(member.job)),
            complete=membership.job(member.job).complete,
        )
        generation = await self._ask(
            context,
            lambda w: self._cluster.rendezvous.step(event(waiter=w)),
            lambda: status_page.job_waits(self._cluster, member.job),
            request.wait_s,
        )
        return pb.BarrierReply(generation=cast("int", generation))

    @call
    async def Broadcast(self, request: pb.BroadcastRequest, context: grpc.aio.ServicerContext) -> pb.BroadcastReply:
        member = self._worker(request.session)
        event = functools.partial(
            rendezvous_core.Broadcast,
            session=request.session,
            rank=member.rank,
            job=member.job,
            call=request.call,
            root=request.root,
            is_root=request.is_root,
            value=request.value,
        )
        value = await self._ask(
            context,
            lambda w: self._cluster.rendezvous.step(event(waiter=w)),
            lambda: [f"waiting for worker rank {request.root} (job {member.job}) to give broadcast {request.call}"],
            request.wait_s,
        )
        return pb.BroadcastReply(value=cast("bytes", value))

    @call
    async def NextShard(self, request: pb.NextShardRequest, context: grpc.aio.ServicerContext) -> pb.NextShardReply:
        membership = self._cluster.membership
        member = self._worker(request.session)
        start = wire.position(request.start) if request.HasField("start") else None
        ranks = {worker.rank for worker in membership.workers(member.job)} | {*membership.ranks_missing(member.job)}
        event = functools.partial(
            shards_core.NextShard,
            session=request.session,
            rank=member.rank,
            job=member.job,
            loader=request.loader,
            plan=shards_core.Plan(
                request.length, request.size, request.epochs, request.drop_last, request.balanced, start
            ),
            shards_done=tuple(request.shards_done),
            call=request.call,
            ranks=frozenset(ranks),
        )
        shard = await self._ask(context, lambda w: self._cluster.shards.step(event(waiter=w)))
        if isinstance(shard, shards_core.Exhausted):
            return pb.NextShardReply(exhausted=True)
        handed = cast("shards_core.Shard", shard)
        return pb.NextShardReply(
            shard_id=handed.shard_id,
            epoch=handed.epoch,
            begins=[begin for begin, _ in handed.batches],
            ends=[end for _, end in handed.batches],
            batches_per_worker=handed.batches_per_worker,
            positions=[wire.data_position(position) for position in handed.positions],
        )

    @call
    async def FindReader(self, request: pb.FindReaderRequest, context: grpc.aio.ServicerContext) -> pb.FindReaderReply:
        self._cluster.membership.member(request.session)
        servers = {f"server {m.rank} ({m.host})": m.readers for m in self._cluster.membership.servers()}
        own_readers.check(request.name, request.version, b"", 1)
        return pb.FindReaderReply(version=own_readers.version_on_all(request.name, request.version, servers))

    @call
    async def Log(self, request: pb.LogRequest, context: grpc.aio.ServicerContext) -> pb.Ack:
        cluster = self._cluster
        member = self._worker(request.session)
        if len(request.records) > limits.METRIC_RECORDS_PER_CALL_MAX:
            raise UsageError(
                "too many records were logged in one call",
                records=len(request.records),
                records_max=limits.METRIC_RECORDS_PER_CALL_MAX,
            )
        live = frozenset(worker.session for worker in cluster.membership.workers(member.job))
        records = wire.logged_steps_untrusted(request.records)
        logged = metrics_core.Logged(request.session, member.job, live, records, cluster.now_s())
        cluster.feed(cluster.metrics.step(logged))
        return pb.Ack()

    @call
    async def Report(self, request: pb.ReportRequest, context: grpc.aio.ServicerContext) -> pb.Ack:
        member = self._cluster.membership.member(request.session)
        if len(request.figures) > limits.FIGURES_MAX:
            raise UsageError("a member reports too many figures", figures_max=limits.FIGURES_MAX)
        said = self._cluster.figures[member.member_id]
        said.figures = dict(request.figures)
        said.device = request.device[: limits.DEVICE_CHARACTERS_MAX]
        said.reported = Reported(wire.store_figures_untrusted(request.stores), self._cluster.now_s())
        return pb.Ack()

    @call
    async def Status(self, request: pb.StatusRequest, context: grpc.aio.ServicerContext) -> pb.StatusReply:
        return status_page.status(self._cluster)
