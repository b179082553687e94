"""The cluster's state in one process: feeds the cores, makes their changes durable, then lets them be seen.

An event goes to one core; what it says may concern others (an ended session concerns them all), which is
settled at once, in one batch. The batch is written; only then are its answers given and its updates pushed,
in the order of the batches. So nobody has seen what a restart would not know, and a watcher sees changes in
the order they were decided.

Owner: the event loop. No decision of the protocol is taken here.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from windlass_proto import rule_records
from windlass_proto.beats import Beat
from windlass_proto.errors import UnavailableError, UsageError, WindlassError
from windlass_proto.gen import control_pb2 as pb
from windlass_scheduler import (
    agreement_core,
    declaration_core,
    jobs_core,
    limits,
    live_core,
    membership_core,
    metrics_core,
    rendezvous_core,
    roster_core,
    routing_core,
    shards_core,
    wire,
)
from windlass_scheduler.config import SchedulerConfig
from windlass_scheduler.counters import PREFIX as COUNTER_PREFIX
from windlass_scheduler.counters import Counters
from windlass_scheduler.declared import Group
from windlass_scheduler.effects import Answer, Effect, Persist, Record, Refuse, Say
from windlass_scheduler.members import Member, Role
from windlass_scheduler.state import Change, StateStore
from windlass_scheduler.store_figures import Reported
from windlass_scheduler.watchers import Audience, Watchers

_log = logging.getLogger("windlass.scheduler")


@dataclass(slots=True)
class _Batch:
    """What one event decided: to store, then to answer and push."""

    changes: list[Change] = field(default_factory=list)
    answers: list[Answer | Refuse] = field(default_factory=list)
    pushes: list[tuple[pb.Update, Audience]] = field(default_factory=list)
    ended: list[bytes] = field(default_factory=list)


@dataclass(slots=True)
class MemberFigures:
    """What a member says of itself, for status; never stored."""

    clocks: dict[int, int] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    reported: Reported = field(default_factory=Reported)
    device: str = ""


class Cluster:
    """Open the cluster stored in `state`, or make one with `new_cluster_id`.

    Raises:
        UsageError: if the stored cluster was made with other vshards or servers.
    """

    def __init__(self, config: SchedulerConfig, state: StateStore, new_cluster_id: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._state = state
        self.config = config
        self.watchers = Watchers()
        self.events: deque[pb.Event] = deque(maxlen=limits.EVENTS_MAX)
        self.figures: dict[int, MemberFigures] = {}
        self.started_s = self._loop.time()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self.cluster_id = _cluster_record(config, state, new_cluster_id)
        counters = self._counters = Counters()
        self.membership = membership_core.Membership(self.cluster_id, config.timing, counters)
        self.routing = routing_core.Routing(config.servers_declared, config.vshards)
        self.rosters = roster_core.Rosters(counters, config.vote_s)
        self.declarations = declaration_core.Declarations(counters)
        self.agreements = agreement_core.Agreements(counters)
        self.live = live_core.LiveRules()
        self.rendezvous = rendezvous_core.Rendezvous()
        self.shards = shards_core.Shards(counters)
        self.metrics = metrics_core.MergedMetrics()
        self.jobs = jobs_core.Jobs(config.keep_job_s)
        self._waiters = itertools.count(1)
        self._futures: dict[int, asyncio.Future[object]] = {}
        self._outbox: deque[tuple[asyncio.Future[bool] | None, _Batch]] = deque()
        self._outbox_filled = asyncio.Event()
        self._restore()
        self._tasks = [
            self._loop.create_task(self._drain(), name="windlass-outbox"),
            self._loop.create_task(self._ticks(), name="windlass-ticks"),
        ]

    def now_s(self) -> float:
        return self._loop.time()

    async def close(self) -> None:
        """Stop ticking and pushing; waiting calls are cut, so their callers ask again after the restart."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for future in self._futures.values():
            future.cancel()

    # Events in

    async def ask(self, step: Callable[[int], list[Effect]], waiting_for: Callable[[], str], wait_s: float) -> object:
        """Feed an event that is answered under the given waiter number, and wait for its answer.

        Raises:
            WindlassError: what the core refused with, or UnavailableError after `wait_s`.
        """
        waiter = next(self._waiters)
        future: asyncio.Future[object] = self._loop.create_future()
        self._futures[waiter] = future
        try:
            self.feed(step(waiter))
            async with asyncio.timeout(wait_s):
                return await future
        except TimeoutError:
            raise UnavailableError(
                "the wait at the scheduler came to its end",
                waited_s=round(wait_s, 1),
                reason=waiting_for() or "unknown",
                next_move="`windlass status` shows who is missing.",
            ) from None
        finally:
            del self._futures[waiter]
            if not future.done() or future.cancelled():
                self._abandon(waiter)

    def _abandon(self, waiter: int) -> None:
        self.feed(self.rosters.step(roster_core.Abandoned(self.now_s(), waiter)))
        self.feed(self.declarations.step(declaration_core.Abandoned(waiter)))
        self.feed(self.agreements.step(agreement_core.Abandoned(waiter)))
        self.feed(self.rendezvous.step(rendezvous_core.Abandoned(waiter)))

    def beat(self, beat: Beat) -> None:
        member = self.membership.find(beat.member_id)
        if member is None:
            return
        now_s = self.now_s()
        self.feed(
            self.membership.step(membership_core.Beat(now_s, beat.member_id, beat.counter, beat.oldest_frame_age_ms))
        )
        if member.role is not Role.OBSERVER:
            self.clocks_seen(member.member_id, beat.clocks)

    def clocks_seen(self, member_id: int, clocks: Sequence[tuple[int, int]]) -> None:
        known = self.figures.setdefault(member_id, MemberFigures()).clocks
        for store_id, clock in clocks:
            if store_id in known or len(known) < limits.STORES_MAX:
                known[store_id] = clock
            self.feed(self.rosters.step(roster_core.ClockSeen(store_id, clock)))

    # Effects out

    def feed(self, effects: Sequence[Effect]) -> None:
        """Settle what `effects` mean for the other cores, then store, answer and push, in this order."""
        if not effects:
            return
        batch = _Batch()
        todo = deque(effects)
        while todo:
            todo.extend(self._settle(todo.popleft(), batch))
        counted = [Change(moved.key, moved.record) for moved in self._counters.drain()]
        batch.changes[:0] = counted
        self._release(batch)

    def _settle(self, effect: Effect, batch: _Batch) -> list[Effect]:
        """File `effect` into `batch`; what other cores say to it."""
        match effect:
            case Persist():
                batch.changes.append(Change(effect.key, effect.record))
            case Answer() | Refuse():
                batch.answers.append(effect)
            case Say():
                self._say(effect, batch)
            case membership_core.Joined():
                return self._joined(effect)
            case membership_core.SessionEnded():
                return self._ended(effect, batch)
            case membership_core.JobChanged():
                return self._job_changed(effect.job, batch)
            case routing_core.RoutingChanged():
                batch.pushes.append((pb.Update(routing=wire.routing(self.routing)), Audience()))
                return self._voters()
            case roster_core.RosterChanged():
                roster = wire.roster(effect.roster, self._consistency(effect.roster.store_id))
                batch.pushes.append((pb.Update(roster=roster), Audience(job=effect.roster.job)))
            case roster_core.PrepareSent():
                batch.pushes.append((_prepare(effect), Audience(others=False)))
            case jobs_core.JobOver():
                return self._job_over(effect.job, batch)
            case roster_core.ModeAccepted():
                return self._mode_accepted(effect)
            case live_core.RuleChanged():
                changed = wire.rule_changed(effect.store_id, effect.record)
                batch.pushes.append((pb.Update(rule=changed), Audience(servers=False, job=effect.job)))
            case metrics_core.Merged():
                update = pb.Update(metrics=wire.metrics(effect.job, effect.records))
                batch.pushes.append((update, Audience(servers=False, job=effect.job, metrics_only=True)))
            case _:
                raise AssertionError(f"no core has the effect {effect!r}")
        return []

    def _mode_accepted(self, accepted: roster_core.ModeAccepted) -> list[Effect]:
        """A mode and the hyper-parameters that come with it hold from one step on, or neither does."""
        wish, store = accepted.wish, self.declarations.store(accepted.store_id)
        effects: list[Effect] = []
        record, error = b"", None
        if wish.change:
            change = rule_records.change_from_bytes_untrusted(wish.change)
            setting = live_core.Change(store.store_id, store.name, store.job, wish.rank, accepted.clock, change)
            try:
                effects = self.live.step(setting)
                record = self.live.newest_bytes(store.store_id)
            except WindlassError as refused:
                error = refused
        decided = roster_core.ModeDecided(self.now_s(), accepted, record, error)
        return [*effects, *self.rosters.step(decided)]

    def _say(self, said: Say, batch: _Batch) -> None:
        _log.info("%s job=%s %s", said.kind, said.job or "-", said.text)
        event = pb.Event(unix_s=time.time(), kind=said.kind, text=said.text)
        self.events.append(event)
        batch.pushes.append((pb.Update(event=event), Audience(job=said.job, metrics_only=True)))

    def group(self, found: Group) -> pb.Group:
        """The message of one group, complete: with what its store and the cluster say of it."""
        deleted = self.declarations.deleted(found.table_id)
        store = self.declarations.store(found.store_id)
        quota_bytes = self.config.job_quotas.of(store.job)
        return wire.group(found, store.consistency, self.routing.vshards, deleted, store.job, quota_bytes)

    def held_bytes(self, job: str, *, rows: bool = False) -> int:
        """What servers hold of a job's stores, or of their tables alone, by their latest reports."""
        ours = {store.store_id for store in self.declarations.stores() if store.job == job}
        reports = [self.figures[s.member_id].reported for s in self.membership.servers() if s.member_id in self.figures]
        found = [said for report in reports for number, said in report.stores.items() if number in ours]
        return sum(said.rows_bytes if rows else said.bytes for said in found)

    def _consistency(self, store_id: int) -> str:
        return self.declarations.store(store_id).consistency

    def _joined(self, joined: membership_core.Joined) -> list[Effect]:
        member = joined.member
        self.figures[member.member_id] = MemberFigures()
        if member.role is not Role.SERVER:
            return []
        live = self.membership.servers()
        event = routing_core.ServerJoined(member, joined.replaces, joined.state_intact, live)
        return [*self.routing.step(event), *self._voters()]

    def _voters(self) -> list[Effect]:
        live = {member.member_id for member in self.membership.servers()}
        return self.rosters.step(roster_core.Voters(self.now_s(), self.routing.owner_ids & live))

    def _ended(self, ended: membership_core.SessionEnded, batch: _Batch) -> list[Effect]:
        member = ended.member
        self.figures.pop(member.member_id, None)
        batch.ended.append(member.session)
        if member.role is Role.OBSERVER:
            return []
        update = pb.Update(ended=pb.SessionEnded(session=member.session, reason=ended.reason))
        batch.pushes.append((update, Audience(job=member.job)))
        if member.role is Role.SERVER:
            return [*self.routing.step(routing_core.ServerEnded(member, ended.reason)), *self._voters()]
        live = frozenset(worker.rank for worker in self.membership.workers(member.job))
        awaited = self.membership.rank_zero_awaited(member.job)
        gone = declaration_core.SessionGone(member.session, member.job, awaited)
        effects = [
            *self.rosters.step(roster_core.SessionGone(self.now_s(), member.session)),
            *self.declarations.step(gone),
            *self.agreements.step(agreement_core.SessionGone(member.session)),
            *self.shards.step(shards_core.WorkerGone(member.session, member.rank, member.job, live)),
        ]
        if not live and ended.reason == "left":
            effects += self.shards.step(shards_core.JobOver(member.job))
        return effects

    def _job_changed(self, name: str, batch: _Batch) -> list[Effect]:
        job, workers = self.membership.job(name), self.membership.workers(name)
        batch.pushes.append((pb.Update(job=wire.job_state(job, workers)), Audience(servers=False, job=name)))
        live = frozenset(worker.session for worker in workers)
        return [
            *self.jobs.step(jobs_core.WorkersChanged(self.now_s(), name, len(workers))),
            *self.rendezvous.step(rendezvous_core.WorkersChanged(name, live, job.complete)),
            *self.metrics.step(metrics_core.WorkersChanged(name, live)),
        ]

    def _job_over(self, job: str, batch: _Batch) -> list[Effect]:
        """Forget all that is the job's; servers give its memory back."""
        stores, effects = self.declarations.forget_job(job)
        for store_id in stores:
            effects += self.rosters.forget(store_id)
            effects += self.agreements.forget(store_id)
            effects += self.live.forget(store_id)
        effects += self.rendezvous.forget_job(job)
        effects += self.shards.step(shards_core.JobOver(job))
        effects += self.membership.forget_job(job)
        if stores:
            effects += self.jobs.free(stores)
            batch.pushes.append((pb.Update(freed=pb.StoresFreed(store_ids=stores)), Audience(others=False)))
            text = f"nobody came back within {self.config.keep_job_s:g} s: {len(stores)} stores given back"
            effects.append(Say("job_freed", text, job))
        return effects

    def _release(self, batch: _Batch) -> None:
        if not batch.changes and not self._outbox:
            self._show(batch)
            return
        stored = None
        if batch.changes:
            try:
                stored = asyncio.wrap_future(self._state.submit(batch.changes), loop=self._loop)
            except WindlassError as cause:
                self._fail(cause)
                return
        self._outbox.append((stored, batch))
        self._outbox_filled.set()

    async def _drain(self) -> None:
        while True:
            await self._outbox_filled.wait()
            self._outbox_filled.clear()
            while self._outbox:
                stored, batch = self._outbox[0]
                if stored is not None:
                    try:
                        await stored
                    except WindlassError as cause:
                        self._fail(cause)
                        return
                self._outbox.popleft()
                self._show(batch)

    def _show(self, batch: _Batch) -> None:
        for update, audience in batch.pushes:
            self.watchers.publish(update, audience)
        for session in batch.ended:
            self.watchers.end(session)
        for answer in batch.answers:
            future = self._futures.get(answer.waiter)
            if future is None or future.done():
                continue
            if isinstance(answer, Answer):
                future.set_result(answer.reply)
            else:
                future.set_exception(answer.error)

    def _fail(self, cause: WindlassError) -> None:
        """The state cannot be written: memory is ahead of it, so the process ends before it promises more."""
        if not self.failed.done():
            self.failed.set_exception(cause)
        for future in self._futures.values():
            if not future.done():
                future.set_exception(cause)

    async def settled(self) -> None:
        """Everything decided so far is stored and shown."""
        while self._outbox:
            stored, _ = self._outbox[-1]
            if stored is not None:
                await asyncio.shield(stored)
            await asyncio.sleep(0)

    async def _ticks(self) -> None:
        tick_s = self.config.timing.tick_s
        while True:
            self.feed(self.membership.step(membership_core.Tick(self.now_s())))
            self.feed(self.rosters.step(roster_core.Tick(self.now_s())))
            self.feed(self.jobs.step(jobs_core.Tick(self.now_s())))
            await asyncio.sleep(tick_s)

    # Snapshots

    def snapshot(self, member: Member) -> list[pb.Update]:
        """Everything that a watcher may see, as it is now."""
        updates: list[pb.Update] = []
        if self.routing.owners:
            updates.append(pb.Update(routing=wire.routing(self.routing)))
        is_server = member.role is Role.SERVER
        for roster in self.rosters.rosters():
            if is_server or roster.job == member.job:
                updates.append(pb.Update(roster=wire.roster(roster, self._consistency(roster.store_id))))
        if is_server:
            updates += [_prepare(prepared) for prepared in self.rosters.prepared()]
            updates.append(pb.Update(freed=pb.StoresFreed(store_ids=self.jobs.freed)))
        else:
            workers = self.membership.workers(member.job)
            updates.append(pb.Update(job=wire.job_state(self.membership.job(member.job), workers)))
            ours = [store.store_id for store in self.declarations.stores() if store.job == member.job]
            live = [(store_id, record) for store_id in ours if (record := self.live.newest(store_id)).version]
            updates += [pb.Update(rule=wire.rule_changed(store_id, record)) for store_id, record in live]
        return [*updates, pb.Update(snapshotted=pb.Snapshotted())]

    # Restart

    def _restore(self) -> None:
        def of(*prefixes: str) -> dict[str, Record]:
            return {stored.key: stored.record for prefix in prefixes for stored in self._state.listed(prefix)}

        self._counters.restore(of(COUNTER_PREFIX))
        self.membership.restore(self.now_s(), of("member/", "job/", "ended/"))
        self.routing.restore(of("routing"))
        self.declarations.restore(of("store/", "declaration/", "declared-by/"))
        self.agreements.restore(of("action/"))
        self.live.restore(of("live/"))
        self.rendezvous.restore(of("barrier/", "broadcast/"))
        self.shards.restore(of("loader/"))
        settled = self.rosters.restore(of("roster/"))
        for member in self.membership.members():
            self.figures[member.member_id] = MemberFigures()
        kept = {store.job for store in self.declarations.stores()} | {job.name for job in self.membership.jobs()}
        self.jobs.restore(self.now_s(), sorted(job for job in kept if not self.membership.workers(job)), of("freed"))
        self.feed([*settled, *self._voters()])
        self.validate()

    def validate(self) -> None:
        for core in (
            self.membership,
            self.routing,
            self.rosters,
            self.declarations,
            self.agreements,
            self.live,
            self.rendezvous,
            self.shards,
            self.metrics,
            self.jobs,
        ):
            core.validate()


def _prepare(sent: roster_core.PrepareSent) -> pb.Update:
    prepare = pb.Prepare(store_id=sent.store_id, proposal=sent.proposal, clock=sent.clock, mode=sent.mode)
    return pb.Update(prepare=prepare)


def _cluster_record(config: SchedulerConfig, state: StateStore, new_cluster_id: str) -> str:
    stored = state.get("cluster")
    asked: Record = {"vshards": config.vshards, "servers_declared": config.servers_declared}
    if stored is None:
        state.compare_and_set("cluster", 0, {"cluster_id": new_cluster_id, **asked})
        return new_cluster_id
    for what, value in asked.items():
        if what == "servers_declared" and state.get("routing") is None:
            continue
        if stored.record[what] != value:
            raise UsageError(
                f"the stored cluster was made with other {what}",
                stored=stored.record[what],
                asked=value,
                next_move="Start with the stored value, or on another state folder.",
            )
    if stored.record["servers_declared"] != config.servers_declared:
        state.compare_and_set("cluster", stored.version, {**stored.record, **asked})
    return str(stored.record["cluster_id"])
