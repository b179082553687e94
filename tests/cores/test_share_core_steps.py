"""BSP: when a step of a segment is complete, what it applies, and who is answered then."""

from __future__ import annotations

import time

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.cores.bench import LINE, A, B, Bench, C, D
from windlass_proto.consistency import Consistency
from windlass_proto.frames import Status
from windlass_proto.layout import GroupLayout, TensorSpec
from windlass_server.share_core import Push, Roster, ShareCore
from windlass_server.share_events import Member


def test_a_step_waits_for_the_set_of_sessions_and_a_retry_releases_nothing() -> None:
    bench = Bench()
    bench.push("a", A, 1, 0, 2.0)
    bench.push("a again", A, 1, 0, 2.0)
    assert bench.held() == [0.0] * 4
    bench.push("b", B, 1, 0, 4.0)
    assert bench.held() == [-3.0] * 4
    assert bench.status("b") is Status.OK
    assert bench.said.keys() == {"a again", "b"}, "the answer goes to where it was asked for last"


def test_a_mark_without_a_contribution_says_nothing_from_me() -> None:
    bench = Bench()
    bench.push("a", A, 1, 0, 2.0)
    bench.mark(B, clock=0)
    assert bench.held() == [-2.0] * 4
    assert bench.applied[0].divisor == 1.0


def test_several_pieces_of_a_step_are_summed_and_count_once_in_the_mean() -> None:
    bench = Bench()
    bench.push("a1", A, 1, 0, 1.0, last=False)
    bench.push("a2", A, 2, 0, 2.0, last=False)
    bench.push("b", B, 1, 0, 3.0)
    assert bench.status("b") is None, "a has not said that it is done"
    bench.mark(A, clock=0)
    assert bench.held() == [-3.0] * 4
    assert [bench.status(name) for name in ("a1", "a2", "b")] == [Status.OK] * 3


def test_pieces_of_different_extents_meet_segment_by_segment() -> None:
    bench = Bench()
    bench.push("whole", A, 1, 0, 1.0)
    bench.push("left", B, 1, 0, 3.0, (0, 2))
    assert bench.held() == [-2.0, -2.0, 0.0, 0.0]
    assert bench.status("left") is Status.OK
    assert bench.status("whole") is None
    bench.push("right", B, 2, 0, 5.0, (2, 4))
    assert bench.held() == [-2.0, -2.0, -3.0, -3.0]
    assert bench.values("whole") == [-2.0, -2.0, -3.0, -3.0]
    assert all(buffer.released == 1 for buffer in bench.buffers)


def test_sums_are_added_in_rank_order_whatever_the_order_of_arrival() -> None:
    found = set()
    for order in ((A, B, C), (C, B, A), (B, C, A)):
        bench = Bench(members=(A, B, C))
        for session in order:
            bench.push(repr(session), session, 1, 0, {A: 1e8, B: -1e8, C: 1.0}[session])
        found.add(bench.weights.tobytes())
        assert [source.buffer.values[0] for source in bench.applied[0].sources] == [np.float32(1e8), -1e8, 1.0]
    assert len(found) == 1


def test_a_rank_is_looked_up_when_the_sum_is_made_not_when_the_push_comes() -> None:
    bench = Bench(members=(B,))
    bench.mark(B, clock=3)
    bench.push("newcomer", A, 1, 4, 1.0)  # before the roster that names its rank
    bench.roster(A, B, version=2, join={A: 4})
    bench.push("b", B, 1, 4, 2.0)
    assert [source.buffer.values[0] for source in bench.applied[0].sources] == [1.0, 2.0]


def test_weights_make_a_weighted_mean_and_nothing_of_a_sum() -> None:
    bench = Bench()
    bench.push("a", A, 1, 0, 1.0, weight=3.0)
    bench.push("b", B, 1, 0, 5.0, weight=1.0)
    assert bench.held() == [-2.0] * 4
    bench = Bench(mean=False)
    bench.push("a", A, 1, 0, 1.0, weight=3.0)
    bench.push("b", B, 1, 0, 5.0, weight=1.0)
    assert bench.held() == [-6.0] * 4


def test_weights_of_zero_leave_the_tensor_as_it_is_and_answer() -> None:
    bench = Bench()
    bench.push("a", A, 1, 0, 1.0, weight=0.0)
    bench.push("b", B, 1, 0, 1.0, weight=0.0)
    assert bench.held() == [0.0] * 4
    assert (bench.status("a"), bench.status("b")) == (Status.OK, Status.OK)


def test_a_rejected_gradient_counts_as_done_and_leaves_the_divisor() -> None:
    bench = Bench()
    bench.push("nan", A, 1, 0, float("nan"), finite=False)
    assert bench.status("nan") is Status.REJECTED
    bench.push("b", B, 1, 0, 4.0)
    assert bench.held() == [-4.0] * 4
    bench.push("nan again", A, 1, 0, float("nan"), finite=False)
    assert bench.status("nan again") is Status.REJECTED, "whoever asks again is told the same"


def test_what_comes_after_its_step_is_late_and_stays_late() -> None:
    bench = Bench()
    bench.mark(A, B, clock=0)
    bench.push("late", A, 1, 0, 1.0)
    bench.push("late again", A, 1, 0, 1.0)
    assert bench.held() == [0.0] * 4
    assert (bench.status("late"), bench.status("late again")) == (Status.LATE, Status.LATE)


def test_a_later_step_waits_for_an_earlier_one_that_may_still_be_pushed() -> None:
    bench = Bench()
    bench.push("a1", A, 1, 1, 10.0)  # priorities sent step 1 first
    bench.push("b1", B, 1, 1, 10.0)
    assert bench.held() == [0.0] * 4, "a or b may still have something for step 0"
    bench.push("a0", A, 2, 0, 2.0)
    bench.mark(A, B, clock=0)
    assert bench.held() == [-12.0] * 4
    assert [apply.sources[0].buffer.values[0] for apply in bench.applied] == [2.0, 10.0]


def test_pulls_wait_for_their_clock_on_their_own_segments() -> None:
    bench = Bench()
    bench.pull("at once", 0)
    bench.pull("left", 1, (0, 2))
    bench.pull("all", 1)
    bench.push("a", A, 1, 0, 2.0, (0, 2))
    bench.push("b", B, 1, 0, 2.0, (0, 2))
    assert (bench.values("at once"), bench.values("left")) == ([0.0] * 4, [-2.0, -2.0])
    assert bench.status("all") is None
    bench.mark(A, B, clock=0)
    assert bench.values("all") == [-2.0, -2.0, 0.0, 0.0]


def test_a_pull_is_not_let_go_before_all_steps_its_clock_covers_are_applied() -> None:
    bench = Bench()
    for seq, clock in enumerate((0, 1, 2), 1):
        bench.push(f"a{clock}", A, seq, clock, 1.0, last=False)
        bench.mark(A, clock=clock)
    bench.pull("three", 3)
    bench.mark(B, clock=2)
    assert bench.values("three") == [-3.0] * 4


def test_versions_in_answers_count_the_update_they_show() -> None:
    bench = Bench()
    bench.push("a", A, 1, 0)
    bench.push("b", B, 1, 0)
    bench.pull("after", 1)
    assert [bench.said[name][-1].answer.aux for name in ("a", "b", "after")] == [1, 1, 1]


def test_a_worker_that_dies_inside_a_step_leaves_what_it_was_done_with() -> None:
    bench = Bench(members=(A, B, C))
    bench.push("done", C, 1, 0, 8.0, (0, 2))
    bench.push("open", C, 2, 0, 8.0, (2, 4), last=False)
    bench.push("a", A, 1, 0, 2.0)
    bench.push("b", B, 1, 0, 2.0)
    bench.end(C)
    assert bench.held() == [-4.0, -4.0, -2.0, -2.0]
    assert bench.said.keys() == {"done", "a", "b"}
    assert all(buffer.released == 1 for buffer in bench.buffers)
    assert bench.core.parked() == 0


def test_a_mark_keeps_what_its_session_pushed_when_it_dies() -> None:
    bench = Bench()
    bench.push("b", B, 1, 0, 6.0, last=False)
    bench.mark(B, clock=0)
    bench.end(B)
    bench.push("a", A, 1, 0, 2.0)
    assert bench.held() == [-4.0] * 4


def test_a_roster_that_drops_a_living_session_answers_what_it_had_open() -> None:
    bench = Bench()
    bench.push("b", B, 1, 0, 6.0, last=False)
    bench.push("assign", B, 2, 3, 6.0, op="assign")
    bench.roster(A, version=2)
    assert (bench.status("b"), bench.status("assign")) == (Status.LATE, Status.LATE)
    assert bench.core.parked() == 0
    assert all(buffer.released == 1 for buffer in bench.buffers)


def test_a_leaver_is_awaited_by_no_further_step() -> None:
    bench = Bench()
    bench.mark(B, clock=0, leaves=True)
    bench.push("a0", A, 1, 0, 1.0)
    bench.push("a1", A, 2, 1, 1.0)
    assert bench.held() == [-2.0] * 4


def test_a_newcomer_is_taken_in_after_everyone_has_left() -> None:
    bench = Bench()
    bench.push("a", A, 1, 4, 1.0)
    bench.mark(A, B, clock=4, leaves=True)
    assert bench.held() == [-1.0] * 4
    bench.roster(A, B, C, version=2, join={C: 5})
    bench.push("c", C, 1, 5, 1.0)
    assert bench.held() == [-2.0] * 4
    assert bench.status("c") is Status.OK


def test_a_newcomer_is_taken_in_after_everyone_has_died() -> None:
    bench = Bench()
    bench.push("a", A, 1, 2, 4.0)
    bench.pull("survivor", 3)
    bench.end(A)
    bench.end(B)
    assert bench.held() == [-4.0] * 4, "it was done with the step"
    assert bench.values("survivor") == [-4.0] * 4
    assert bench.core.clocks.prepare(9, 1)
    bench.roster(C, version=2, join={C: 9}, settled=1)
    bench.pull("join", 9)
    bench.push("c", C, 1, 9, 1.0)
    assert (bench.status("join"), bench.status("c")) == (Status.OK, Status.OK)


def test_nothing_completes_before_the_roster_has_started() -> None:
    bench = Bench(members=())
    bench.core.clocks.roster = Roster()
    bench.push("a", A, 1, 0)
    bench.mark(A, clock=0)
    assert bench.status("a") is None
    bench.roster(A)
    assert bench.status("a") is Status.OK


def test_a_prepared_step_waits_for_the_roster_and_then_for_the_newcomer() -> None:
    bench = Bench()
    assert bench.core.clocks.prepare(2, 7)
    bench.mark(A, B, clock=1)
    bench.push("a", A, 1, 2, 1.0)
    bench.push("b", B, 1, 2, 1.0)
    bench.mark(A, B, clock=2)
    assert bench.status("a") is None
    bench.roster(A, B, C, version=2, join={C: 2}, settled=7)
    assert bench.status("a") is None
    bench.push("c", C, 1, 2, 4.0)
    assert bench.held() == [-2.0] * 4
    assert not bench.core.clocks.prepare(2, 8), "step 2 has begun"


def test_a_roster_that_settles_something_else_holds_on() -> None:
    bench = Bench(members=(A, B, D))
    assert bench.core.clocks.prepare(1, 7)
    assert bench.core.clocks.prepare(1, 7), "asked twice, answered twice"
    bench.roster(A, B, version=2)  # d has died meanwhile
    bench.push("a", A, 1, 1, 1.0)
    bench.mark(A, B, clock=1)
    assert bench.status("a") is None, "whether c counts in step 1 is not settled"
    assert not bench.core.clocks.prepare(1, 6), "an older proposal"
    bench.roster(A, B, version=3, settled=7)
    assert bench.status("a") is Status.OK


def test_a_roster_older_than_the_known_one_changes_nothing() -> None:
    bench = Bench(members=(A, B))
    bench.roster(A, version=0)
    bench.push("a", A, 1, 0)
    assert bench.status("a") is None


def test_a_roster_that_still_names_an_ended_session_does_not_wait_for_it() -> None:
    bench = Bench()
    bench.end(B)
    bench.roster(A, B, version=2)
    bench.push("a", A, 1, 0)
    assert bench.status("a") is Status.OK


@given(st.permutations([(s, c) for s in (A, B, C) for c in range(3)]), st.data())
def test_the_weights_do_not_depend_on_the_order_of_arrival(order: list[tuple[bytes, int]], data: st.DataObject) -> None:
    """Sessions' own order is kept, as streams keep it; theirs among each other is any; duplicates come in between."""
    bench = Bench(members=(A, B, C))
    clocks = {A: 0, B: 0, C: 0}
    for session, _ in order:
        clock = clocks[session]
        clocks[session] += 1
        gradient = {A: 0.1, B: 1e7, C: -1e7}[session] * (clock + 1)
        bench.push(f"{session!r}{clock}", session, clock + 1, clock, gradient)
        if data.draw(st.booleans()):
            again = data.draw(st.integers(0, clock))
            bench.push("again", session, again + 1, again, 99.0)
    expected = np.zeros(LINE, np.float32)
    for clock in range(3):
        total = np.zeros(LINE, np.float32)
        for unit in (0.1, 1e7, -1e7):
            total += np.float32(unit * (clock + 1))
        expected -= total / np.float32(3)
    assert (bench.weights.reshape(-1, LINE) == expected).all()
    assert all(buffer.released == 1 for buffer in bench.buffers)


def test_tensors_pushed_one_by_one_cost_no_walk_over_all_of_them_each() -> None:
    few, many = _seconds_to_push(250), _seconds_to_push(4000)
    assert many < 64 * few, f"{few:.4f} s for 250, {many:.4f} s for 4,000: 16 times as many"


def _seconds_to_push(segments: int) -> float:
    tensors = tuple(TensorSpec(f"t{i}", (LINE,)) for i in range(segments))
    block = GroupLayout(1, "float32", tensors, segments * LINE, 1).blocks[0]
    core = ShareCore(Consistency.parse("bsp"), [block])
    core.blocks[0].present[:] = [True] * segments
    core.set_roster(Roster(1, True, (Member(A, 0, 0), Member(B, 1, 0))))
    begun = time.perf_counter()
    for session in (A, B):
        for seg in range(segments):
            core.push(Push(("link", ""), session, seg + 1, 0, 0, seg, seg + 1, object()))
    spent = time.perf_counter() - begun
    assert core.blocks[0].applied == [1] * segments
    return spent


def test_segments_are_complete_and_read_one_by_one_while_nobody_has_closed_their_step() -> None:
    bench = Bench()
    bench.push("a0", A, 1, 0, 1.0, (2, 4))
    bench.pull("next", 1, (2, 4))
    bench.push("b0", B, 1, 0, 3.0, (2, 4))
    assert bench.values("a0") == bench.values("next") == [-2.0, -2.0]
    assert bench.core.clocks.closed_min == 0
    bench.pull("other", 1, (0, 2))
    assert bench.status("other") is None
    bench.push("a1", A, 2, 0, 1.0, (0, 2), last=False)
    bench.push("a2", A, 3, 0, 1.0, (0, 2))
    bench.push("b1", B, 2, 0, 2.0, (0, 2))
    assert bench.values("other") == [-2.0, -2.0]


def test_of_a_worker_that_dies_between_its_last_pushes_a_segment_has_the_whole_step_or_nothing() -> None:
    bench = Bench()
    bench.push("whole", A, 1, 0, 1.0, (0, 1), last=False)
    bench.push("whole", A, 2, 0, 1.0, (0, 1))
    bench.push("half", A, 3, 0, 8.0, (1, 2), last=False)
    bench.end(A)
    bench.push("b", B, 1, 0, 4.0)
    assert bench.held() == [-3.0, -4.0, -4.0, -4.0]
    assert bench.status("b") is Status.OK
    assert [buffer.released for buffer in bench.buffers] == [1] * 4
