"""One load, all contenders of a field: figures become rows with ratios and goals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.contender import Field
from benchmarks.load import Load
from benchmarks.report import GoalOutcome, Row
from benchmarks.rounds import Figure, Pace, compare

OURS = "windlass"
SAME_STREAMS = "floor: same streams"  # of an update rule
FLOOR_OF_LINK = {"tcp": "floor: framed echo tcp", "unix": "floor: framed echo unix", "shm": "floor: memcpy"}


@dataclass(frozen=True, slots=True)
class Goal:
    """`ours` (the beginning of a contender's name) shall be this many times as good as `against`."""

    ours: str
    against: str
    at_least: float
    what: Literal["speed", "cpu"] = "speed"


def contest(
    case: str,
    setting: str,
    field: Field,
    load: Load,
    pace: Pace,
    goals: Sequence[Goal] = (),
    moved_bytes: int | None = None,
) -> Iterator[Row]:
    """Measure the field under `load`; a row for each contender, and for each that could not be measured."""
    figures = compare(field, load, pace, moved_bytes)
    best = best_of_each(figures)
    for figure in figures:
        ours = figure.contender.startswith(OURS)
        others = references(figure.contender, best) if ours else {}
        yield Row(
            case,
            setting,
            figure.contender,
            figures_of(figure),
            {name: figure.times_as_fast_as(other) for name, other in others.items()},
            tuple(
                outcome(goal, figure, others[goal.against])
                for goal in goals
                if figure.contender.startswith(goal.ours) and goal.against in others
            ),
        )
    for contender, why in field.not_measured.items():
        yield Row(case, setting, contender, not_measured=why)


def best_of_each(figures: Sequence[Figure]) -> Mapping[str, Figure]:
    """The fastest of each family (MXNet has two modes), by the family's first word or the floor's name."""
    best: dict[str, Figure] = {}
    for figure in figures:
        name = figure.contender if figure.contender.startswith("floor") else figure.contender.split()[0]
        if name not in best or figure.times_as_fast_as(best[name]) > 1:
            best[name] = figure
    return best


def references(contender: str, best: Mapping[str, Figure]) -> dict[str, Figure]:
    """What a windlass row is compared with: every peer, and the floor of its own link."""
    link = contender.split()[1]
    floor = FLOOR_OF_LINK.get(link)
    return {
        name.removeprefix("floor: "): figure
        for name, figure in best.items()
        if name != OURS and (not name.startswith("floor") or name in (floor, SAME_STREAMS))
    }


def figures_of(figure: Figure) -> dict[str, float]:
    times = {"p50_s": figure.seconds_p50, "p99_s": figure.seconds_p99}
    if figure.by_time:
        return times
    return {**times, "gb_per_s": figure.gb_per_s, "cpu_s_per_gb": figure.cpu_s_per_gb}


def outcome(goal: Goal, figure: Figure, other: Figure) -> GoalOutcome:
    """Whether `figure` is as much better than `other` as the goal asks."""
    if goal.what == "cpu":
        ratio = figure.cpu_s_per_gb / other.cpu_s_per_gb if other.cpu_s_per_gb else float("inf")
        text = f"CPU a GB <= {1 / goal.at_least:.3g} of {goal.against}, is {ratio:.3g}"
        return GoalOutcome(text, ratio <= 1 / goal.at_least)
    ratio = figure.times_as_fast_as(other)
    return GoalOutcome(f">= {goal.at_least:.3g}x {goal.against}, is {ratio:.3g}x", ratio >= goal.at_least)
