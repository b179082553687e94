"""The committed placement: which server owns which runs of vshards, under which generation.

Nothing is owned until as many servers as the cluster declares have joined; then generation 1 is committed. A
server that comes later is a spare and owns nothing. A server that dies keeps its runs in the table (only a
replica could take them) and the cluster is degraded until the same process, its state intact, joins again and
takes its place back.

Invariant: once committed the runs tile `[0, vshards)`; the generation only grows, and with every change.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias, cast

from windlass_scheduler.effects import Effect, Persist, Record, Say
from windlass_scheduler.members import Address, Member
from windlass_scheduler.placement import Run, place


@dataclass(frozen=True, slots=True)
class OwnedRun:
    """Vshards `[begin, end)`; `owner_generation` is the generation at which their owner last changed."""

    begin: int
    end: int
    owner_generation: int


@dataclass(frozen=True, slots=True)
class Owner:
    member_id: int
    index: int
    host: str
    addresses: tuple[Address, ...]
    runs: tuple[OwnedRun, ...]


# Events


@dataclass(frozen=True, slots=True)
class ServerJoined:
    """`live` is every live server, this one included, by index."""

    server: Member
    replaces: int
    state_intact: bool
    live: Sequence[Member]


@dataclass(frozen=True, slots=True)
class ServerEnded:
    server: Member
    reason: str


Event: TypeAlias = ServerJoined | ServerEnded


@dataclass(frozen=True, slots=True)
class RoutingChanged:
    """Effect: the table is to be pushed."""


_KEY: Final = "routing"


class Routing:
    def __init__(self, servers_declared: int, vshards: int) -> None:
        self.servers_declared = servers_declared
        self.vshards = vshards
        self.generation = 0
        self.owners: tuple[Owner, ...] = ()

    @property
    def owner_ids(self) -> frozenset[int]:
        return frozenset(owner.member_id for owner in self.owners)

    def owner(self, member_id: int) -> Owner | None:
        return next((owner for owner in self.owners if owner.member_id == member_id), None)

    def runs(self) -> tuple[tuple[Run, ...], ...]:
        """The vshards of each server; before the first commit, as it will be."""
        if self.owners:
            return tuple(tuple(Run(run.begin, run.end) for run in owner.runs) for owner in self.owners)
        return tuple(place(range(self.servers_declared), self.vshards).values())

    def step(self, event: Event) -> list[Effect]:
        match event:
            case ServerJoined():
                return self._joined(event)
            case ServerEnded():
                owner = self.owner(event.server.member_id)
                if owner is None:
                    return []
                owned = sum(run.end - run.begin for run in owner.runs)
                text = f"server {owner.index} is gone ({event.reason}): {owned} of {self.vshards} vshards"
                return [Say("degraded", f"{text} have no live owner")]

    def _joined(self, event: ServerJoined) -> list[Effect]:
        if not self.owners:
            return self._commit_first(event.live)
        owner = self.owner(event.replaces)
        if owner is None or not event.state_intact:
            return [Say("spare", f"server {event.server.rank} owns nothing: the placement is committed without it")]
        returned = replace(
            owner,
            member_id=event.server.member_id,
            index=event.server.rank,
            host=event.server.host,
            addresses=event.server.addresses,
        )
        self.owners = tuple(returned if found is owner else found for found in self.owners)
        return self._commit(f"server {returned.index} is back with its state intact")

    def _commit_first(self, live: Sequence[Member]) -> list[Effect]:
        if len(live) < self.servers_declared:
            return []
        chosen = live[: self.servers_declared]
        plan = place([server.member_id for server in chosen], self.vshards)
        self.owners = tuple(
            Owner(
                server.member_id,
                server.rank,
                server.host,
                server.addresses,
                tuple(OwnedRun(run.begin, run.end, 1) for run in plan[server.member_id]),
            )
            for server in chosen
        )
        return self._commit(f"{len(chosen)} servers own {self.vshards} vshards")

    def _commit(self, text: str) -> list[Effect]:
        self.generation += 1
        say = Say("routing", f"generation {self.generation} committed: {text}")
        return [Persist(_KEY, self._record()), RoutingChanged(), say]

    def _record(self) -> Record:
        return {
            "generation": self.generation,
            "vshards": self.vshards,
            "owners": [
                {
                    "member_id": owner.member_id,
                    "index": owner.index,
                    "host": owner.host,
                    "addresses": [[a.kind, a.address] for a in owner.addresses],
                    "runs": [[run.begin, run.end, run.owner_generation] for run in owner.runs],
                }
                for owner in self.owners
            ],
        }

    def restore(self, records: Mapping[str, Record]) -> None:
        record = records.get(_KEY)
        if record is None:
            return
        self.generation = cast("int", record["generation"])
        owners = cast("list[dict[str, object]]", record["owners"])
        self.owners = tuple(
            Owner(
                cast("int", owner["member_id"]),
                cast("int", owner["index"]),
                cast("str", owner["host"]),
                tuple(Address(kind, text) for kind, text in cast("list[list[str]]", owner["addresses"])),
                tuple(OwnedRun(*run) for run in cast("list[list[int]]", owner["runs"])),
            )
            for owner in owners
        )

    def validate(self) -> None:
        assert bool(self.owners) == (self.generation > 0)
        if self.owners:
            runs = sorted((run.begin, run.end) for owner in self.owners for run in owner.runs)
            assert runs[0][0] == 0, "the first vshard is owned"
            assert runs[-1][1] == self.vshards, "the last vshard is owned"
            assert all(a[1] == b[0] for a, b in itertools.pairwise(runs)), "runs tile the vshards"
            assert all(run.owner_generation <= self.generation for owner in self.owners for run in owner.runs)
