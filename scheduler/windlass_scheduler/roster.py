"""Rosters as values: who counts in a store's steps and in which mode these are, who asks for what, how it is stored.

Who may change these values, and when, is decided in `roster_core`; a waiting call is not stored, its caller asks again
after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

from windlass_scheduler.effects import Persist, Record

ROSTER_PREFIX: Final = "roster/"


@dataclass(frozen=True, slots=True)
class RosterMember:
    session: bytes
    rank: int
    join_clock: int
    host: str


@dataclass(frozen=True, slots=True)
class StepMode:
    """From step `clock` on `consistency` holds. `record`: the hyper-parameters that it came with, if there were any."""

    clock: int
    consistency: str
    record: bytes
    action_id: int


@dataclass(frozen=True, slots=True)
class Roster:
    """What servers and workers see; `members` are in rank order."""

    store_id: int
    job: str
    store: str
    version: int = 0
    declared: int = 0
    started: bool = False
    members: tuple[RosterMember, ...] = ()
    proposal_settled: int = 0
    modes: tuple[StepMode, ...] = ()

    def member(self, session: bytes) -> RosterMember | None:
        return next((member for member in self.members if member.session == session), None)


@dataclass(frozen=True, slots=True)
class Newcomer:
    waiter: int
    session: bytes
    rank: int
    host: str


@dataclass(frozen=True, slots=True)
class ModeWish:
    """A call that wants another mode; `change` is of hyper-parameters, as the caller gave it."""

    waiter: int
    session: bytes
    rank: int
    action_id: int
    consistency: str
    change: bytes


def roster_record(roster: Roster) -> Persist:
    record: Record = {
        "store_id": roster.store_id,
        "job": roster.job,
        "store": roster.store,
        "version": roster.version,
        "declared": roster.declared,
        "started": roster.started,
        "proposal_settled": roster.proposal_settled,
        "modes": [[m.clock, m.consistency, m.record.hex(), m.action_id] for m in roster.modes],
        "members": [[m.session.hex(), m.rank, m.join_clock, m.host] for m in roster.members],
    }
    return Persist(f"{ROSTER_PREFIX}{roster.store_id}", record)


def read_roster(record: Record) -> Roster:
    members = cast("list[tuple[str, int, int, str]]", record["members"])
    modes = cast("list[tuple[int, str, str, int]]", record.get("modes", []))
    return Roster(
        store_id=cast("int", record["store_id"]),
        job=cast("str", record["job"]),
        store=cast("str", record["store"]),
        version=cast("int", record["version"]),
        declared=cast("int", record["declared"]),
        started=cast("bool", record["started"]),
        proposal_settled=cast("int", record["proposal_settled"]),
        members=tuple(RosterMember(bytes.fromhex(s), rank, clock, host) for s, rank, clock, host in members),
        modes=tuple(StepMode(clock, mode, bytes.fromhex(raw), action) for clock, mode, raw, action in modes),
    )
