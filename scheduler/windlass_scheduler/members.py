"""Members: what the scheduler knows of a process that joined, of its lease, and of the job it works for.

They are values; `membership_core` alone makes and changes them. `record_of` and `member_of` are a member's lasting form
and back.
"""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any, cast

from windlass_proto.own_readers import InstalledReader
from windlass_proto.own_rules import InstalledRule
from windlass_scheduler.effects import Record


class Role(enum.IntEnum):
    """Equal to `windlass.v1.Role`."""

    WORKER = 1
    SERVER = 2
    OBSERVER = 3


@dataclass(frozen=True, slots=True)
class Address:
    kind: str
    address: str


@dataclass(frozen=True, slots=True)
class Timing:
    """How members show that they live, in seconds; `tick_s` is how often the driver promises to tick.

    A server's lease is long, since each parameter has one copy: to end a server that merely stood still (a paused
    machine, a debugger) would throw away what only it holds. Its silence shows in the status after three beats.
    """

    worker_beat_s: float = 1.0
    server_beat_s: float = 0.1
    worker_lease_s: float = 10.0
    server_lease_s: float = 30.0
    tick_s: float = 0.05

    def beat_s(self, role: Role) -> float:
        return self.server_beat_s if role is Role.SERVER else self.worker_beat_s

    def lease_s(self, role: Role) -> float:
        return self.server_lease_s if role is Role.SERVER else self.worker_lease_s

    def closed_s(self, role: Role) -> float:
        """How long after its watch stream closed a member may stay silent."""
        return max(1.5 * self.beat_s(role), 2.0 if role is Role.SERVER else 0.3)


@dataclass(frozen=True, slots=True)
class Member:
    member_id: int
    session: bytes
    role: Role
    rank: int
    host: str
    pid: int
    name: str
    job: str
    addresses: tuple[Address, ...]
    attempt: bytes
    protocol: int
    rules: tuple[InstalledRule, ...] = ()  # servers: own rules that they may run
    readers: tuple[InstalledReader, ...] = ()  # and own readers


@dataclass(frozen=True, slots=True)
class Job:
    """`workers_declared` is 0 until somebody says; `complete` once that many were members at one time."""

    name: str
    workers_declared: int
    complete: bool

    @property
    def workers_awaited(self) -> int:
        return max(1, self.workers_declared)


@dataclass(slots=True)
class Lease:
    """Signs of life of one member; `stream` is its open watch stream, `closed_s` when it lost it."""

    sign_s: float
    counter: int = 0
    beats: int = 0
    oldest_frame_age_ms: int = 0
    stream: int | None = None
    closed_s: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    member: Member
    reason: str


def describe(member: Member) -> str:
    """The member in words, for logs, errors and status."""
    match member.role:
        case Role.SERVER:
            what = f"server {member.rank}"
        case Role.WORKER:
            what = f"worker rank {member.rank} (job {member.job})"
        case Role.OBSERVER:
            what = f"observer (job {member.job})"
    return f"{what}, pid {member.pid} on {member.host or 'an unnamed host'}"


def record_of(member: Member) -> dict[str, object]:
    record: dict[str, object] = asdict(member)
    record["session"], record["attempt"] = member.session.hex(), member.attempt.hex()
    record["role"] = int(member.role)
    record["rules"] = [[rule.name, rule.version, [*rule.fields], rule.by_row] for rule in member.rules]
    record["readers"] = [[*reader] for reader in member.readers]
    record["addresses"] = [[address.kind, address.address] for address in member.addresses]
    return record


def member_of(record: Record) -> Member:
    addresses = cast("list[list[str]]", record["addresses"])
    return Member(
        member_id=int(str(record["member_id"])),
        session=bytes.fromhex(str(record["session"])),
        role=Role(int(str(record["role"]))),
        rank=int(str(record["rank"])),
        host=str(record["host"]),
        pid=int(str(record["pid"])),
        name=str(record["name"]),
        job=str(record["job"]),
        addresses=tuple(Address(kind, address) for kind, address in addresses),
        attempt=bytes.fromhex(str(record["attempt"])),
        protocol=int(str(record["protocol"])),
        rules=tuple(
            InstalledRule(name, version, tuple((field, kind) for field, kind in fields), by_row)
            for name, version, fields, by_row in cast("list[Any]", record.get("rules", []))
        ),
        readers=tuple(InstalledReader(*each) for each in cast("list[list[str]]", record.get("readers", []))),
    )
