"""Steps that are reduced: complete, but waiting for norms over blocks that lie elsewhere."""

from __future__ import annotations

from tests.cores.bench import A, B, Bench, C
from windlass_proto.frames import Status
from windlass_server.reducing import Phases, Span
from windlass_server.share_events import LEFT

EDGES: Phases = ((Span(10, 0, 1), Span(13, 3, 4)),)
GROUP: Phases = ((Span(9, 0, 4),),)


def test_what_comes_late_for_a_step_that_is_reduced_is_answered_so() -> None:
    bench = Bench(phases=EDGES)
    bench.push("a", A, 1, 0)
    bench.push("b", B, 1, 0)
    bench.push("c", C, 1, 0, segs=(0, 1), values=False)
    assert bench.status("c") is Status.LATE
    bench.push("c next", C, 2, 1, segs=(0, 1))
    assert bench.status("c next") is None
    bench.total(10, 0, 0, 1.0)
    bench.total(13, 0, 0, 1.0)
    assert bench.held() == [-1.0] * 4
    assert bench.values("a") == bench.values("b") == [-1.0] * 4


def test_a_push_that_comes_twice_while_its_step_is_reduced_is_answered_once_where_it_is_asked_last() -> None:
    bench = Bench(phases=GROUP, members=(A,))
    bench.push("a", A, 1, 0, 2.0, connection="old")
    bench.core.drop_origin("old")
    bench.push("a again", A, 1, 0, 2.0, connection="new")
    bench.total(9, 0, 0, 0.5)
    assert bench.status("a") is None
    assert bench.values("a again") == [-1.0] * 4
    assert [buffer.released for buffer in bench.buffers] == [1, 1]


def test_a_session_that_ends_while_its_step_is_reduced_has_contributed() -> None:
    bench = Bench(phases=GROUP)
    bench.push("a", A, 1, 0, 2.0)
    bench.push("b", B, 1, 0, 4.0)
    bench.roster(A, version=2)
    bench.end(B)
    bench.total(9, 0, 0, 1.0)
    assert bench.held() == [-3.0] * 4
    assert bench.status("a") is Status.OK
    assert all(buffer.released == 1 for buffer in bench.buffers)


def test_gradients_are_summed_in_the_order_they_were_measured_in_whatever_the_roster_says_since() -> None:
    bench = Bench(phases=GROUP)
    bench.push("a", A, 1, 0, 2.0)
    bench.push("b", B, 1, 0, 4.0)
    bench.roster(B, A, version=2)
    bench.total(9, 0, 0, 1.0)
    measured, applied = (
        [source.buffer.name for source in part.sources] for part in (bench.measured[0].parts[0], bench.applied[0])
    )
    assert measured == applied == ["a", "b"]


def test_steps_that_bring_nothing_are_spoken_for_once_they_are_closed_and_none_before_it_is_taken() -> None:
    bench = Bench(phases=GROUP, members=(A,))
    bench.mark(A, clock=0)
    assert bench.settled == [(9, 1)]
    bench.push("a1", A, 1, 1)
    for clock in (1, 2, 3):
        bench.mark(A, clock=clock)
    assert bench.settled == [(9, 1)], "step 1 is being reduced"
    bench.total(9, 1, 0, 1.0)
    assert bench.settled == [(9, 1), (9, 4)]
    bench.push("a6", A, 2, 6)
    bench.mark(A, clock=6)
    bench.total(9, 6, 0, 1.0)
    assert bench.settled == [(9, 1), (9, 4)], "a partial speaks for the steps before it as well"
    assert [measure.clock for measure in bench.measured] == [1, 6]


def test_closed_steps_behind_one_that_is_reduced_follow_it_in_order_before_anything_is_read() -> None:
    bench = Bench(phases=GROUP, members=(A,))
    for clock in range(4):
        if clock != 1:
            bench.push(f"a{clock}", A, len(bench.buffers) + 1, clock, 1.0, values=False, last=False)
        bench.mark(A, clock=clock)
    bench.pull("p", 4)
    for clock in (0, 2, 3):
        assert bench.status("p") is None
        assert bench.measured[-1].clock == clock
        bench.total(9, clock, 0, 1.0)
    assert bench.values("p") == [-3.0] * 4


def test_a_block_waits_for_all_its_segments_before_it_measures_a_group() -> None:
    bench = Bench(phases=GROUP)
    for session in (A, B):
        bench.push("first", session, 1, 0, segs=(0, 2))
    bench.mark(A, clock=0)
    assert bench.measured == []
    bench.push("rest", B, 2, 0, 5.0, segs=(2, 3))
    bench.mark(B, clock=0)
    assert [(part.seg_begin, part.seg_end) for part in bench.measured[0].parts] == [(0, 2), (2, 3)]
    assert bench.measured[0].parts[1].divisor == 1.0


def test_weights_of_nothing_are_no_contribution_to_a_norm() -> None:
    bench = Bench(phases=GROUP, members=(A,))
    bench.push("a", A, 1, 0, weight=0.0)
    bench.mark(A, clock=0)
    assert (bench.measured, bench.settled) == ([], [(9, 1)])
    assert bench.status("a") is Status.OK


def test_a_deleted_tensor_speaks_for_all_steps_and_its_group_goes_on() -> None:
    bench = Bench(phases=EDGES, members=(A,))
    bench.push("a", A, 1, 0)
    bench.carry_out(bench.core.drop(0, 0, 1))
    assert bench.settled == [(10, LEFT)]
    assert bench.status("a") is None
    bench.total(10, 0, 0, 7.0)
    bench.total(13, 0, 0, 1.0)
    assert bench.status("a") is Status.OK
    assert bench.held() == [0.0, -1.0, -1.0, -1.0]


def test_uneven_update_counts_are_measured_and_applied_alike() -> None:
    bench = Bench(phases=GROUP, members=(A,))
    bench.push("a", A, 1, 0, segs=(0, 2))
    bench.mark(A, clock=0)
    bench.total(9, 0, 0, 1.0)
    bench.push("b", A, 2, 1, 1.0)
    assert [(part.seg_begin, part.seg_end, part.update) for part in bench.measured[1].parts] == [(0, 2, 2), (2, 4, 1)]
    bench.total(9, 1, 0, 2.0)
    assert [(*apply[:3], apply.update) for apply in bench.applied[1:]] == [
        (*part[:3], part.update) for part in bench.measured[1].parts
    ]
    assert bench.held() == [-3.0, -3.0, -2.0, -2.0]


def test_a_block_says_of_a_tensor_that_a_step_is_over_while_the_group_of_a_later_step_is_reduced() -> None:
    """Else the group's total of step 1 waits for step 0 elsewhere, and step 0 there for this tensor."""
    bench = Bench(phases=((Span(9, 0, 4),), (Span(12, 2, 3),)))
    bench.mark(B, clock=0)
    bench.push("b1", B, 1, 1, segs=(2, 3))
    bench.mark(B, clock=1)
    assert bench.settled == []
    bench.end(A)
    assert bench.settled == [(12, 1)]
    assert [(measure.scope, measure.clock) for measure in bench.measured] == [(9, 1)]
    bench.total(9, 1, 0, 1.0)
    assert [(measure.scope, measure.clock) for measure in bench.measured] == [(9, 1), (12, 1)]


def test_a_step_that_waits_behind_a_neighbours_total_is_not_overtaken_and_not_read_past() -> None:
    bench = Bench(phases=GROUP, members=(A,))
    bench.push("a0", A, 1, 0, segs=(3, 4), last=False)
    bench.mark(A, clock=0)
    bench.push("a1", A, 2, 1, last=False)
    bench.mark(A, clock=1)
    bench.push("a2", A, 3, 2, segs=(0, 1), last=False)
    bench.mark(A, clock=2)
    bench.pull("p", 2, segs=(0, 1))
    assert bench.status("p") is None, "step 1 is closed, but waits for segment 3"
    for clock in (0, 1, 2):
        assert [measure.clock for measure in bench.measured] == list(range(clock + 1))
        bench.total(9, clock, 0, 1.0)
    assert bench.values("p") == [-1.0]
    assert bench.held() == [-2.0, -1.0, -1.0, -2.0]


def test_values_that_go_with_a_late_answer_are_those_after_its_step() -> None:
    bench = Bench("bsp:k=1", phases=GROUP)
    bench.push("a", A, 1, 0, 2.0)
    bench.push("b", B, 1, 0, 4.0, connection="old")
    assert bench.status("b") is None
    bench.push("b again", B, 1, 0, 4.0)
    bench.total(9, 0, 0, 1.0)
    assert bench.said["b again"][0].status is Status.LATE
    assert bench.values("b again") == [-2.0] * 4
    assert bench.said["b again"][0].answer.aux == 1
    bench.push("b once more", B, 1, 0, 4.0)
    assert bench.said["b once more"][0].status is Status.LATE


def test_a_step_that_was_closed_behind_one_that_is_reduced_is_applied_although_who_closed_it_has_died() -> None:
    bench = Bench("bsp:k=1", phases=GROUP, members=(A, B, C))
    bench.push("a", A, 1, 0, 2.0)
    bench.push("c", C, 1, 1, 4.0, last=False)
    bench.mark(C, clock=1)
    bench.end(C)
    bench.total(9, 0, 0, 1.0)
    bench.total(9, 1, 0, 1.0)
    assert bench.held() == [-6.0] * 4
