"""What a ratio and a goal say: the direction is what a reader relies on, and what a slip would invert."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.contest import Goal, best_of_each, outcome, references
from benchmarks.course import summary
from benchmarks.rounds import Figure, percentile
from benchmarks.windlass_fleet import assignments


def figure(contender: str, seconds: float, *, cpu_s_per_gb: float = 1.0, small: bool = False) -> Figure:
    """Three equal rounds of exchanges of 1 GB that take `seconds` each."""
    return Figure(
        contender=contender,
        seconds_p50=seconds,
        seconds_p99=seconds,
        seconds_of_rounds=(seconds,) * 3,
        speed_of_rounds=(1 / seconds,) * 3,
        cpu_s_per_gb=cpu_s_per_gb,
        by_time=small,
        exchanges=3,
    )


@pytest.mark.parametrize("small", [True, False])
def test_the_faster_one_is_more_times_as_fast(small: bool) -> None:
    quick, slow = figure("windlass tcp own", 0.5, small=small), figure("mxnet dist_sync", 2.0, small=small)
    assert quick.times_as_fast_as(slow) == pytest.approx(4.0)
    assert slow.times_as_fast_as(quick) == pytest.approx(0.25)


def test_a_ratio_is_taken_within_rounds_so_that_a_slow_round_slows_both() -> None:
    ours = dataclasses.replace(figure("windlass tcp own", 1.0), speed_of_rounds=(4.0, 0.4, 4.0))
    its = dataclasses.replace(figure("mxnet dist_sync", 1.0), speed_of_rounds=(2.0, 0.2, 2.0))
    assert ours.times_as_fast_as(its) == pytest.approx(2.0)


@pytest.mark.parametrize(("seconds", "met"), [(0.39, True), (0.41, False)])
def test_a_speed_goal_is_met_from_its_ratio_on(seconds: float, met: bool) -> None:
    goal = Goal("windlass tcp", "mxnet", 2.5)
    assert outcome(goal, figure("windlass tcp own", seconds), figure("mxnet dist_sync", 1.0)).met is met


@pytest.mark.parametrize(("cpu_s_per_gb", "met"), [(0.24, True), (0.26, False)])
def test_a_processor_goal_wants_less_not_more(cpu_s_per_gb: float, met: bool) -> None:
    goal = Goal("windlass", "mxnet", 4.0, "cpu")
    ours = figure("windlass tcp own", 1.0, cpu_s_per_gb=cpu_s_per_gb)
    assert outcome(goal, ours, figure("mxnet dist_sync", 1.0)).met is met


def test_of_a_peer_with_two_modes_the_faster_one_is_compared_with() -> None:
    fast, slow = figure("mxnet dist_async", 1.0), figure("mxnet dist_sync", 3.0)
    assert best_of_each([slow, fast])["mxnet"] is fast
    assert best_of_each([fast, slow])["mxnet"] is fast


def test_a_link_is_compared_with_its_own_floor_alone() -> None:
    floors = [figure(f"floor: {name}", 0.1) for name in ("framed echo tcp", "framed echo unix", "memcpy")]
    best = best_of_each([*floors, figure("mxnet dist_sync", 1.0), figure("windlass tcp own", 0.2)])
    assert set(references("windlass tcp own", best)) == {"framed echo tcp", "mxnet"}
    assert set(references("windlass shm arena", best)) == {"memcpy", "mxnet"}


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert percentile([1.0], 0.99) == 1.0


def test_a_goal_never_reached_has_no_time() -> None:
    course = {"after_epochs": [[1.0, 0.90], [2.0, 0.96]], "samples": 100}
    assert summary(course, 0.97) == {"samples_per_s": 50.0, "accuracy": 0.96}
    assert summary(course, 0.95)["to_accuracy_s"] == 2.0


def test_launcher_variables_are_read_as_a_shell_would() -> None:
    printed = "# for eval\nexport WINDLASS_SCHEDULER=127.0.0.1:5000\nexport WINDLASS_TOKEN_FILE='/run/a b/token'\n"
    assert assignments(printed) == {
        "WINDLASS_SCHEDULER": "127.0.0.1:5000",
        "WINDLASS_TOKEN_FILE": "/run/a b/token",
    }
