"""What is going on, for a person: status messages and sentences, from the cores as they are now.

Every wait names whom it is for. Pure reading; nothing here changes a core.
"""

from __future__ import annotations

from collections.abc import Iterator

from windlass_proto.gen import control_pb2 as pb
from windlass_scheduler import store_figures, wire
from windlass_scheduler.cluster import Cluster, MemberFigures
from windlass_scheduler.members import Job, Member, describe
from windlass_scheduler.roster import Roster

_SILENT_BEATS = 3


def status(cluster: Cluster) -> pb.StatusReply:
    stores = [_store(cluster, roster) for roster in cluster.rosters.rosters()]
    missing_owners = list(_missing_owners(cluster))
    waiting = [*_missing_servers(cluster), *_missing_workers(cluster)]
    for store in stores:
        waiting += [sentence for sentence in store.waiting_for if sentence not in waiting]
    waiting += _barriers(cluster)
    slow = [said for store in stores for said in store_figures.in_words(store.store, store.job, store.workers)]
    health = "degraded" if missing_owners else "waiting" if waiting else "healthy"
    jobs = [_job(cluster, job) for job in cluster.membership.jobs()]
    return pb.StatusReply(
        cluster_id=cluster.cluster_id,
        generation=cluster.routing.generation,
        servers_declared=cluster.routing.servers_declared,
        members=[_member(cluster, member) for member in cluster.membership.members()],
        stores=stores,
        uptime_s=cluster.now_s() - cluster.started_s,
        jobs=jobs,
        events=list(cluster.events),
        health=health,
        sentences=[*missing_owners, *waiting, *slow, *_silent(cluster)],
    )


def _job(cluster: Cluster, job: Job) -> pb.JobState:
    state = wire.job_state(job, cluster.membership.workers(job.name))
    state.bytes, state.quota_bytes = cluster.held_bytes(job.name), cluster.config.job_quotas.of(job.name)
    kept_s = cluster.jobs.kept_s(job.name, cluster.now_s())
    if kept_s is not None:
        state.kept_s = kept_s
    return state


def _member(cluster: Cluster, member: Member) -> pb.MemberStatus:
    lease = cluster.membership.lease(member.member_id)
    said = _said(cluster, member)
    owner = cluster.routing.owner(member.member_id)
    return pb.MemberStatus(
        member_id=member.member_id,
        role=pb.Role.ValueType(int(member.role)),
        rank=member.rank,
        host=member.host,
        pid=member.pid,
        name=member.name,
        job=member.job,
        beat_age_s=max(0.0, cluster.now_s() - lease.sign_s),
        oldest_frame_age_ms=lease.oldest_frame_age_ms,
        clocks=[pb.StoreClock(store_id=store_id, clock=clock) for store_id, clock in said.clocks.items()],
        figures=said.figures,
        device=said.device,
        runs=wire.runs(owner.runs) if owner is not None else [],
        addresses=wire.addresses(member.addresses),
        state="silent" if _is_silent(cluster, member) else "live",
    )


def _said(cluster: Cluster, member: Member) -> MemberFigures:
    return cluster.figures.get(member.member_id, MemberFigures())


def _is_silent(cluster: Cluster, member: Member) -> bool:
    age_s = cluster.now_s() - cluster.membership.lease(member.member_id).sign_s
    return age_s > _SILENT_BEATS * cluster.config.timing.beat_s(member.role)


def _store(cluster: Cluster, roster: Roster) -> pb.StoreStatus:
    store = cluster.declarations.store(roster.store_id)
    reports = [_said(cluster, server).reported for server in cluster.membership.servers()]
    clocks = {
        worker.session: _said(cluster, worker).clocks.get(store.store_id, 0)
        for worker in cluster.membership.workers(store.job)
    }
    members = wire.roster(roster, store.consistency)
    return pb.StoreStatus(
        store_id=store.store_id,
        job=store.job,
        store=store.name,
        consistency=members.consistency,
        roster=members,
        groups=[cluster.group(group) for group in cluster.declarations.groups(store.store_id)],
        waiting_for=store_waits(cluster, store.store_id),
        staleness=store_figures.staleness(reports, store.store_id),
        workers=store_figures.workers(reports, roster, clocks, cluster.now_s()),
    )


def store_waits(cluster: Cluster, store_id: int) -> list[str]:
    """For whom somebody waits in this store."""
    return [
        *_entering(cluster, cluster.rosters.roster(store_id)),
        *_votes(cluster, store_id),
        *_declaring(cluster, store_id),
        *_acting(cluster, store_id),
    ]


def job_waits(cluster: Cluster, job: str) -> list[str]:
    """For whom workers of `job` wait, outside its stores."""
    return [*_missing_workers_of(cluster, cluster.membership.job(job)), *_barriers_of(cluster, job)]


def _entering(cluster: Cluster, roster: Roster) -> Iterator[str]:
    entering = cluster.rosters.entering(roster.store_id)
    if roster.started or not entering:
        return
    entered = {newcomer.rank for newcomer in entering}
    joined = {worker.rank: worker for worker in cluster.membership.workers(roster.job)}
    yield from _missing_workers_of(cluster, cluster.membership.job(roster.job))
    for rank in sorted(joined.keys() - entered):
        where = f"on {joined[rank].host}" if joined[rank].host else f"pid {joined[rank].pid}"
        yield (
            f"waiting for worker rank {rank} of {roster.declared} (job {roster.job}), joined {where}, "
            f"to enter the steps of store {roster.store}"
        )


def _votes(cluster: Cluster, store_id: int) -> Iterator[str]:
    proposal = cluster.rosters.proposal(store_id)
    for member_id in sorted(proposal.awaited) if proposal is not None else ():
        server = cluster.membership.find(member_id)
        name = cluster.declarations.store(store_id).name
        if server is not None and proposal is not None:
            yield f"waiting for {describe(server)} to vote on {proposal.what} in store {name}"


def _declaring(cluster: Cluster, store_id: int) -> Iterator[str]:
    store = cluster.declarations.store(store_id)
    for declaration in cluster.declarations.declarations(store_id):
        if declaration.sealed or not declaration.waiting:
            continue
        if declaration.grantee:
            grantee = describe(cluster.membership.member(declaration.grantee))
            yield f"waiting for {grantee} to write the first values of store {store.name}"
        else:
            yield f"waiting for worker rank 0 (job {store.job}) to declare the tensors of store {store.name}"


def _acting(cluster: Cluster, store_id: int) -> Iterator[str]:
    name = cluster.declarations.store(store_id).name
    for asked in cluster.agreements.open_actions(store_id):
        yield f"waiting for worker rank {asked.rank} to finish {asked.action} {asked.key} in store {name}"


def _missing_servers(cluster: Cluster) -> Iterator[str]:
    if cluster.routing.owners:
        return
    declared = cluster.routing.servers_declared
    held = {server.rank for server in cluster.membership.servers()}
    free = (index for index in range(declared) if index not in held)
    for _, index in zip(range(declared - len(held)), free, strict=False):
        yield f"waiting for server {index} of {declared}"


def _missing_workers(cluster: Cluster) -> Iterator[str]:
    for job in cluster.membership.jobs():
        if cluster.membership.workers(job.name):
            yield from _missing_workers_of(cluster, job)


def _missing_workers_of(cluster: Cluster, job: Job) -> Iterator[str]:
    for rank in cluster.membership.ranks_missing(job.name):
        yield f"waiting for worker rank {rank} of {job.workers_awaited} (job {job.name})"


def _barriers(cluster: Cluster) -> Iterator[str]:
    for job in cluster.membership.jobs():
        yield from _barriers_of(cluster, job.name)


def _barriers_of(cluster: Cluster, job: str) -> Iterator[str]:
    for name, waiting in cluster.rendezvous.waiting(job).items():
        for worker in cluster.membership.workers(job):
            if worker.session not in waiting:
                yield f"waiting for {describe(worker)} to come to barrier {name}"


def _missing_owners(cluster: Cluster) -> Iterator[str]:
    for owner in cluster.routing.owners:
        if cluster.membership.find(owner.member_id) is None:
            owned = sum(run.end - run.begin for run in owner.runs)
            yield (
                f"server {owner.index} on {owner.host or 'an unnamed host'} is gone: "
                f"{owned} of {cluster.routing.vshards} vshards have no live owner"
            )


def _silent(cluster: Cluster) -> Iterator[str]:
    for member in cluster.membership.members():
        if _is_silent(cluster, member):
            age_s = cluster.now_s() - cluster.membership.lease(member.member_id).sign_s
            yield f"{describe(member)} has not beaten for {age_s:.1f} s"
