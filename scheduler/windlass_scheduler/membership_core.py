"""Who is a member: roles, ranks, sessions, leases, and the jobs that workers belong to.

Each member is in `_members` (by id) and `_session_ids` (by session) and has one lease. A lease lives on
signs: beats, the opening of its watch stream. A session ends once, by the first of: it left, it was replaced
by its restart, its watch stream closed and no sign came for a moment ("connection lost"), no beat came for a
lease ("lease expired").

Invariants (`validate`): a rank is held by one live worker of a job, an index by one live server; a member id
is given once.

Owner: the loop that drives it; time arrives with each event, in seconds of a monotonic clock. The observer of
silence discounts its own stalls: a tick that comes late lengthens every lease by the delay, because beats
could not be heard then.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from windlass_proto import limits as wire_limits
from windlass_proto.errors import UnavailableError, UsageError
from windlass_proto.own_readers import InstalledReader
from windlass_proto.own_rules import InstalledRule
from windlass_scheduler import limits
from windlass_scheduler.counters import Counters
from windlass_scheduler.effects import Answer, Effect, Persist, Record, Say
from windlass_scheduler.members import Address, Ended, Job, Lease, Member, Role, Timing, describe, member_of, record_of

# Events


@dataclass(frozen=True, slots=True)
class Join:
    """A process asks to be a member; `session` is 16 random bytes, `ranks_kept` indexes of dead owners."""

    now_s: float
    waiter: int
    session: bytes
    role: int
    protocol_min: int
    protocol_max: int
    cluster_id: str = ""
    host: str = ""
    pid: int = 0
    name: str = ""
    job: str = ""
    workers_declared: int = 0
    rank: int | None = None
    old_session: bytes = b""
    addresses: tuple[Address, ...] = ()
    attempt: bytes = b""
    state_intact: bool = False
    ranks_kept: frozenset[int] = frozenset()
    rules: tuple[InstalledRule, ...] = ()
    readers: tuple[InstalledReader, ...] = ()


@dataclass(frozen=True, slots=True)
class Leave:
    waiter: int
    session: bytes


@dataclass(frozen=True, slots=True)
class Beat:
    now_s: float
    member_id: int
    counter: int
    oldest_frame_age_ms: int


@dataclass(frozen=True, slots=True)
class WatchOpened:
    now_s: float
    member_id: int
    stream: int


@dataclass(frozen=True, slots=True)
class WatchClosed:
    now_s: float
    member_id: int
    stream: int


@dataclass(frozen=True, slots=True)
class Tick:
    now_s: float


Event: TypeAlias = Join | Leave | Beat | WatchOpened | WatchClosed | Tick

# Effects


@dataclass(frozen=True, slots=True)
class Joined:
    """`replaces`: whose place the member takes, or 0; `state_intact`: it still holds what that one held."""

    member: Member
    replaces: int
    state_intact: bool


@dataclass(frozen=True, slots=True)
class SessionEnded:
    member: Member
    reason: str


@dataclass(frozen=True, slots=True)
class JobChanged:
    job: str


_MEMBER: Final = "member/"
_JOB: Final = "job/"
_ENDED: Final = "ended/"


class Membership:
    """`step(event) -> effects`; a refused request raises and changes nothing."""

    def __init__(self, cluster_id: str, timing: Timing, counters: Counters) -> None:
        self.cluster_id = cluster_id
        self.timing = timing
        self._counters = counters
        self._members: dict[int, Member] = {}
        self._session_ids: dict[bytes, int] = {}
        self._leases: dict[int, Lease] = {}
        self._jobs: dict[str, Job] = {}
        self._ended: OrderedDict[bytes, Ended] = OrderedDict()
        self._ticked_s: float | None = None

    # Reading

    def members(self) -> Iterator[Member]:
        return iter(self._members.values())

    def workers(self, job: str) -> list[Member]:
        """Live workers of `job`, by rank."""
        found = [m for m in self._members.values() if m.role is Role.WORKER and m.job == job]
        return sorted(found, key=lambda member: member.rank)

    def servers(self) -> list[Member]:
        found = [m for m in self._members.values() if m.role is Role.SERVER]
        return sorted(found, key=lambda member: member.rank)

    def jobs(self) -> Iterator[Job]:
        return iter(self._jobs.values())

    def job(self, name: str) -> Job:
        return self._jobs.get(name) or Job(name, 0, complete=False)

    def lease(self, member_id: int) -> Lease:
        return self._leases[member_id]

    def member(self, session: bytes) -> Member:
        """The live member of `session`.

        Raises:
            UnavailableError: if that session has ended or never was; the caller joins again.
        """
        member_id = self._session_ids.get(session)
        if member_id is not None:
            return self._members[member_id]
        ended = self._ended.get(session)
        raise UnavailableError(
            "this session has ended" if ended else "this session is unknown to the scheduler",
            session=session.hex()[:8],
            reason=ended.reason if ended else "it ended long ago, or belongs to another cluster",
            cluster=self.cluster_id,
            next_move="Connect again: a new session keeps the rank if it is still free.",
        )

    def find(self, member_id: int) -> Member | None:
        return self._members.get(member_id)

    def ranks_missing(self, job: str) -> list[int]:
        """Ranks that the job waits for before it is complete, smallest first; empty from then on."""
        found = self.job(job)
        if found.complete:
            return []
        held = {member.rank for member in self.workers(job)}
        free = [rank for rank in range(found.workers_awaited) if rank not in held]
        return free[: max(0, found.workers_awaited - len(held))]

    def rank_zero_awaited(self, job: str) -> bool:
        """Whether rank 0 of `job` lives or is still expected."""
        return 0 in self.ranks_missing(job) or any(member.rank == 0 for member in self.workers(job))

    # Changing

    def forget_job(self, name: str) -> list[Effect]:
        """Its last worker left long ago; another of this name begins anew."""
        return [Persist(_JOB + name, None)] if self._jobs.pop(name, None) is not None else []

    def step(self, event: Event) -> list[Effect]:
        match event:
            case Join():
                return self._join(event)
            case Leave():
                effects = self._end(self.member(event.session), "left")
                return [*effects, Answer(event.waiter, None)]
            case Beat():
                return self._beat(event)
            case WatchOpened():
                lease = self._leases.get(event.member_id)
                if lease is not None:
                    lease.stream, lease.closed_s = event.stream, None
                    lease.sign_s = max(lease.sign_s, event.now_s)
                return []
            case WatchClosed():
                lease = self._leases.get(event.member_id)
                if lease is not None and lease.stream == event.stream:
                    lease.stream, lease.closed_s = None, event.now_s
                return []
            case Tick():
                return self._tick(event.now_s)

    def _beat(self, event: Beat) -> list[Effect]:
        lease = self._leases.get(event.member_id)
        if lease is None or event.counter <= lease.counter:
            return []
        lease.counter, lease.beats = event.counter, lease.beats + 1
        lease.sign_s = max(lease.sign_s, event.now_s)
        lease.oldest_frame_age_ms = event.oldest_frame_age_ms
        return []

    def _tick(self, now_s: float) -> list[Effect]:
        tick_s = self.timing.tick_s
        gap_s = 0.0 if self._ticked_s is None else now_s - self._ticked_s
        self._ticked_s = now_s
        if gap_s > 2 * tick_s:
            for lease in self._leases.values():
                lease.sign_s += gap_s - tick_s
                if lease.closed_s is not None:
                    lease.closed_s += gap_s - tick_s
        effects: list[Effect] = []
        for member in list(self._members.values()):
            reason = self._silence(member, now_s)
            if reason:
                effects += self._end(member, reason)
        return effects

    def _silence(self, member: Member, now_s: float) -> str:
        lease = self._leases[member.member_id]
        if lease.closed_s is not None:
            if now_s - max(lease.closed_s, lease.sign_s) >= self.timing.closed_s(member.role):
                return "connection lost"
            return ""
        return "lease expired" if now_s - lease.sign_s >= self.timing.lease_s(member.role) else ""

    def _end(self, member: Member, reason: str) -> list[Effect]:
        del self._members[member.member_id]
        del self._session_ids[member.session]
        del self._leases[member.member_id]
        self._ended[member.session] = Ended(member, reason)
        effects: list[Effect] = [
            Persist(f"{_MEMBER}{member.member_id}", None),
            Persist(_ENDED + member.session.hex(), {**record_of(member), "reason": reason}),
        ]
        if len(self._ended) > limits.ENDED_SESSIONS_MAX:
            oldest, _ = self._ended.popitem(last=False)
            effects.append(Persist(_ENDED + oldest.hex(), None))
        effects.append(SessionEnded(member, reason))
        if member.role is not Role.OBSERVER:
            effects.append(Say("member_ended", f"{describe(member)} ended: {reason}", member.job))
        if member.role is Role.WORKER:
            effects.append(JobChanged(member.job))
        return effects

    # Joining

    def _join(self, event: Join) -> list[Effect]:
        known = self._of_attempt(event.attempt)
        if known is not None:
            return [Answer(event.waiter, known)]
        role = self._checked_role(event)
        protocol = self._checked_protocol(event)
        self._check_identity(event, role)
        before = self._replaced(event, role)
        job = self._declared_job(event, role, before)
        rank = self._free_rank(event, role, before)
        effects: list[Effect] = []
        if before is not None and before.member_id in self._members:
            effects += self._end(before, "replaced")
        member = Member(
            member_id=self._counters.take("member"),
            session=event.session,
            role=role,
            rank=rank,
            host=event.host,
            pid=event.pid,
            name=event.name,
            job=event.job,
            addresses=event.addresses,
            attempt=event.attempt,
            protocol=protocol,
            rules=event.rules,
            readers=event.readers,
        )
        self._members[member.member_id] = member
        self._session_ids[member.session] = member.member_id
        self._leases[member.member_id] = Lease(sign_s=event.now_s)
        effects.append(Persist(f"{_MEMBER}{member.member_id}", record_of(member)))
        if role is Role.WORKER:
            effects += self._grow_job(job)
        replaces = before.member_id if before is not None else 0
        effects.append(Joined(member, replaces, event.state_intact and replaces != 0))
        if role is not Role.OBSERVER:
            effects.append(Say("member_joined", f"{describe(member)} joined", member.job))
        return [*effects, Answer(event.waiter, member)]

    def _of_attempt(self, attempt: bytes) -> Member | None:
        if not attempt:
            return None
        return next((m for m in self._members.values() if m.attempt == attempt), None)

    def _checked_role(self, event: Join) -> Role:
        try:
            return Role(event.role)
        except ValueError:
            raise UsageError(
                "a process joined with an unknown role",
                role=event.role,
                roles="worker, server or observer",
                next_move="Update the older of the two installations.",
            ) from None

    def _checked_protocol(self, event: Join) -> int:
        highest = min(event.protocol_max, wire_limits.PROTOCOL_MAX)
        if highest >= max(event.protocol_min, wire_limits.PROTOCOL_MIN):
            return highest
        raise UsageError(
            "this process and the scheduler speak different protocol versions",
            process=f"{event.protocol_min}..{event.protocol_max}",
            scheduler=f"{wire_limits.PROTOCOL_MIN}..{wire_limits.PROTOCOL_MAX}",
            next_move="Install the same windlass release on both sides (neighbouring releases also talk).",
        )

    def _check_identity(self, event: Join, role: Role) -> None:
        if event.cluster_id and event.cluster_id != self.cluster_id:
            raise UsageError(
                "this scheduler belongs to another cluster",
                expected=event.cluster_id,
                scheduler=self.cluster_id,
                next_move="Check the scheduler's address, or drop the record of the old cluster.",
            )
        for what, text in (("name", event.name), ("job", event.job), ("host", event.host)):
            if len(text.encode()) > limits.NAME_BYTES_MAX:
                raise UsageError(
                    f"the {what} of a member is too long",
                    bytes=len(text.encode()),
                    bytes_max=limits.NAME_BYTES_MAX,
                )
        if role is not Role.SERVER and not event.job:
            raise UsageError("a worker joined without a job", next_move="Pass job= or set WINDLASS_JOB.")
        if role is Role.SERVER and not 0 < len(event.addresses) <= limits.ADDRESSES_MAX:
            raise UsageError(
                "a server joined with a wrong number of addresses",
                addresses=len(event.addresses),
                allowed=f"1..{limits.ADDRESSES_MAX}",
            )
        if len(self._members) >= limits.MEMBERS_MAX:
            raise UnavailableError(
                "the cluster is full",
                members=len(self._members),
                members_max=limits.MEMBERS_MAX,
                next_move="Stop members that are no longer needed, or start a second cluster.",
            )

    def _replaced(self, event: Join, role: Role) -> Member | None:
        """The member whose restart this is: same name, role and job, and its session shown."""
        if not event.old_session or not event.name:
            return None
        live = self._session_ids.get(event.old_session)
        ended = self._ended.get(event.old_session)
        before = self._members[live] if live is not None else ended.member if ended else None
        if before is None or (before.name, before.role, before.job) != (event.name, role, event.job):
            return None
        return before

    def _declared_job(self, event: Join, role: Role, before: Member | None) -> Job:
        job = self.job(event.job)
        if role is not Role.WORKER:
            return job
        if event.job not in self._jobs and len(self._jobs) >= limits.JOBS_MAX:
            raise UnavailableError("the cluster has too many jobs", jobs=len(self._jobs), jobs_max=limits.JOBS_MAX)
        if event.workers_declared > limits.RANK_MAX + 1:
            raise UsageError(
                "a job declares too many workers",
                workers=event.workers_declared,
                workers_max=limits.RANK_MAX + 1,
            )
        others = [m for m in self.workers(event.job) if m is not before]
        if event.workers_declared in (0, job.workers_declared):
            return job
        if job.workers_declared and others:
            raise UsageError(
                f"workers of job {event.job} declare different numbers of workers",
                declared=job.workers_declared,
                this_process=event.workers_declared,
                next_move="Start every worker of the job with the same number (workers= or WINDLASS_WORKERS).",
            )
        return replace(job, workers_declared=event.workers_declared, complete=False)

    def _free_rank(self, event: Join, role: Role, before: Member | None) -> int:
        if role is Role.OBSERVER:
            return 0
        peers = self.servers() if role is Role.SERVER else self.workers(event.job)
        held = {member.rank: member for member in peers if member is not before}
        asked = event.rank
        if asked is None and before is not None and before.rank not in held:
            return before.rank
        if asked is None:
            return next(r for r in itertools.count() if r not in held and r not in event.ranks_kept)
        if asked > limits.RANK_MAX:
            raise UsageError("a rank is out of range", rank=asked, rank_max=limits.RANK_MAX)
        if asked in held:
            holder = held[asked]
            raise UsageError(
                f"rank {asked} of job {event.job} is taken"
                if role is Role.WORKER
                else f"server index {asked} is taken",
                holder=f"pid {holder.pid} on {holder.host or 'an unnamed host'}",
                asked_by=f"pid {event.pid} on {event.host or 'an unnamed host'}",
                next_move="Ask for another rank, or none; a restart keeps its rank once its old session ended.",
            )
        return asked

    def _grow_job(self, job: Job) -> list[Effect]:
        complete = job.complete or len(self.workers(job.name)) >= job.workers_awaited
        grown = replace(job, complete=complete)
        self._jobs[job.name] = grown
        return [
            Persist(_JOB + job.name, {"workers_declared": grown.workers_declared, "complete": grown.complete}),
            JobChanged(job.name),
        ]

    # Lasting

    def restore(self, now_s: float, records: Mapping[str, Record]) -> None:
        """Take up stored members, jobs and ended sessions; every lease starts anew at `now_s`."""
        for key, record in records.items():
            if key.startswith(_MEMBER):
                member = member_of(record)
                self._members[member.member_id] = member
                self._session_ids[member.session] = member.member_id
                self._leases[member.member_id] = Lease(sign_s=now_s)
            elif key.startswith(_JOB):
                name = key.removeprefix(_JOB)
                self._jobs[name] = Job(name, int(str(record["workers_declared"])), bool(record["complete"]))
            elif key.startswith(_ENDED):
                ended = member_of(record)
                self._ended[ended.session] = Ended(ended, str(record["reason"]))

    def validate(self) -> None:
        assert self._members.keys() == self._leases.keys() == set(self._session_ids.values())
        for session, member_id in self._session_ids.items():
            assert self._members[member_id].session == session
            assert session not in self._ended
        places = [(m.role, m.job, m.rank) for m in self._members.values() if m.role is not Role.OBSERVER]
        assert len(places) == len(set(places)), "a rank is held twice"
        assert len(self._ended) <= limits.ENDED_SESSIONS_MAX
        for job in self._jobs.values():
            assert job.complete or len(self.workers(job.name)) < job.workers_awaited
