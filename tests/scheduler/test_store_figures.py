"""What servers report of a store, merged; and the straggler in words."""

from __future__ import annotations

from windlass_proto.gen import control_pb2 as pb
from windlass_scheduler import store_figures
from windlass_scheduler.roster import Roster, RosterMember
from windlass_scheduler.store_figures import Reported

A, B = b"a" * 16, b"b" * 16
ROSTER = Roster(3, "job", "model", members=(RosterMember(A, 0, 0, "one"), RosterMember(B, 1, 0, "two")), started=True)


def reported(at_s: float, *workers: pb.WorkerSteps, **lags: int) -> Reported:
    counted = [pb.Staleness(lag=int(lag[1:]), pushes=pushes) for lag, pushes in lags.items()]
    return Reported({3: pb.StoreFigures(store_id=3, staleness=counted, workers=workers)}, at_s)


def test_staleness_is_added_up_over_servers() -> None:
    reports = [reported(0.0, _0=5, _2=1), reported(0.0, _0=1, _64=2), Reported()]
    merged = store_figures.staleness(reports, 3)
    assert [(bucket.lag, bucket.pushes) for bucket in merged] == [(0, 6), (2, 1), (64, 2)]


def test_of_steps_every_server_counts_all_so_the_most_is_taken() -> None:
    reports = [
        reported(9.0, pb.WorkerSteps(session=B, clock=7, last=4, waited_s=2.5, awaited_s=1.0, late_steps=1)),
        reported(8.0, pb.WorkerSteps(session=B, clock=8, last=3, waited_s=2.0, awaited_s=0.5, late_steps=2)),
    ]
    first, second = store_figures.workers(reports, ROSTER, {A: 9, B: 3}, 10.0)
    assert (first.rank, first.host, first.clock, first.last) == (0, "one", 9, 0)
    assert (second.clock, second.last, second.waited_s, second.late_steps) == (8, 4, 2.5, 2)
    assert second.awaited_s == 2.5, "the older report says since when, and has aged by two seconds"


def test_a_member_that_left_the_roster_is_left_out() -> None:
    gone = reported(0.0, pb.WorkerSteps(session=b"c" * 16, last=100))
    assert [worker.rank for worker in store_figures.workers([gone], ROSTER, {}, 0.0)] == [0, 1]


def test_who_is_waited_for_is_said_with_host_and_clock() -> None:
    waited = pb.WorkerSteps(rank=1, host="two", clock=41, awaited_s=12.4)
    (sentence,) = store_figures.in_words("model", "job", [pb.WorkerSteps(), waited])
    assert sentence == "store model has waited 12 s for worker rank 1 (job job) on two, at clock 41"


def test_the_straggler_is_named_once_it_was_the_last_of_most_steps() -> None:
    quick = pb.WorkerSteps(rank=0, host="one", last=4, waited_s=0.1)
    slow = pb.WorkerSteps(rank=1, host="two", last=16, waited_s=30.0)
    (sentence,) = store_figures.in_words("model", "job", [quick, slow])
    assert "worker rank 1 (job job) on two was the last in 16 of 20 steps" in sentence
    assert "waited 30 s" in sentence
    even = pb.WorkerSteps(rank=0, host="one", last=16, waited_s=30.0)
    assert not list(store_figures.in_words("model", "job", [even, slow]))
