"""Jobs without workers: kept for a time, then forgotten by every core, so that the next of the name begins afresh."""

from __future__ import annotations

from windlass_scheduler.effects import Persist
from windlass_scheduler.jobs_core import JobOver, Jobs, Tick, WorkersChanged


def test_a_job_is_over_when_nobody_came_back_in_time() -> None:
    jobs = Jobs(keep_s=60.0)
    jobs.step(WorkersChanged(0.0, "a", 2))
    jobs.step(WorkersChanged(10.0, "a", 1))
    assert jobs.kept_s("a", 500.0) is None
    jobs.step(WorkersChanged(500.0, "a", 0))
    assert jobs.step(Tick(559.9)) == []
    assert jobs.kept_s("a", 530.0) == 30.0
    assert jobs.step(Tick(560.0)) == [JobOver("a")]
    assert jobs.step(Tick(1000.0)) == []
    assert jobs.kept_s("a", 1000.0) is None


def test_who_comes_back_in_time_finds_the_job_and_the_time_begins_anew() -> None:
    jobs = Jobs(keep_s=60.0)
    jobs.step(WorkersChanged(0.0, "a", 0))
    jobs.step(WorkersChanged(59.0, "a", 1))
    assert jobs.step(Tick(100.0)) == []
    jobs.step(WorkersChanged(100.0, "a", 0))
    jobs.step(WorkersChanged(120.0, "a", 0))  # said twice, counted from the first
    assert jobs.step(Tick(159.0)) == []
    assert jobs.step(Tick(160.0)) == [JobOver("a")]


def test_jobs_do_not_wait_for_each_other() -> None:
    jobs = Jobs(keep_s=10.0)
    for at, job in ((0.0, "a"), (5.0, "b")):
        jobs.step(WorkersChanged(at, job, 0))
    assert jobs.step(Tick(10.0)) == [JobOver("a")]
    assert jobs.step(Tick(15.0)) == [JobOver("b")]


def test_a_restarted_scheduler_keeps_what_it_finds_for_the_whole_time() -> None:
    jobs = Jobs(keep_s=10.0)
    jobs.restore(1000.0, ["a"], {})
    assert jobs.step(Tick(1009.0)) == []
    assert jobs.step(Tick(1010.0)) == [JobOver("a")]


def test_a_restarted_scheduler_knows_which_stores_are_gone() -> None:
    jobs = Jobs(keep_s=10.0)
    jobs.free([3])
    (stored,) = jobs.free([4, 9])
    assert isinstance(stored, Persist)
    assert stored.record is not None
    again = Jobs(keep_s=10.0)
    again.restore(1000.0, [], {stored.key: stored.record})
    assert list(again.freed) == [3, 4, 9]
