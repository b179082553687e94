"""Exactly once, reads, first values, and what a share remembers of sessions: in every mode."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cores.bench import A, B, Bench, C
from windlass_proto.errors import UnavailableError, UsageError
from windlass_proto.frames import Status

# ---- exactly once


@pytest.mark.parametrize("mode", ["asp", "ssp:0", "ssp:4"])
def test_a_push_that_comes_twice_is_applied_once(mode: str) -> None:
    bench = Bench(mode)
    bench.push("first", A, 1, 0, values=False)
    bench.push("second", A, 1, 0, values=False)
    assert bench.held() == [-1.0] * 4
    assert (bench.status("first"), bench.status("second")) == (Status.OK, Status.DUPLICATE)
    assert bench.core.tallies.duplicates == 1


def test_a_repeated_push_pull_is_answered_with_present_values() -> None:
    bench = Bench("asp")
    bench.push("first", A, 1, 0)
    bench.push("other", B, 1, 0)
    bench.push("again", A, 1, 0)
    assert bench.values("again") == [-2.0] * 4
    assert bench.said["again"][0].answer.aux == 2


def test_a_hole_is_answered_with_what_is_expected_and_changes_nothing() -> None:
    bench = Bench("asp")
    bench.push("third", A, 3, 0)
    assert bench.status("third") is Status.GAP
    assert bench.said["third"][0].answer.aux == 1
    assert bench.held() == [0.0] * 4
    for seq in (1, 2, 3):
        bench.push(f"resent {seq}", A, seq, 0)
    assert bench.held() == [-3.0] * 4


@given(st.lists(st.integers(1, 6), max_size=40))
def test_any_arrival_of_numbers_applies_each_admitted_one_once_and_in_order(arrivals: list[int]) -> None:
    bench = Bench("asp")
    expected = 1
    for seq in arrivals:
        bench.push("", A, seq, 0, float(seq), values=False)
        if seq == expected:
            expected += 1
    assert bench.held() == [-sum(range(1, expected))] * 4


def test_tables_and_sessions_count_for_themselves() -> None:
    bench = Bench("asp")
    for session in (A, B, C):
        bench.push(repr(session), session, 1, 0)
    assert bench.held() == [-3.0] * 4


def test_an_answer_goes_to_the_new_connection_after_a_reconnect() -> None:
    bench = Bench()
    bench.push("old", A, 1, 0, 2.0, connection="old link")
    bench.core.drop_origin("old link")
    bench.push("new", A, 1, 0, 2.0, connection="new link")
    bench.push("b", B, 1, 0, 2.0)
    assert bench.said.keys() == {"new", "b"}
    assert bench.said["new"][0].answer.origin == ("new link", "new")


def test_nobody_is_answered_while_the_link_is_down_and_the_resend_is_a_duplicate() -> None:
    bench = Bench()
    bench.push("old", A, 1, 0, 2.0, connection="old link")
    bench.core.drop_origin("old link")
    bench.push("b", B, 1, 0, 4.0)
    assert bench.said.keys() == {"b"}
    bench.push("new", A, 1, 0, 2.0)
    assert (bench.status("new"), bench.values("new")) == (Status.DUPLICATE, [-3.0] * 4)


def test_a_closed_connection_takes_its_parked_pulls_along_and_no_others() -> None:
    bench = Bench()
    bench.pull("gone", 1, connection="old link")
    bench.pull("stays", 1)
    bench.core.drop_origin("old link")
    bench.core.validate()
    assert bench.core.parked() == 1
    bench.mark(A, B, clock=0)
    assert bench.said.keys() == {"stays"}


# ---- what was sent away


def test_a_mark_waits_for_the_entry_that_was_sent_away_before_it() -> None:
    bench = Bench()
    bench.push("refused", A, 1, 0, 2.0, op="refuse")
    bench.mark(A, clock=0)
    bench.mark(B, clock=0)
    assert bench.status("refused") is Status.RETRY
    bench.push("again", A, 1, 0, 2.0, last=False)
    assert bench.held() == [-2.0] * 4
    assert bench.status("again") is Status.OK


def test_a_mark_waits_for_all_that_a_gap_sent_away() -> None:
    bench = Bench()
    bench.push("refused", A, 1, 0, 1.0, (0, 2), op="refuse")
    bench.push("gap", A, 2, 0, 1.0, (2, 4))
    bench.mark(A, B, clock=0)
    bench.push("again", A, 1, 0, 1.0, (0, 2), last=False)
    assert bench.status("again") is None
    bench.push("also", A, 2, 0, 1.0, (2, 4), last=False)
    assert bench.held() == [-1.0] * 4


def test_an_earlier_step_closes_although_a_later_one_was_sent_away() -> None:
    bench = Bench()
    bench.push("a0", A, 1, 0, 1.0, last=False)
    bench.push("refused", A, 2, 1, 1.0, op="refuse")
    bench.mark(A, B, clock=1)
    assert bench.status("a0") is Status.OK
    assert bench.core.clocks.closed_min == 1


def test_what_was_admitted_before_is_never_sent_away() -> None:
    bench = Bench("asp")
    bench.push("first", A, 1, 0)
    bench.push("again", A, 1, 0, op="refuse")
    assert bench.status("again") is Status.DUPLICATE


# ---- sessions that end


@pytest.mark.parametrize("mode", ["bsp", "ssp:1", "asp"])
def test_an_ended_session_is_turned_away_so_that_its_resend_is_not_taken_for_new(mode: str) -> None:
    bench = Bench(mode, members=(A,))
    bench.push("a", A, 1, 0)
    bench.end(A)
    held = bench.held()
    bench.push("a again", A, 1, 0)
    bench.mark(A, clock=5)
    assert bench.held() == held
    assert bench.status("a again") is Status.ERROR
    assert isinstance(bench.said["a again"][0].answer.error, UnavailableError)
    assert A not in bench.core.clocks.closed


def test_what_is_remembered_of_sessions_stays_small() -> None:
    bench = Bench("asp", members=())
    for number in range(1000):
        session = number.to_bytes(16, "little")
        bench.push("", session, 1, 0, finite=False)
        bench.mark(session, clock=0)
        if number % 2:
            bench.end(session)
    for seq in range(1, 600):
        bench.push("", A, seq, 0, finite=False)
    core = bench.core
    assert len(core.sessions.admitted) == 501
    assert len(core.clocks.closed) == 500
    assert core.parked() == 0
    assert len(core.sessions._ended) <= 256
    assert len(core.sessions._fates) <= 256


def test_a_session_that_reuses_a_dead_ones_rank_counts_as_itself() -> None:
    bench = Bench(members=(A, B))
    bench.push("b", B, 1, 0, 3.0)
    bench.end(B)
    bench.roster(A, C, version=2, join={C: 1})  # c has b's rank
    bench.push("a", A, 1, 0, 1.0)
    assert bench.held() == [-2.0] * 4
    bench.push("a1", A, 2, 1, 1.0)
    assert bench.status("a1") is None
    bench.push("c1", C, 1, 1, 1.0)
    assert bench.held() == [-3.0] * 4


# ---- reads under ssp and asp


def test_ssp_answers_a_pull_when_everyone_has_closed_all_but_n_steps() -> None:
    bench = Bench("ssp:2")
    bench.mark(A, clock=4)
    bench.pull("five", 5)
    bench.mark(B, clock=1)
    assert bench.status("five") is None
    bench.mark(B, clock=2)
    assert bench.status("five") is Status.OK


def test_ssp_applies_at_once_and_holds_the_answer_of_a_push_pull_back() -> None:
    bench = Bench("ssp:0")
    bench.push("a", A, 1, 0, 2.0)
    bench.mark(A, clock=0)
    assert bench.held() == [-2.0] * 4
    assert bench.status("a") is None
    bench.push("a again", A, 1, 0, 2.0)
    bench.push("b", B, 1, 0, 4.0, values=False)
    assert bench.status("b") is Status.OK
    bench.mark(B, clock=0)
    assert bench.values("a again") == [-6.0] * 4


def test_ssp_waits_for_nobody_who_has_died_or_left() -> None:
    bench = Bench("ssp:0", members=(A, B, C))
    bench.mark(A, clock=0)
    bench.pull("a", 1)
    bench.mark(B, clock=0, leaves=True)
    bench.end(C)
    assert bench.status("a") is Status.OK


def test_asp_never_waits_and_numbers_updates_of_uneven_segments() -> None:
    bench = Bench("asp")
    bench.push("left", A, 1, 0, 1.0, (0, 2))
    bench.push("all", A, 2, 7, 1.0)
    assert bench.held() == [-2.0, -2.0, -1.0, -1.0]
    assert [(a.seg_begin, a.seg_end, a.update) for a in bench.applied] == [(0, 2, 1), (0, 2, 2), (2, 4, 1)]
    assert bench.values("all") == bench.held()


def test_staleness_is_counted_in_few_buckets_however_far_ahead_a_worker_runs() -> None:
    bench = Bench("asp")
    for seq in range(1, 500):
        bench.push("", A, seq, seq * seq * 1000, values=False)
    assert sum(bench.core.tallies.staleness.values()) == 499
    assert len(bench.core.tallies.staleness) < 130


# ---- first values and given ones


def test_pushes_and_pulls_before_init_say_so_and_do_not_block_what_follows() -> None:
    bench = Bench()
    bench.core.blocks[0].present[:] = [False] * 4
    bench.push("early", A, 1, 0)
    bench.pull("early pull", 0)
    for name in ("early", "early pull"):
        assert isinstance(bench.said[name][0].answer.error, UsageError)
    bench.push("init", B, 1, 0, 7.0, op="init")
    bench.push("a", A, 2, 0, 1.0)
    bench.push("early again", A, 1, 0)
    assert bench.status("early again") is Status.ERROR, "it was not applied, whatever is there now"
    bench.push("b", B, 2, 0, 1.0)
    assert bench.held() == [6.0] * 4


def test_first_values_may_be_written_again_until_the_first_update() -> None:
    bench = Bench("asp")
    bench.push("one", A, 1, 0, 1.0, op="init")
    bench.push("two", B, 1, 0, 2.0, op="init")
    bench.push("update", A, 2, 0, 1.0)
    bench.push("three", B, 2, 0, 3.0, op="init")
    assert bench.held() == [1.0] * 4
    assert bench.status("three") is Status.ERROR


def test_given_values_wait_for_the_steps_before_them() -> None:
    bench = Bench()
    bench.push("assign", A, 1, 1, 50.0, op="assign", values=False)
    bench.push("a0", A, 2, 0, 2.0)
    assert bench.status("assign") is None
    bench.push("b0", B, 1, 0, 2.0)
    assert bench.held() == [50.0] * 4
    assert bench.status("assign") is Status.OK
    assert all(buffer.released == 1 for buffer in bench.buffers)


def test_given_values_of_a_session_that_dies_are_dropped() -> None:
    bench = Bench()
    bench.push("assign", B, 1, 1, 50.0, op="assign")
    bench.end(B)
    bench.push("a0", A, 1, 0, 2.0)
    assert bench.held() == [-2.0] * 4
    assert all(buffer.released == 1 for buffer in bench.buffers)
