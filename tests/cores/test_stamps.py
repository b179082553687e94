"""Stamps: with which version of the hyper-parameters a step, or a push, is applied; and records ahead of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.cores.bench import A, B, Bench, C
from tests.cores.test_window_core import Desk
from windlass.window_core import STAMPS_KEPT, Stamp
from windlass_proto.frames import Op, Status
from windlass_server.step_stamps import ANNOUNCED_MAX, StepStamps

# ---- the share -----------------------------------------------------------------------------------------------------


def test_a_bsp_step_takes_the_highest_stamp_of_its_contributions() -> None:
    for stamps in ((3, 5), (5, 3)):
        bench = Bench()
        bench.push("a", A, 1, 0, stamp=stamps[0])
        bench.push("b", B, 1, 0, stamp=stamps[1])
        assert [(apply.clock, apply.stamp) for apply in bench.applied] == [(0, 5)]


def test_who_pushes_nothing_still_has_a_say() -> None:
    bench = Bench(members=(A, B, C))
    bench.core.announce(B, 1, 7)
    for clock in range(3):
        bench.mark(B, clock=clock)
        bench.push(f"a{clock}", A, clock + 1, clock)
        bench.mark(C, clock=clock)
    assert [(apply.clock, apply.stamp) for apply in bench.applied] == [(0, 0), (1, 7), (2, 7)]


def test_a_mark_that_says_several_steps_does_not_carry_the_last_ones_stamp_to_the_first() -> None:
    bench = Bench()
    for clock in range(4):
        bench.push(f"a{clock}", A, clock + 1, clock)
    bench.core.announce(B, 1, 2)
    bench.core.announce(B, 3, 4)
    bench.mark(B, clock=3)
    assert [apply.stamp for apply in bench.applied] == [0, 2, 2, 4]


def test_who_has_left_says_nothing_of_later_steps() -> None:
    bench = Bench()
    bench.core.announce(B, 0, 9)
    bench.mark(B, clock=0, leaves=True)
    for clock in range(2):
        bench.push(f"a{clock}", A, clock + 1, clock)
    assert [apply.stamp for apply in bench.applied] == [9, 0]


def test_a_session_that_ended_keeps_its_say_in_the_steps_it_had_closed() -> None:
    bench = Bench(members=(A, B, C))
    for clock in range(2):
        bench.push(f"a{clock}", A, clock + 1, clock)
    bench.core.announce(B, 0, 9)
    bench.mark(B, clock=0)
    bench.end(B)
    bench.mark(C, clock=1)
    assert [apply.stamp for apply in bench.applied] == [9, 0]


@pytest.mark.parametrize("mode", ["asp", "ssp:1"])
def test_without_a_common_step_a_push_takes_its_own_stamp_and_clock(mode: str) -> None:
    bench = Bench(mode)
    bench.core.announce(B, 0, 9)
    bench.push("a", A, 1, 0, stamp=2)
    bench.push("b", B, 1, 1, stamp=9)
    bench.push("a1", A, 2, 1, stamp=1)
    assert [(apply.clock, apply.stamp) for apply in bench.applied] == [(0, 2), (1, 9), (1, 1)]


def test_a_push_with_an_unknown_stamp_is_not_consumed_and_its_mark_waits() -> None:
    bench = Bench()
    bench.push("b", B, 1, 0)
    bench.push("a", A, 1, 0, op="refuse_stamp")
    bench.mark(A, clock=0)
    assert bench.status("a") is Status.UNKNOWN_STAMP
    assert bench.applied == []
    bench.push("a", A, 1, 0, stamp=4)
    assert [apply.stamp for apply in bench.applied] == [4]


@given(
    st.lists(st.tuples(st.sampled_from([A, B, C]), st.integers(0, 3), st.integers(0, 3)), max_size=30),
    st.integers(0, 20),
    st.integers(0, 20),
)
def test_the_highest_stamp_is_that_of_the_table_of_all_steps(
    rises: list[tuple[bytes, int, int]], clock: int, pruned: int
) -> None:
    stamps, table, last = StepStamps(), dict.fromkeys((A, B, C), [0] * 200), dict.fromkeys((A, B, C), (0, 0))
    for session, later, newer in rises:
        at, stamp = last[session][0] + later, last[session][1] + newer
        last[session] = (at, stamp)
        stamps.announce(session, at, stamp)
        if newer:
            table[session] = table[session][:at] + [stamp] * (200 - at)
    stamps.prune(min(pruned, clock))
    assert stamps.highest(clock, 1) == max(1, *(given[clock] for given in table.values()))


def test_announcements_are_bounded() -> None:
    stamps = StepStamps()
    for stamp in range(1, 10 * ANNOUNCED_MAX):
        stamps.announce(A, 0, stamp)
    assert len(stamps._announced[A]) == ANNOUNCED_MAX
    stamps.end(A, 3)
    stamps.prune(4)
    assert not stamps


# ---- the window ----------------------------------------------------------------------------------------------------


def stamp(version: int, clock: int = 0) -> Stamp:
    return Stamp(version, clock, f"record {version}", 10)


def told(desk: Desk, server: int = 0) -> list[str]:
    """Names of entries and records in the order of the wire, and marks."""
    found = []
    for frame in desk.frames(server):
        found += [r.payload if r.op is Op.SET_RULE else r.owner for r in frame.requests]
        found += [f"mark {frame.clock}"] if frame.flags else []
    return found


def test_a_record_goes_once_ahead_of_what_is_stamped_with_it() -> None:
    desk = Desk()
    desk.ask("plain")
    desk.ask("x", clock=1, stamp=stamp(1, 1))
    desk.ask("y", clock=1, stamp=stamp(1, 1))
    assert told(desk) == ["record 1", "plain", "x", "y"]
    desk.ask("z", clock=2, stamp=stamp(1, 1))
    assert told(desk) == ["z"]


def test_a_mark_takes_the_record_to_servers_that_get_no_entry() -> None:
    desk = Desk()
    desk.window.link_up(1)
    desk.ask("x", clock=1, stamp=stamp(1, 1))
    desk.window.close_step(1, 1, [0, 1], stamp=stamp(1, 1))
    assert told(desk, 1) == ["record 1", "mark 1"]
    assert told(desk, 0) == ["record 1", "x", "mark 1"]


def test_a_mark_that_says_several_steps_brings_the_records_of_all() -> None:
    desk = Desk()
    desk.window.close_step(1, 0, [0], stamp=stamp(1, 0))
    desk.window.close_step(1, 1, [0], stamp=stamp(2, 1))
    (frame,) = desk.frames()
    assert [(r.payload, r.clock) for r in frame.requests] == [("record 1", 0), ("record 2", 1)]


def test_a_new_link_is_told_again_and_the_answer_to_an_unknown_stamp_tells_too() -> None:
    desk = Desk()
    first = desk.ask("x", stamp=stamp(1))
    desk.window.close_step(1, 0, [0], stamp=stamp(1))
    assert told(desk) == ["record 1", "x", "mark 0"]
    desk.window.link_down(0)
    desk.window.link_up(0)
    assert told(desk) == ["record 1", "x", "mark 0"]
    second = desk.ask("y", clock=1, stamp=stamp(1))
    assert told(desk) == ["y"]
    assert desk.answer(second, Status.UNKNOWN_STAMP) is None
    assert told(desk) == ["record 1", "y"]
    assert desk.answer(first) is not None
    assert desk.answer(second) is not None


def test_what_was_stamped_long_ago_still_brings_its_record() -> None:
    desk = Desk()
    old = desk.ask("old", stamp=stamp(1))
    assert told(desk) == ["record 1", "old"]
    for version in range(2, 2 * STAMPS_KEPT):
        desk.window.close_step(1, version, [0], stamp=stamp(version, version))
    assert len(desk.window.stamps[1]) == STAMPS_KEPT
    told(desk)
    desk.answer(old, Status.UNKNOWN_STAMP)
    assert told(desk) == ["record 1", "old"]


def test_stores_have_stamps_of_their_own() -> None:
    desk = Desk()
    desk.ask("x", stamp=stamp(5))
    desk.ask("y", store=2, share=(9, 0), stamp=stamp(1))
    assert told(desk) == ["record 5", "x", "record 1", "y"]
