"""Which workers count in the steps of a store, and in which mode, from which clock on.

    gathering --(as many as declared have entered)--> started at clock 0
    started: a newcomer enters in two phases
        Prepare(clock = highest clock known + margin) to every server that owns vshards
        all accept               -> committed: the newcomer counts from that clock, the roster is pushed
        one refuses (has begun)  -> another proposal, above the clock it names, with twice the margin
        no vote in time          -> the newcomers are refused, the proposal is settled, the roster is pushed

A store's consistency mode changes in the same two phases: it is another one from the proposal's clock on, the next step
if the servers let it be. A store has one proposal at a time, for newcomers or for a mode.

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
from typing import TypeAlias

from windlass_proto.errors import UnavailableError, UsageError, WindlassError
from windlass_scheduler import limits
from windlass_scheduler.counters import Counters
from windlass_scheduler.effects import Answer, Effect, Persist, Record, Refuse, Say
from windlass_scheduler.roster import (
    ROSTER_PREFIX,
    ModeWish,
    Newcomer,
    Roster,
    RosterMember,
    StepMode,
    read_roster,
    roster_record,
)


@dataclass(slots=True)
class Proposal:
    """`newcomers` are in if all accept, or the mode is as `wish` says."""

    number: int
    clock: int
    margin: int
    attempt: int
    newcomers: dict[bytes, Newcomer]
    awaited: set[int]
    deadline_s: float
    wish: ModeWish | None = None

    @property
    def what(self) -> str:
        return "a change of mode" if self.wish is not None else "a newcomer"


@dataclass(slots=True)
class _Store:
    roster: Roster
    clock_highest: int = 0
    waiting: dict[bytes, Newcomer] = field(default_factory=dict)
    wishes: list[ModeWish] = field(default_factory=list)
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
class ChangeMode:
    now_s: float
    store_id: int
    wish: ModeWish


@dataclass(frozen=True, slots=True)
class ModeDecided:
    """What became of `ModeAccepted`: `record` goes with the mode, or `error` says why there can be none."""

    now_s: float
    accepted: ModeAccepted
    record: bytes
    error: WindlassError | None = None


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


Event: TypeAlias = (
    Opened | Enter | ChangeMode | ModeDecided | Abandoned | ClockSeen | Voted | SessionGone | Voters | Tick
)

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
    mode: bool = False


@dataclass(frozen=True, slots=True)
class ModeAccepted:
    """All servers accept `wish` from step `clock` on. To be followed at once by `ModeDecided`."""

    store_id: int
    proposal: int
    clock: int
    wish: ModeWish


@dataclass(frozen=True, slots=True)
class ModeChanged:
    """What `ChangeMode` is answered with."""

    clock: int
    roster: Roster


@dataclass(frozen=True, slots=True)
class Entered:
    """What `Enter` is answered with."""

    join_clock: int
    roster: Roster


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
        return [_prepare(store_id, p) for store_id, p in open_ones if p is not None]

    def proposal(self, store_id: int) -> Proposal | None:
        """The open one; it waits for the servers of `awaited`."""
        return self._store(store_id).proposal

    def forget(self, store_id: int) -> list[Effect]:
        """The store is gone, its job over."""
        return [Persist(f"{ROSTER_PREFIX}{store_id}", None)] if self._stores.pop(store_id, None) is not None else []

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
            case ChangeMode():
                return self._change_mode(event)
            case ModeDecided():
                return self._mode_decided(event)
            case Abandoned():
                return self._abandon(event.now_s, lambda asking: asking.waiter == event.waiter)
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
        return [roster_record(store.roster), RosterChanged(store.roster)]

    # Two phases

    def _propose(self, store: _Store, now_s: float) -> list[Effect]:
        """Open a proposal for the first wish, or for all who wait to enter, unless one is open already."""
        if store.proposal is not None or not store.roster.started:
            return []
        if store.wishes:
            store.proposal = Proposal(0, 0, limits.MODE_MARGIN_STEPS, 0, {}, set(), 0.0, store.wishes.pop(0))
            return self._send(store, store.proposal, now_s)
        if not store.waiting:
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
        return [_prepare(store.roster.store_id, proposal)]

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
            what = f"the servers' steps outran every clock proposed for {proposal.what}"
            return self._fail(store, proposal, event.now_s, what, str(proposal.clock))
        proposal.margin = max(1, 2 * proposal.margin)
        return self._send(store, proposal, event.now_s)

    def _commit_if_accepted(self, store: _Store, proposal: Proposal, now_s: float) -> list[Effect]:
        if proposal.awaited:
            return []
        store.proposal = None
        if proposal.wish is not None:
            return [ModeAccepted(store.roster.store_id, proposal.number, proposal.clock, proposal.wish)]
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
        waiters = [newcomer.waiter for newcomer in proposal.newcomers.values()]
        waiters += [] if proposal.wish is None else [proposal.wish.waiter]
        refused = [Refuse(waiter, error) for waiter in waiters]
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
                what = f"servers did not vote on {proposal.what} within {self._vote_s:g} s: {silent}"
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

    # Modes

    def _change_mode(self, event: ChangeMode) -> list[Effect]:
        """Propose it, once; a repeated call finds what its action did, or takes the place of the earlier one."""
        store, wish = self._store(event.store_id), event.wish
        if not store.roster.started:
            raise UsageError("the mode of a store was changed before its steps began", store=store.roster.store)
        for made in store.roster.modes:
            if made.action_id == wish.action_id:
                return [Answer(wish.waiter, ModeChanged(made.clock, store.roster))]
        asked = [*store.wishes, *([store.proposal.wish] if store.proposal and store.proposal.wish else [])]
        earlier = next((other for other in asked if other.action_id == wish.action_id), None)
        if earlier is None:
            store.wishes.append(wish)
            return self._propose(store, event.now_s)
        store.wishes = [wish if other is earlier else other for other in store.wishes]
        if store.proposal is not None and store.proposal.wish is earlier:
            store.proposal.wish = wish
        return [Refuse(earlier.waiter, UnavailableError("the same change of mode was asked for again"))]

    def _mode_decided(self, event: ModeDecided) -> list[Effect]:
        accepted, wish = event.accepted, event.accepted.wish
        store = self._store(accepted.store_id)
        if event.error is not None:
            refused = Refuse(wish.waiter, event.error)
            return [*self._settle(store, accepted.proposal), refused, *self._propose(store, event.now_s)]
        mode = StepMode(accepted.clock, wish.consistency, event.record, wish.action_id)
        kept = (*store.roster.modes, mode)[-limits.MODES_KEPT_MAX :]
        settled = max(accepted.proposal, store.roster.proposal_settled)
        effects = self._commit(store, replace(store.roster, modes=kept, proposal_settled=settled))
        store.clock_highest = max(store.clock_highest, accepted.clock)
        text = (
            f"store {store.roster.store} is {wish.consistency} from step {accepted.clock} on: rank {wish.rank} set it"
        )
        say = Say("mode", text, store.roster.job)
        answer = Answer(wish.waiter, ModeChanged(accepted.clock, store.roster))
        return [*effects, say, answer, *self._propose(store, event.now_s)]

    # Leaving

    def _session_gone(self, event: SessionGone) -> list[Effect]:
        effects = self._abandon(event.now_s, lambda asking: asking.session == event.session)
        for store in self._stores.values():
            if store.roster.member(event.session) is not None:
                left = tuple(m for m in store.roster.members if m.session != event.session)
                effects += self._commit(store, replace(store.roster, members=left))
        return effects

    def _abandon(self, now_s: float, gone: Callable[[Newcomer | ModeWish], bool]) -> list[Effect]:
        effects: list[Effect] = []
        for store in self._stores.values():
            store.waiting = {session: n for session, n in store.waiting.items() if not gone(n)}
            store.wishes = [wish for wish in store.wishes if not gone(wish)]
            proposal = store.proposal
            if proposal is None:
                continue
            proposal.newcomers = {session: n for session, n in proposal.newcomers.items() if not gone(n)}
            if not proposal.newcomers and (proposal.wish is None or gone(proposal.wish)):
                store.proposal = None
                effects += [*self._settle(store, proposal.number), *self._propose(store, now_s)]
        return effects

    # Lasting

    def restore(self, records: Mapping[str, Record]) -> list[Effect]:
        """Take up stored rosters; proposals that were open when the scheduler stopped are settled."""
        effects: list[Effect] = []
        for record in records.values():
            roster = read_roster(record)
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
            clocks = [mode.clock for mode in store.roster.modes]
            assert clocks == sorted(set(clocks)), "modes follow each other"
            if store.proposal is not None:
                assert bool(store.proposal.newcomers) != (store.proposal.wish is not None), "it is for one or the other"
                assert store.proposal.awaited <= self._voters
                assert store.proposal.awaited, "an accepted proposal is committed at once"
                assert not store.proposal.newcomers.keys() & (set(inside) | store.waiting.keys())
                assert store.proposal.number > store.roster.proposal_settled


def _prepare(store_id: int, proposal: Proposal) -> PrepareSent:
    return PrepareSent(store_id, proposal.number, proposal.clock, proposal.wish is not None)


def _superseded(newcomer: Newcomer) -> Refuse:
    error = UnavailableError(
        "the same session asked again to enter the roster",
        rank=newcomer.rank,
        next_move="The later call is the one that is answered.",
    )
    return Refuse(newcomer.waiter, error)
