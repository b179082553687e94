"""bsp:k=K: the first K of the roster complete a step, later ones are told so, and what becomes of what they pushed.

Claims of Chen et al., "Revisiting distributed synchronous SGD" (arXiv:1604.00981), section 3: of N + b workers the
first N gradients are averaged, the b slowest are dropped.
"""

from __future__ import annotations

import pytest

from tests.cores.bench import A, B, Bench, C, D
from windlass_proto.frames import Status


def test_the_first_k_complete_a_step_and_its_mean_is_over_them() -> None:
    bench = Bench("bsp:k=2", members=(A, B, C))
    bench.push("c", C, 1, 0, 5.0)
    assert bench.status("c") is None
    bench.push("a", A, 1, 0, 1.0)
    assert (bench.status("a"), bench.status("c")) == (Status.OK, Status.OK)
    assert bench.held() == [-3.0] * 4


def test_a_late_push_is_acknowledged_counted_and_dropped_with_present_values_and_the_open_step() -> None:
    bench = Bench("bsp:k=2", members=(A, B, C))
    for clock in range(3):
        bench.push("a", A, clock + 1, clock)
        bench.push("b", B, clock + 1, clock)
    bench.push("c", C, 1, 0, 100.0)
    assert bench.status("c") is Status.LATE
    assert bench.values("c") == [-3.0] * 4
    assert bench.said["c"][-1].answer.aux == 3, "the step that is open now, which its worker goes on with"
    assert bench.held() == [-3.0] * 4
    assert bench.core.tallies.late_steps == {C: 1}
    assert [buffer.released for buffer in bench.buffers] == [1] * 7


def test_a_late_push_that_is_sent_again_is_told_the_same() -> None:
    bench = Bench("bsp:k=1", members=(A, B))
    bench.push("a", A, 1, 0)
    bench.push("b", B, 1, 0)
    bench.push("b", B, 1, 0)
    assert [said.status for said in bench.said["b"]] == [Status.LATE, Status.LATE]
    assert bench.core.tallies.late == 1


def test_a_late_worker_that_goes_on_with_the_open_step_takes_part_again() -> None:
    bench = Bench("bsp:k=2", members=(A, B, C))
    for clock in range(3):
        bench.push("a", A, clock + 1, clock)
        bench.push("b", B, clock + 1, clock)
    bench.push("c", C, 1, 0)
    bench.push("c3", C, 2, 3, 7.0)
    bench.push("a3", A, 4, 3, 1.0)
    assert bench.status("c3") is Status.OK
    assert bench.held() == [-7.0] * 4


@pytest.mark.parametrize("needed", [3, 9])
def test_with_k_of_all_or_more_it_is_bsp(needed: int) -> None:
    bench = Bench(f"bsp:k={needed}", members=(A, B, C))
    bench.push("a", A, 1, 0)
    bench.push("b", B, 1, 0)
    assert bench.status("a") is None
    bench.push("c", C, 1, 0, 4.0)
    assert bench.status("a") is Status.OK
    assert bench.held() == [-2.0] * 4


def test_different_segments_may_have_different_first_workers() -> None:
    bench = Bench("bsp:k=2", members=(A, B, C))
    bench.push("a0", A, 1, 0, 1.0, segs=(0, 2))
    bench.push("b1", B, 1, 0, 2.0, segs=(2, 4))
    bench.push("c0", C, 1, 0, 3.0, segs=(0, 2))
    bench.push("c1", C, 2, 0, 4.0, segs=(2, 4))
    assert bench.held() == [-2.0, -2.0, -3.0, -3.0]
    bench.push("a1", A, 2, 0, 9.0, segs=(2, 4))
    assert bench.status("a1") is Status.LATE


def test_marks_of_k_complete_a_step_with_what_they_pushed() -> None:
    bench = Bench("bsp:k=2", members=(A, B, C))
    bench.push("a", A, 1, 0, 6.0, last=False)
    bench.mark(A, clock=0)
    assert bench.status("a") is None
    bench.mark(B, clock=0)
    assert bench.status("a") is Status.OK
    assert bench.held() == [-6.0] * 4


def test_a_pull_waits_for_the_step_closed_last_and_so_for_k_workers() -> None:
    bench = Bench("bsp:k=2", members=(A, B, C))
    bench.mark(A, clock=0)
    bench.pull("read", 1)
    assert bench.status("read") is None
    bench.mark(C, clock=0)
    assert bench.status("read") is Status.OK


def test_who_dies_or_leaves_is_not_one_of_the_k() -> None:
    bench = Bench("bsp:k=2", members=(A, B, C))
    bench.push("a", A, 1, 0)
    bench.end(B)
    assert bench.status("a") is None
    bench.mark(C, clock=0, leaves=True)
    assert bench.status("a") is Status.OK, "of one worker left, one is needed"


def test_a_newcomer_is_one_of_the_k_from_its_first_step_on() -> None:
    bench = Bench("bsp:k=1", members=(A,))
    bench.roster(A, B, version=2, join={B: 2})
    assert bench.core.clocks.closed_min == 0, "steps before the newcomer's are not closed by it"
    for clock in range(2):
        bench.push(f"a{clock}", A, clock + 1, clock)
        assert bench.status(f"a{clock}") is Status.OK
    bench.push("b", B, 1, 2)
    assert bench.status("b") is Status.OK
    bench.push("a2", A, 3, 2)
    assert bench.status("a2") is Status.LATE


def test_a_held_step_does_not_complete_before_the_newcomer_is_in() -> None:
    bench = Bench("bsp:k=1", members=(A, B))
    assert bench.core.clocks.prepare(1, 7)
    bench.push("a0", A, 1, 0)
    bench.mark(A, clock=0)
    bench.push("a1", A, 2, 1)
    bench.mark(A, clock=1)
    assert (bench.status("a0"), bench.status("a1")) == (Status.OK, None)
    bench.roster(A, B, C, version=2, join={C: 1}, settled=7)
    assert bench.status("a1") is Status.OK


def test_a_folded_push_is_a_contribution_of_its_own_to_the_open_step() -> None:
    bench = Bench("bsp:k=2,late=fold", members=(A, B, C))
    bench.push("a", A, 1, 0, 1.0)
    bench.push("b", B, 1, 0, 1.0)
    bench.push("c", C, 1, 0, 10.0)
    assert bench.status("c") is Status.LATE
    assert bench.values("c") == [-1.0] * 4, "it is answered at once, before it is applied"
    bench.push("c1", C, 2, 1, 4.0)
    bench.push("a1", A, 2, 1, 1.0)
    assert bench.held() == [-1.0 - (10.0 + 4.0 + 1.0) / 3] * 4, "the mean is over three contributions of two workers"
    assert bench.core.tallies.late_steps == {C: 1}


def test_two_late_pushes_of_one_step_are_one_contribution() -> None:
    bench = Bench("bsp:k=1,late=fold", members=(A, B))
    bench.push("a", A, 1, 0, 0.0)
    bench.push("b", B, 1, 0, 2.0, last=False)
    bench.push("c", B, 2, 0, 4.0)
    bench.push("a1", A, 2, 1, 0.0)
    assert bench.held() == [-3.0] * 4


def test_a_folded_push_is_applied_although_its_worker_dies() -> None:
    bench = Bench("bsp:k=1,late=fold", members=(A, B))
    bench.push("a", A, 1, 0, 0.0)
    bench.push("b", B, 1, 0, 8.0)
    bench.end(B)
    bench.push("a1", A, 2, 1, 0.0)
    assert bench.held() == [-4.0] * 4
    assert all(buffer.released == 1 for buffer in bench.buffers)


def test_what_was_folded_last_is_applied_when_the_last_worker_leaves() -> None:
    bench = Bench("bsp:k=1,late=fold", members=(A, B))
    bench.push("a", A, 1, 0, 0.0)
    bench.push("b", B, 1, 0, 8.0)
    bench.mark(A, clock=0, leaves=True)
    bench.mark(B, clock=0, leaves=True)
    assert bench.held() == [-8.0] * 4
    assert all(buffer.released == 1 for buffer in bench.buffers)


def test_late_values_that_are_not_finite_are_not_folded() -> None:
    bench = Bench("bsp:k=1,late=fold", members=(A, B))
    bench.push("a", A, 1, 0, 1.0)
    bench.push("b", B, 1, 0, 8.0, finite=False)
    bench.push("a1", A, 2, 1, 1.0)
    assert bench.held() == [-2.0] * 4


def test_a_late_contribution_does_not_hold_up_the_step_that_it_was_not_done_with() -> None:
    bench = Bench("bsp:k=3", members=(A, B, C, D))
    for session in (A, B, C):
        bench.push(session.decode()[0], session, 1, 0)
    bench.push("d", D, 1, 0)
    for session in (A, B, D):
        bench.push(session.decode()[0] + "1", session, 2, 1)
    assert bench.status("d1") is Status.OK
