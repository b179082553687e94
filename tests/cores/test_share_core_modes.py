"""Another mode from a step on, in one share: each push is treated as its own step's mode says, whenever it comes."""

from __future__ import annotations

from tests.cores.bench import A, B, Bench
from windlass_proto.consistency import Consistency
from windlass_proto.frames import Status
from windlass_proto.step_modes import ModeChange
from windlass_server.share_core import Roster
from windlass_server.share_events import Member


def change(bench: Bench, *modes: tuple[int, str], settled: int = 9, stamp: int | None = None) -> None:
    changes = tuple(ModeChange(clock, Consistency.parse(mode), stamp) for clock, mode in modes)
    members = (Member(A, 0, 0), Member(B, 1, 0))
    bench.carry_out(bench.core.set_roster(Roster(settled, True, members, settled, changes)))


def test_what_belongs_to_a_step_whose_mode_is_being_agreed_is_sent_away_and_comes_again() -> None:
    bench = Bench("asp")
    assert bench.core.clocks.prepare(1, 9, mode=True)
    bench.push("a0", A, 1, 0)
    bench.push("a1", A, 2, 1, 5.0)
    assert (bench.status("a0"), bench.status("a1")) == (Status.OK, Status.RETRY)
    assert bench.held() == [-1.0] * 4
    change(bench, (1, "bsp"))
    bench.push("a1", A, 2, 1, 5.0)
    bench.push("b0", B, 1, 0)
    bench.mark(A, clock=1)
    assert bench.held() == [-2.0] * 4, "a push of an earlier step is applied on arrival"
    bench.push("b1", B, 2, 1, 7.0)
    bench.mark(B, clock=1)
    assert bench.held() == [-8.0] * 4, "the first bsp step is the mean of both"


def test_a_pull_beyond_the_step_in_question_waits_for_the_decision() -> None:
    bench = Bench("asp")
    assert bench.core.clocks.prepare(1, 9, mode=True)
    bench.pull("before", 1)
    bench.pull("beyond", 2)
    assert (bench.status("before"), bench.status("beyond")) == (Status.OK, None)
    change(bench, (1, "bsp"))
    assert bench.status("beyond") is None, "step 1 is a bsp step, and nobody has closed it"
    bench.mark(A, B, clock=1)
    assert bench.status("beyond") is Status.OK


def test_a_parked_pull_is_answered_when_its_steps_mode_lets_it() -> None:
    bench = Bench("ssp:0")
    bench.mark(A, clock=1)
    bench.pull("read", 2)
    assert bench.status("read") is None
    change(bench, (1, "asp"))
    assert bench.status("read") is Status.OK


def test_steps_before_the_change_are_bsp_to_their_end() -> None:
    bench = Bench("bsp")
    bench.push("a0", A, 1, 0)
    change(bench, (1, "asp"))
    assert bench.status("a0") is None
    bench.mark(A, clock=0)
    bench.push("a1", A, 2, 1, 10.0)
    assert bench.held() == [-10.0] * 4
    bench.push("b0", B, 1, 0, 3.0)
    assert bench.held() == [-12.0] * 4


def test_what_was_folded_into_a_step_that_is_asp_now_is_applied() -> None:
    bench = Bench("bsp:k=1,late=fold")
    bench.push("a0", A, 1, 0, 0.0)
    bench.push("b0", B, 1, 0, 6.0)
    bench.mark(A, clock=0)
    change(bench, (1, "asp"))
    assert bench.held() == [-6.0] * 4
    assert all(buffer.released == 1 for buffer in bench.buffers)


def test_no_step_of_the_mode_is_applied_without_the_hyper_parameters_that_came_with_it() -> None:
    bench = Bench("bsp")
    change(bench, (1, "asp"), stamp=5)
    bench.push("a0", A, 1, 0)
    bench.push("b0", B, 1, 0)
    bench.mark(A, B, clock=0)
    bench.push("a1", A, 2, 1)
    bench.push("a2", A, 3, 2, stamp=7)
    assert [apply.stamp for apply in bench.applied] == [0, 5, 7]


def test_a_vote_for_a_clock_that_has_begun_is_refused() -> None:
    bench = Bench("asp")
    bench.push("a3", A, 1, 3)
    assert not bench.core.clocks.prepare(3, 9, mode=True)
    assert bench.core.clocks.prepare(4, 10, mode=True)
