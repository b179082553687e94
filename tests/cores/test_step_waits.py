"""Who is waited for, since when, how often: from marks and the roster alone."""

from __future__ import annotations

import pytest

from windlass_server.share_events import LEFT, Member
from windlass_server.share_tallies import ShareTallies
from windlass_server.step_waits import StepWaits
from windlass_server.store_figures import figures_of

A, B, C = b"a" * 16, b"b" * 16, b"c" * 16


def waits_of(*sessions: bytes, bound: int | None = 0) -> StepWaits:
    waits = StepWaits()
    waits.change([Member(session, rank, 0) for rank, session in enumerate(sessions)], bound, 0.0)
    return waits


def test_the_worker_that_closes_a_step_last_is_charged_with_the_time_it_alone_was_missing() -> None:
    waits = waits_of(A, B, C)
    waits.close(A, 1, 1.0)
    waits.close(B, 1, 3.0)
    waits.close(C, 1, 7.0)
    assert (waits.workers[C].last, waits.workers[C].waited_s) == (1, 4.0)
    assert waits.workers[A].last == waits.workers[B].last == 0


def test_those_who_are_behind_are_awaited_since_somebody_could_wait_for_them() -> None:
    waits = waits_of(A, B, C)
    assert waits.awaited(5.0) == {}
    waits.close(A, 1, 6.0)
    assert waits.awaited(8.0) == {B: 2.0, C: 2.0}
    waits.close(B, 1, 9.0)
    assert waits.awaited(10.0) == {C: 4.0}
    waits.close(C, 1, 11.0)
    assert waits.awaited(20.0) == {}


def test_within_the_bound_nobody_waits() -> None:
    waits = waits_of(A, B, bound=2)
    waits.close(A, 1, 1.0)
    waits.close(A, 2, 2.0)
    assert waits.awaited(9.0) == {}
    waits.close(A, 3, 10.0)
    assert waits.awaited(11.0) == {B: 1.0}
    waits.close(B, 1, 13.0)
    assert (waits.workers[B].last, waits.workers[B].waited_s) == (1, 3.0)


def test_under_asp_nobody_waits_however_far_apart() -> None:
    waits = waits_of(A, B, bound=None)
    for step in range(100):
        waits.close(A, step + 1, float(step))
    waits.close(B, 1, 200.0)
    assert waits.awaited(300.0) == {}
    assert waits.workers[B].last == 0


def test_one_worker_alone_is_waited_for_by_nobody() -> None:
    waits = waits_of(A)
    waits.close(A, 1, 1.0)
    assert waits.awaited(9.0) == {}
    assert waits.workers[A].last == 0


def test_a_repeated_mark_is_counted_once() -> None:
    waits = waits_of(A, B)
    waits.close(A, 1, 1.0)
    waits.close(B, 1, 2.0)
    waits.close(B, 1, 9.0)
    assert (waits.workers[B].last, waits.workers[B].waited_s) == (1, 1.0)


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "is gone"])
def test_who_leaves_or_is_gone_is_waited_for_no_more(leaves: bool) -> None:
    waits = waits_of(A, B)
    waits.close(A, 1, 1.0)
    if leaves:
        waits.close(B, LEFT, 2.0)
    else:
        waits.change([Member(A, 0, 0)], 0, 2.0)
        assert B not in waits.workers
    assert waits.awaited(9.0) == {}


def test_a_newcomer_is_waited_for_from_its_first_step_on() -> None:
    waits = waits_of(A)
    waits.change([Member(A, 0, 0), Member(B, 1, 5)], 0, 1.0)
    for step in range(5):
        waits.close(A, step + 1, 2.0 + step)
    assert waits.awaited(8.0) == {}
    waits.close(A, 6, 9.0)
    assert waits.awaited(10.0) == {B: 1.0}


def test_figures_add_up_what_was_pushed_and_take_the_most_of_what_every_share_counts() -> None:
    first, second = ShareTallies(), ShareTallies()
    for lag in (0, 2, 2, 100):
        first.apply(lag)
    second.apply(2)
    first.come_late(A, 3)
    first.come_late(A, 3)
    second.come_late(A, 3)
    second.come_late(A, 4)
    waits = waits_of(A, B)
    waits.close(B, 1, 1.0)
    figures = figures_of(7, waits, [first, second], 3.0)
    assert figures.staleness == {0: 1, 2: 3, 64: 1}
    assert figures.late_steps == {A: 2}
    assert figures.awaited_s == {A: 2.0}
    first.end(A)
    assert first.late_steps == {}
