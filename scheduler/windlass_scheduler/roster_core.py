"""Which workers count in the steps of a store, and from which clock on.

    gathering --(as many as declared have entered)--> started at clock 0
    started: a newcomer enters in two phases
        Prepare(clock = highest clock known + margin) to every server that owns vshards
        all accept               -> committed: the newcomer counts from that clock, the roster is pushed
        one refuses (has begun)  -> another proposal, above the clock it names, with twice the margin
        no vote in time          -> the newcomers are refused, the proposal is settled, the roster is pushed

A session that ends leaves at once: a smaller set can only let a step complete sooner, so nobody needs to
agree. Where nobody is left, a newcomer enters at the highest clock known without a margin, for nobody is
moving it.

Invariants (`validate`): a session is a member or waits, never both; a version names one set of members; at
most one proposal of a store is open, and every lower one is settled (`proposal_settled` travels with the
roster: servers forget those).

Owner: the loop that drives it. Time arrives with each event.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias, cast

from windlass_proto.errors import UnavailableError, UsageError, WindlassError
from windlass_scheduler import limits
from windlass_scheduler.counters import Counters
from windlass_scheduler.effects import Answer, Effect, Persist, Record, Refuse, Say


@dataclass(frozen=True, slots=True)
class RosterMember:
    session: bytes
    rank: int
    join_clock: int
    host: str


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

    def member(self, session: bytes) -> RosterMember | None:
        return next((member for member in self.members if member.session == session), None)


@dataclass(frozen=True, slots=True)
class Newcomer:
    waiter: int
    session: bytes
    rank: int
    host: str


@dataclass(slots=True)
class Proposal:
    number: int
    clock: int
    margin: int
    attempt: int
    newcomers: dict[bytes, Newcomer]
    awaited: set[int]
    deadline_s: float


@dataclass(slots=True)
class _Store:
    roster: Roster
    clock_highest: int = 0
    waiting: dict[bytes, Newcomer] = field(default_factory=dict)
    proposal: Proposal | None = None


# Events


@dataclass(frozen=True, slots=True)
class Opened:
    store_id: int
    job: str
    store: str


@dataclass(frozen=True, slots=True)
class Enter:
    """A worker enters; `declared` is how many its job starts with, now."""

    now_s: float
    waiter: int
    store_id: int
    session: bytes
    rank: int
    host: str
    declared: int


@dataclass(frozen=True, slots=True)
class Abandoned:
    now_s: float
    waiter: int


@dataclass(frozen=True, slots=True)
class ClockSeen:
    store_id: int
    clock: int


@dataclass(frozen=True, slots=True)
class Voted:
    now_s: float
    member_id: int
    store_id: int
    proposal: int
    accepted: bool
    clock_highest: int


@dataclass(frozen=True, slots=True)
class SessionGone:
    """A worker's session ended."""

    now_s: float
    session: bytes


@dataclass(frozen=True, slots=True)
class Voters:
    """The live servers that own vshards are these from now on."""

    now_s: float
    member_ids: frozenset[int]


@dataclass(frozen=True, slots=True)
class Tick:
    now_s: float


Event: TypeAlias = Opened | Enter | Abandoned | ClockSeen | Voted | SessionGone | Voters | Tick

# Effects


@dataclass(frozen=True, slots=True)
class RosterChanged:
    roster: Roster


@dataclass(frozen=True, slots=True)
class PrepareSent:
    """To every server that owns vshards."""

    store_id: int
    proposal: int
    clock: int


@dataclass(frozen=True, slots=True)
class Entered:
    """What `Enter` is answered with."""

    join_clock: int
    roster: Roster


_PREFIX: Final = "roster/"


class Rosters:
    """`step(event) -> effects` over the rosters of all stores."""

    def __init__(self, counters: Counters, vote_s: float = 3.0) -> None:
        self._counters = counters
        self._vote_s = vote_s
        self._stores: dict[int, _Store] = {}
        self._voters: frozenset[int] = frozenset()

    def rosters(self) -> Iterator[Roster]:
        return (store.roster for store in self._stores.values())

    def roster(self, store_id: int) -> Roster:
        return self._store(store_id).roster

    def entering(self, store_id: int) -> list[Newcomer]:
        """Those who have asked to enter and are not in yet, by rank."""
        store = self._store(store_id)
        proposed = store.proposal.newcomers.values() if store.proposal else ()
        return sorted([*store.waiting.values(), *proposed], key=lambda newcomer: newcomer.rank)

    def prepared(self) -> list[PrepareSent]:
        """Open proposals, for a server that watches anew."""
        open_ones = ((store.roster.store_id, store.proposal) for store in self._stores.values())
        return [PrepareSent(store_id, p.number, p.clock) for store_id, p in open_ones if p is not None]

    def votes_awaited(self, store_id: int) -> frozenset[int]:
        """Servers that an open proposal waits for."""
        proposal = self._store(store_id).proposal
        return frozenset(proposal.awaited) if proposal else frozenset()

    def forget(self, store_id: int) -> list[Effect]:
        """The store is gone, its job over."""
        return [Persist(f"{_PREFIX}{store_id}", None)] if self._stores.pop(store_id, None) is not None else []

    def _store(self, store_id: int) -> _Store:
        try:
            return self._stores[store_id]
        except KeyError:
            raise UsageError(
                "no store has this number", store_id=store_id, next_move="Open the store by name first."
            ) from None

    def step(self, event: Event) -> list[Effect]:
        match event:
            case Opened():
                if event.store_id in self._stores:
                    return []
                roster = Roster(event.store_id, event.job, event.store)
                self._stores[event.store_id] = _Store(roster)
                return self._commit(self._stores[event.store_id], roster)
            case Enter():
                return self._enter(event)
            case Abandoned():
                return self._abandon(event.now_s, lambda newcomer: newcomer.waiter == event.waiter)
            case ClockSeen():
                store = self._stores.get(event.store_id)
                if store is not None:
                    store.clock_highest = max(store.clock_highest, event.clock)
                return []
            case Voted():
                return self._vote(event)
            case SessionGone():
                return self._session_gone(event)
            case Voters():
                return self._voters_changed(event)
            case Tick():
                return self._tick(event.now_s)

    # Entering

    def _enter(self, event: Enter) -> list[Effect]:
        store = self._store(event.store_id)
        inside = store.roster.member(event.session)
        if inside is not None:
            return [Answer(event.waiter, Entered(inside.join_clock, store.roster))]
        effects: list[Effect] = []
        newcomer = Newcomer(event.waiter, event.session, event.rank, event.host)
        proposal = store.proposal
        if proposal is not None and event.session in proposal.newcomers:
            effects.append(_superseded(proposal.newcomers[event.session]))
            proposal.newcomers[event.session] = newcomer
            return effects
        if event.session in store.waiting:
            effects.append(_superseded(store.waiting[event.session]))
        store.waiting[event.session] = newcomer
        if store.roster.started:
            return effects + self._propose(store, event.now_s)
        if store.roster.declared != event.declared:
            effects += self._commit(store, replace(store.roster, declared=event.declared))
        if len(store.waiting) >= event.declared:
            effects += self._start(store)
        return effects

    def _start(self, store: _Store) -> list[Effect]:
        newcomers, store.waiting = list(store.waiting.values()), {}
        say = Say(
            "steps_begin",
            f"steps of store {store.roster.store} begin with {len(newcomers)} workers",
            store.roster.job,
        )
        return [*self._admit(store, newcomers, clock=0), say]

    def _admit(self, store: _Store, newcomers: Sequence[Newcomer], clock: int, settled: int = 0) -> list[Effect]:
        members = [
            *store.roster.members,
            *(RosterMember(n.session, n.rank, clock, n.host) for n in newcomers),
        ]
        members.sort(key=lambda member: (member.rank, member.session))
        effects = self._commit(
            store,
            replace(
                store.roster,
                started=True,
                members=tuple(members),
                proposal_settled=max(settled, store.roster.proposal_settled),
            ),
        )
        return [*effects, *(Answer(n.waiter, Entered(clock, store.roster)) for n in newcomers)]

    def _commit(self, store: _Store, roster: Roster) -> list[Effect]:
        store.roster = replace(roster, version=roster.version + 1)
        return [Persist(f"{_PREFIX}{roster.store_id}", _record(store.roster)), RosterChanged(store.roster)]

    # Two phases

    def _propose(self, store: _Store, now_s: float) -> list[Effect]:
        """Open a proposal for all who wait, unless one is open already."""
        if store.proposal is not None or not store.waiting or not store.roster.started:
            return []
        newcomers, store.waiting = store.waiting, {}
        store.proposal = Proposal(
            number=0,
            clock=0,
            margin=limits.ENTER_MARGIN_STEPS if store.roster.members else 0,
            attempt=0,
            newcomers=newcomers,
            awaited=set(),
            deadline_s=0.0,
        )
        return self._send(store, store.proposal, now_s)

    def _send(self, store: _Store, proposal: Proposal, now_s: float) -> list[Effect]:
        if not self._voters:
            return self._fail(store, proposal, now_s, "no live server owns vshards of the cluster", "")
        proposal.number = self._counters.take("proposal")
        proposal.clock = store.clock_highest + proposal.margin
        proposal.attempt += 1
        proposal.awaited = set(self._voters)
        proposal.deadline_s = now_s + self._vote_s
        return [PrepareSent(store.roster.store_id, proposal.number, proposal.clock)]

    def _vote(self, event: Voted) -> list[Effect]:
        store = self._store(event.store_id)
        store.clock_highest = max(store.clock_highest, event.clock_highest)
        proposal = store.proposal
        if proposal is None or proposal.number != event.proposal or event.member_id not in proposal.awaited:
            return []
        if event.accepted:
            proposal.awaited.discard(event.member_id)
            return self._commit_if_accepted(store, proposal, event.now_s)
        if proposal.attempt >= limits.PROPOSAL_ATTEMPTS_MAX:
            what = "the servers' steps outran every clock proposed for a newcomer"
            return self._fail(store, proposal, event.now_s, what, str(proposal.clock))
        proposal.margin = max(1, 2 * proposal.margin)
        return self._send(store, proposal, event.now_s)

    def _commit_if_accepted(self, store: _Store, proposal: Proposal, now_s: float) -> list[Effect]:
        if proposal.awaited:
            return []
        store.proposal = None
        newcomers = list(proposal.newcomers.values())
        effects = self._admit(store, newcomers, proposal.clock, settled=proposal.number)
        ranks = ", ".join(str(newcomer.rank) for newcomer in newcomers)
        text = f"worker rank {ranks} counts in store {store.roster.store} from clock {proposal.clock} on"
        return [*effects, Say("entered", text, store.roster.job), *self._propose(store, now_s)]

    def _fail(self, store: _Store, proposal: Proposal, now_s: float, what: str, clock: str) -> list[Effect]:
        store.proposal = None
        error: WindlassError = UnavailableError(
            what,
            store=store.roster.store,
            **({"clock": clock} if clock else {}),
            next_move="Try again; `windlass status` shows the servers.",
        )
        refused = [Refuse(newcomer.waiter, error) for newcomer in proposal.newcomers.values()]
        return [*self._settle(store, proposal.number), *refused, *self._propose(store, now_s)]

    def _settle(self, store: _Store, number: int) -> list[Effect]:
        """Push the roster unchanged, so that servers forget a proposal that came to nothing."""
        if number <= store.roster.proposal_settled:
            return []
        return self._commit(store, replace(store.roster, proposal_settled=number))

    def _tick(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for store in self._stores.values():
            proposal = store.proposal
            if proposal is not None and now_s >= proposal.deadline_s:
                silent = ", ".join(f"member {member_id}" for member_id in sorted(proposal.awaited))
                what = f"servers did not vote on a newcomer within {self._vote_s:g} s: {silent}"
                effects += self._fail(store, proposal, now_s, what, str(proposal.clock))
        return effects

    def _voters_changed(self, event: Voters) -> list[Effect]:
        come = event.member_ids - self._voters
        self._voters = event.member_ids
        effects: list[Effect] = []
        for store in self._stores.values():
            proposal = store.proposal
            if proposal is None:
                continue
            if not self._voters:
                what = "no live server owns vshards of the cluster"
                effects += self._fail(store, proposal, event.now_s, what, str(proposal.clock))
            elif come:
                effects += self._send(store, proposal, event.now_s)
            else:
                proposal.awaited &= self._voters
                effects += self._commit_if_accepted(store, proposal, event.now_s)
        return effects

    # Leaving

    def _session_gone(self, event: SessionGone) -> list[Effect]:
        effects = self._abandon(event.now_s, lambda newcomer: newcomer.session == event.session)
        for store in self._stores.values():
            if store.roster.member(event.session) is not None:
                left = tuple(m for m in store.roster.members if m.session != event.session)
                effects += self._commit(store, replace(store.roster, members=left))
        return effects

    def _abandon(self, now_s: float, gone: Callable[[Newcomer], bool]) -> list[Effect]:
        effects: list[Effect] = []
        for store in self._stores.values():
            store.waiting = {session: n for session, n in store.waiting.items() if not gone(n)}
            proposal = store.proposal
            if proposal is None:
                continue
            proposal.newcomers = {session: n for session, n in proposal.newcomers.items() if not gone(n)}
            if not proposal.newcomers:
                store.proposal = None
                effects += [*self._settle(store, proposal.number), *self._propose(store, now_s)]
        return effects

    # Lasting

    def restore(self, records: Mapping[str, Record]) -> list[Effect]:
        """Take up stored rosters; proposals that were open when the scheduler stopped are settled."""
        effects: list[Effect] = []
        for record in records.values():
            roster = _roster(record)
            store = self._stores[roster.store_id] = _Store(roster)
            if roster.started:
                effects += self._settle(store, self._counters.take("proposal"))
        return effects

    def validate(self) -> None:
        for store in self._stores.values():
            inside = [member.session for member in store.roster.members]
            assert len(inside) == len(set(inside))
            assert not store.waiting.keys() & set(inside), "a member does not wait"
            assert store.roster.started or not inside
            assert store.roster.started or store.proposal is None
            assert store.roster.started or len(store.waiting) < max(1, store.roster.declared)
            if store.proposal is not None:
                assert store.proposal.newcomers, "a proposal is for somebody"
                assert store.proposal.awaited <= self._voters
                assert store.proposal.awaited, "an accepted proposal is committed at once"
                assert not store.proposal.newcomers.keys() & (set(inside) | store.waiting.keys())
                assert store.proposal.number > store.roster.proposal_settled


def _superseded(newcomer: Newcomer) -> Refuse:
    error = UnavailableError(
        "the same session asked again to enter the roster",
        rank=newcomer.rank,
        next_move="The later call is the one that is answered.",
    )
    return Refuse(newcomer.waiter, error)


def _record(roster: Roster) -> Record:
    return {
        "store_id": roster.store_id,
        "job": roster.job,
        "store": roster.store,
        "version": roster.version,
        "declared": roster.declared,
        "started": roster.started,
        "proposal_settled": roster.proposal_settled,
        "members": [[m.session.hex(), m.rank, m.join_clock, m.host] for m in roster.members],
    }


def _roster(record: Record) -> Roster:
    members = cast("list[tuple[str, int, int, str]]", record["members"])
    return Roster(
        store_id=cast("int", record["store_id"]),
        job=cast("str", record["job"]),
        store=cast("str", record["store"]),
        version=cast("int", record["version"]),
        declared=cast("int", record["declared"]),
        started=cast("bool", record["started"]),
        proposal_settled=cast("int", record["proposal_settled"]),
        members=tuple(RosterMember(bytes.fromhex(s), rank, clock, host) for s, rank, clock, host in members),
    )
