"""Membership: joins are judged in words, ranks are kept, silence ends sessions and stalls of the observer do not."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto.errors import UnavailableError, UsageError, WindlassError
from windlass_scheduler.counters import Counters
from windlass_scheduler.effects import Answer, Persist
from windlass_scheduler.members import Address, Member, Role, Timing
from windlass_scheduler.membership_core import (
    Beat,
    Event,
    Join,
    Leave,
    Membership,
    SessionEnded,
    Tick,
    WatchClosed,
    WatchOpened,
)

TIMING = Timing()


class Driven:
    """Membership with a clock in hand; every step is followed by `validate`."""

    def __init__(self) -> None:
        self.core = Membership("c1", TIMING, Counters())
        self.now_s = 0.0
        self.records: dict[str, Any] = {}
        self._sessions = 0

    def step(self, event: Event) -> list[object]:
        effects = self.core.step(event)
        self.core.validate()
        for effect in effects:
            if isinstance(effect, Persist):
                self.records.pop(effect.key, None)
                if effect.record is not None:
                    self.records[effect.key] = effect.record
        return effects

    def join(self, role: Role = Role.WORKER, **fields: Any) -> Member:
        self._sessions += 1
        session = self._sessions.to_bytes(16, "big")
        if role is not Role.SERVER:
            fields.setdefault("job", "digits")
        else:
            fields.setdefault("addresses", (Address("tcp", "h:1"),))
        versions = {"protocol_min": 1, "protocol_max": 1, **fields}
        event = Join(self.now_s, 1, session, int(role), **versions)
        replies = [e.reply for e in self.step(event) if isinstance(e, Answer)]
        assert isinstance(replies[0], Member)
        return replies[0]

    def tick_until(self, until_s: float) -> list[SessionEnded]:
        ended = []
        while self.now_s < until_s:
            self.now_s += TIMING.tick_s
            ended += [e for e in self.step(Tick(self.now_s)) if isinstance(e, SessionEnded)]
        return ended


def test_workers_get_the_smallest_free_rank() -> None:
    driven = Driven()
    first, second, third = (driven.join() for _ in range(3))
    assert [first.rank, second.rank, third.rank] == [0, 1, 2]
    driven.step(Leave(1, second.session))
    assert driven.join().rank == 1


def test_ranks_are_counted_per_job() -> None:
    driven = Driven()
    assert [driven.join(job=job).rank for job in ("a", "b", "a")] == [0, 0, 1]


def test_an_asked_rank_is_honoured_and_a_taken_one_refused_with_its_holder() -> None:
    driven = Driven()
    assert driven.join(rank=3, host="h1", pid=11).rank == 3
    with pytest.raises(UsageError, match=r"rank 3 of job digits is taken .*pid 11 on h1.*pid 22 on h2"):
        driven.join(rank=3, host="h2", pid=22)


def test_a_restart_that_shows_its_old_session_keeps_its_rank() -> None:
    driven = Driven()
    driven.join(name="worker-0")
    old = driven.join(name="worker-1")
    driven.join(name="worker-2")
    driven.step(Leave(1, old.session))
    assert driven.join(name="worker-1", old_session=old.session).rank == 1


def test_a_restart_ends_the_session_it_replaces() -> None:
    driven = Driven()
    old = driven.join(name="worker-0")
    assert driven.join(name="worker-0", old_session=old.session).rank == 0
    with pytest.raises(UnavailableError, match="replaced"):
        driven.core.member(old.session)


def test_another_name_cannot_take_over_a_live_session() -> None:
    driven = Driven()
    old = driven.join(name="worker-0")
    assert driven.join(name="worker-9", old_session=old.session).rank == 1
    assert driven.core.member(old.session).rank == 0


def test_a_repeated_join_makes_one_member() -> None:
    driven = Driven()
    assert driven.join(attempt=b"x" * 16) == driven.join(attempt=b"x" * 16)


def test_declared_workers_must_agree_and_the_error_shows_both_numbers() -> None:
    driven = Driven()
    driven.join(workers_declared=4)
    driven.join()
    with pytest.raises(UsageError, match=r"declared=4, this_process=3"):
        driven.join(workers_declared=3)


def test_a_job_without_members_may_declare_anew() -> None:
    driven = Driven()
    driven.step(Leave(1, driven.join(workers_declared=1).session))
    driven.join(workers_declared=2)
    assert driven.core.ranks_missing("digits") == [1]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"protocol_min": 2, "protocol_max": 3}, "process=2..3, scheduler=1..1"),
        ({"cluster_id": "c2"}, "expected=c2, scheduler=c1"),
        ({"job": ""}, "without a job"),
        ({"rank": 1 << 20}, "rank=1048576"),
        ({"name": "n" * 300}, "bytes=300"),
    ],
)
def test_a_join_that_cannot_work_is_refused_in_words(fields: dict[str, Any], words: str) -> None:
    driven = Driven()
    with pytest.raises(UsageError, match=words):
        driven.join(**fields)
    assert not list(driven.core.members())


def test_an_unknown_role_is_refused() -> None:
    driven = Driven()
    with pytest.raises(UsageError, match="role=9"):
        driven.core.step(Join(0.0, 1, bytes(16), 9, 1, 1))


def test_a_server_needs_an_address() -> None:
    with pytest.raises(UsageError, match="addresses=0"):
        Driven().join(Role.SERVER, addresses=())


@pytest.mark.parametrize(("role", "lease_s"), [(Role.WORKER, 10.0), (Role.SERVER, 30.0)])
def test_a_silent_member_ends_when_its_lease_does(role: Role, lease_s: float) -> None:
    driven = Driven()
    member = driven.join(role)
    driven.step(WatchOpened(driven.now_s, member.member_id, 1))
    assert driven.tick_until(lease_s - 0.2) == []
    assert driven.tick_until(lease_s + 0.1) == [SessionEnded(member, "lease expired")]


def test_beats_keep_a_lease() -> None:
    driven = Driven()
    server = driven.join(Role.SERVER)
    for counter in range(1, 40):
        driven.step(Beat(driven.now_s, server.member_id, counter, 0))
        assert driven.tick_until(driven.now_s + 0.1) == []


def test_a_replayed_beat_keeps_nobody_alive() -> None:
    driven = Driven()
    server = driven.join(Role.SERVER)
    driven.step(Beat(0.0, server.member_id, 5, 0))
    driven.tick_until(29.9)
    driven.step(Beat(driven.now_s, server.member_id, 5, 0))
    driven.step(Beat(driven.now_s, server.member_id, 4, 0))
    assert [e.reason for e in driven.tick_until(30.2)] == ["lease expired"]


@pytest.mark.parametrize(("role", "after_s"), [(Role.WORKER, 1.5), (Role.SERVER, 2.0)])
def test_a_closed_stream_and_no_beat_is_a_lost_connection(role: Role, after_s: float) -> None:
    driven = Driven()
    member = driven.join(role)
    driven.step(WatchOpened(0.0, member.member_id, 1))
    driven.step(WatchClosed(0.0, member.member_id, 1))
    assert driven.tick_until(after_s - 0.1) == []
    assert driven.tick_until(after_s + 0.1) == [SessionEnded(member, "connection lost")]


def test_a_beating_member_may_lose_its_stream_and_open_another() -> None:
    driven = Driven()
    server = driven.join(Role.SERVER)
    driven.step(WatchOpened(0.0, server.member_id, 1))
    driven.step(WatchOpened(0.0, server.member_id, 2))
    driven.step(WatchClosed(0.0, server.member_id, 1))
    driven.step(Beat(0.05, server.member_id, 1, 0))
    assert driven.tick_until(0.9) == []


def test_the_observer_discounts_its_own_stall() -> None:
    driven = Driven()
    server = driven.join(Role.SERVER)
    driven.tick_until(0.5)
    driven.now_s += 60.0
    assert driven.step(Tick(driven.now_s)) == []
    assert [e.reason for e in driven.tick_until(driven.now_s + 29.7)] == ["lease expired"]
    assert server.session


def test_restored_members_keep_sessions_and_get_new_leases() -> None:
    driven = Driven()
    server, worker = driven.join(Role.SERVER), driven.join(workers_declared=2, name="w", attempt=b"a")
    gone = driven.join(name="gone")
    driven.step(Leave(1, gone.session))
    again = Driven()
    again.core.restore(100.0, driven.records)
    again.core.validate()
    again.now_s = 100.0
    assert [again.core.member(m.session) for m in (server, worker)] == [server, worker]
    assert again.core.job("digits") == driven.core.job("digits")
    with pytest.raises(UnavailableError, match="left"):
        again.core.member(gone.session)
    assert again.tick_until(109.9) == []
    assert [e.member for e in again.tick_until(110.1)] == [worker]
    assert [e.member for e in again.tick_until(130.1)] == [server]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=60))
def test_any_order_of_joins_leaves_and_silence_keeps_the_invariants(actions: list[tuple[int, int]]) -> None:
    driven = Driven()
    live: list[Member] = []
    for action, which in actions:
        try:
            match action:
                case 0 | 1:
                    live.append(driven.join(rank=which if action else None, workers_declared=which))
                case 2:
                    live.append(driven.join(Role.SERVER, name=f"s{which}"))
                case 3 if live:
                    driven.step(Leave(1, live.pop(which % len(live)).session))
                case 4 if live:
                    member = live[which % len(live)]
                    driven.step(Beat(driven.now_s, member.member_id, int(driven.now_s * 1000) + 1, 0))
                case _:
                    ended = {e.member.member_id for e in driven.tick_until(driven.now_s + 0.4 * which)}
                    live = [member for member in live if member.member_id not in ended]
        except WindlassError:
            driven.core.validate()
    assert {member.member_id for member in driven.core.members()} == {m.member_id for m in live}
    assert len({dataclasses.astuple(m)[1] for m in live}) == len(live)
