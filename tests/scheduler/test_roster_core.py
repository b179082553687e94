"""Rosters: they start with everybody, newcomers enter where no server has begun, the dead leave at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto.errors import UnavailableError
from windlass_scheduler.counters import Counters
from windlass_scheduler.effects import Answer, Persist, Refuse
from windlass_scheduler.roster_core import (
    Abandoned,
    ClockSeen,
    Enter,
    Entered,
    Event,
    Opened,
    PrepareSent,
    RosterChanged,
    Rosters,
    SessionGone,
    Tick,
    Voted,
    Voters,
)

STORE = 1


class Driven:
    """One store of a job, with servers 101 and 102 voting; every step is followed by `validate`."""

    def __init__(self, declared: int = 2) -> None:
        self.core = Rosters(Counters(), vote_s=3.0)
        self.declared = declared
        self.now_s = 0.0
        self.records: dict[str, Any] = {}
        self.step(Opened(STORE, "job", "main"))
        self.step(Voters(0.0, frozenset({101, 102})))

    def step(self, event: Event) -> list[object]:
        effects = self.core.step(event)
        self.core.validate()
        self.records.update({e.key: e.record for e in effects if isinstance(e, Persist)})
        return effects

    def enter(self, rank: int, waiter: int | None = None) -> list[object]:
        session = f"s{rank}".encode()
        return self.step(Enter(self.now_s, waiter or rank + 1, STORE, session, rank, "h", self.declared))

    def start(self) -> None:
        for rank in range(self.declared):
            self.enter(rank)

    def vote(self, member_id: int, proposal: int, accepted: bool = True, highest: int = 0) -> list[object]:
        return self.step(Voted(self.now_s, member_id, STORE, proposal, accepted, highest))

    def ranks(self) -> list[int]:
        return [member.rank for member in self.core.roster(STORE).members]


def prepared(effects: list[object]) -> PrepareSent:
    return next(e for e in effects if isinstance(e, PrepareSent))


def answers(effects: list[object]) -> dict[int, object]:
    return {e.waiter: e.reply for e in effects if isinstance(e, Answer)}


def test_steps_begin_at_clock_0_when_as_many_as_declared_have_entered() -> None:
    driven = Driven(declared=3)
    assert answers(driven.enter(2)) == {}
    assert answers(driven.enter(0)) == {}
    begun = answers(driven.enter(1))
    roster = driven.core.roster(STORE)
    assert roster.started
    assert driven.ranks() == [0, 1, 2]
    assert begun == {waiter: Entered(0, roster) for waiter in (1, 2, 3)}


def test_one_that_dies_while_waiting_is_waited_for_again() -> None:
    driven = Driven()
    driven.enter(0)
    driven.step(SessionGone(0.0, b"s0"))
    assert answers(driven.enter(1)) == {}
    assert [newcomer.rank for newcomer in driven.core.entering(STORE)] == [1]


def test_entering_twice_is_answered_with_the_same_clock() -> None:
    driven = Driven()
    driven.start()
    assert answers(driven.enter(0, waiter=9)) == {9: Entered(0, driven.core.roster(STORE))}


def test_a_newcomer_enters_eight_steps_above_the_highest_clock_once_all_servers_accept() -> None:
    driven = Driven()
    driven.start()
    driven.step(ClockSeen(STORE, 20))
    sent = prepared(driven.enter(2))
    assert sent.clock == 28
    assert answers(driven.vote(101, sent.proposal)) == {}
    entered = answers(driven.vote(102, sent.proposal))
    assert entered == {3: Entered(28, driven.core.roster(STORE))}
    assert driven.core.roster(STORE).proposal_settled == sent.proposal
    assert driven.ranks() == [0, 1, 2]


def test_a_refusal_doubles_the_margin_above_the_clock_it_names() -> None:
    driven = Driven()
    driven.start()
    first = prepared(driven.enter(2))
    second = prepared(driven.vote(101, first.proposal, accepted=False, highest=50))
    third = prepared(driven.vote(102, second.proposal, accepted=False, highest=90))
    assert [second.clock, third.clock] == [50 + 16, 90 + 32]
    assert first.proposal < second.proposal < third.proposal


def test_votes_on_an_older_proposal_count_for_nothing() -> None:
    driven = Driven()
    driven.start()
    first = prepared(driven.enter(2))
    second = prepared(driven.vote(101, first.proposal, accepted=False, highest=50))
    driven.vote(102, first.proposal)
    driven.vote(101, second.proposal)
    assert driven.ranks() == [0, 1]
    driven.vote(102, second.proposal)
    assert driven.ranks() == [0, 1, 2]


def test_servers_that_do_not_vote_fail_the_attempt_and_are_told_to_forget_it() -> None:
    driven = Driven()
    driven.start()
    sent = prepared(driven.enter(2))
    driven.vote(101, sent.proposal)
    assert driven.step(Tick(2.9)) == []
    effects = driven.step(Tick(3.0))
    refused = [e for e in effects if isinstance(e, Refuse)]
    assert [e.waiter for e in refused] == [3]
    assert isinstance(refused[0].error, UnavailableError)
    assert "member 102" in str(refused[0].error)
    pushed = [e.roster for e in effects if isinstance(e, RosterChanged)]
    assert [roster.proposal_settled for roster in pushed] == [sent.proposal]


def test_a_server_that_dies_is_not_waited_for() -> None:
    driven = Driven()
    driven.start()
    driven.vote(101, prepared(driven.enter(2)).proposal)
    assert 3 in answers(driven.step(Voters(1.0, frozenset({101}))))


def test_without_servers_a_newcomer_is_refused_at_once() -> None:
    driven = Driven()
    driven.start()
    driven.step(Voters(0.0, frozenset()))
    assert [e.waiter for e in driven.enter(2) if isinstance(e, Refuse)] == [3]


def test_the_dead_leave_at_once_without_a_vote() -> None:
    driven = Driven(declared=3)
    driven.start()
    version = driven.core.roster(STORE).version
    effects = driven.step(SessionGone(0.0, b"s1"))
    assert driven.ranks() == [0, 2]
    assert [e.roster.version for e in effects if isinstance(e, RosterChanged)] == [version + 1]
    assert not [e for e in effects if isinstance(e, PrepareSent)]


def test_a_death_does_not_settle_an_open_proposal() -> None:
    driven = Driven()
    driven.start()
    sent = prepared(driven.enter(2))
    driven.step(SessionGone(0.0, b"s0"))
    assert driven.core.roster(STORE).proposal_settled < sent.proposal
    driven.vote(101, sent.proposal)
    driven.vote(102, sent.proposal)
    assert driven.ranks() == [1, 2]


def test_where_nobody_is_left_a_newcomer_enters_at_the_highest_clock() -> None:
    driven = Driven()
    driven.start()
    driven.step(ClockSeen(STORE, 20))
    for rank in (0, 1):
        driven.step(SessionGone(0.0, f"s{rank}".encode()))
    sent = prepared(driven.enter(2))
    assert sent.clock == 20
    assert prepared(driven.vote(101, sent.proposal, accepted=False, highest=20)).clock == 21


def test_newcomers_that_come_during_a_vote_are_voted_on_next_together() -> None:
    driven = Driven()
    driven.start()
    first = prepared(driven.enter(2))
    driven.enter(3)
    driven.enter(4)
    driven.vote(101, first.proposal)
    second = prepared(driven.vote(102, first.proposal))
    assert driven.ranks() == [0, 1, 2]
    driven.vote(101, second.proposal)
    assert answers(driven.vote(102, second.proposal)).keys() == {4, 5}


@pytest.mark.parametrize("gone", [Abandoned(0.0, 3), SessionGone(0.0, b"s2")])
def test_a_proposal_whose_newcomer_is_gone_is_settled(gone: Event) -> None:
    driven = Driven()
    driven.start()
    sent = prepared(driven.enter(2))
    driven.step(gone)
    assert driven.core.roster(STORE).proposal_settled == sent.proposal
    assert driven.ranks() == [0, 1]


def test_a_restart_keeps_members_and_settles_what_was_open() -> None:
    driven = Driven()
    driven.start()
    prepared(driven.enter(2))
    before = driven.core.roster(STORE)
    counters = Counters()
    counters.restore({"counter/proposal": {"ceiling": 1001}})
    again = Rosters(counters)
    again.restore(driven.records)
    again.validate()
    after = again.roster(STORE)
    assert after.members == before.members
    assert after.version == before.version + 1
    assert after.proposal_settled == 1001


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 4), st.booleans()), max_size=60))
def test_any_order_of_events_keeps_the_invariants_and_answers_everybody_once(
    acts: list[tuple[int, int, bool]],
) -> None:
    driven = Driven()
    asked: set[int] = set()
    given_up: set[int] = set()
    answered: list[int] = []
    proposals = [0]
    clocks: dict[int, int] = {}
    for number, (act, which, yes) in enumerate(acts, start=100):
        driven.now_s += 0.3
        effects: list[object] = []
        match act:
            case 0 | 1:
                asked.add(number)
                effects = driven.enter(which, waiter=number)
            case 2:
                server = 101 + which % 2
                effects = driven.vote(server, proposals[-1], accepted=yes, highest=which * 10)
            case 3:
                given_up |= {n.waiter for n in driven.core.entering(STORE) if n.rank == which}
                effects = driven.step(SessionGone(driven.now_s, f"s{which}".encode()))
            case 4:
                effects = driven.step(Tick(driven.now_s))
            case _:
                effects = driven.step(Voters(driven.now_s, frozenset({101, 102} if yes else {101})))
        proposals += [e.proposal for e in effects if isinstance(e, PrepareSent)]
        answered += [e.waiter for e in effects if isinstance(e, Answer | Refuse)]
        for effect in effects:
            if isinstance(effect, RosterChanged):
                assert effect.roster.version > clocks.get(0, 0)
                clocks[0] = effect.roster.version
    waiting = {newcomer.waiter for newcomer in driven.core.entering(STORE)}
    assert sorted(answered) == sorted(asked - waiting - given_up)
    assert proposals == sorted(set(proposals))
