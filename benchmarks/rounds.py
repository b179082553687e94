"""Rounds that take the contenders in turn (A B A B), so that a noisy machine is noisy for all of them.

A round lasts about `round_s` for each contender. Of a round counts the median exchange and the throughput of
the whole; of a contender the median of its rounds. Percentiles are taken over the exchanges of all rounds.
A contender that fails is given up with its reason; the others go on.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.child import NotMeasuredError
from benchmarks.contender import Contender, Field
from benchmarks.load import Load, Timing

COUNT_MAX = 5_000
SMALL_BYTES = 1 << 20  # below, a ratio compares times; from here on, throughput


@dataclass(frozen=True, slots=True)
class Pace:
    """How long to measure."""

    rounds: int
    round_s: float


FULL = Pace(rounds=7, round_s=0.5)
QUICK = Pace(rounds=2, round_s=0.05)


@dataclass(frozen=True, slots=True)
class Figure:
    """One contender under one load. GB/s counts bytes pushed and pulled by all workers; 1 GB = 1e9 bytes."""

    contender: str
    seconds_p50: float
    seconds_p99: float
    seconds_of_rounds: tuple[float, ...]
    speed_of_rounds: tuple[float, ...]
    cpu_s_per_gb: float
    by_time: bool
    exchanges: int

    @property
    def gb_per_s(self) -> float:
        return statistics.median(self.speed_of_rounds)

    def times_as_fast_as(self, other: Figure) -> float:
        """The median over the rounds of the ratio within a round; in time where the load is small."""
        if self.by_time:
            pairs = zip(other.seconds_of_rounds, self.seconds_of_rounds, strict=True)
        else:
            pairs = zip(self.speed_of_rounds, other.speed_of_rounds, strict=True)
        return statistics.median(mine / its for mine, its in pairs)


def compare(field: Field, load: Load, pace: Pace, moved_bytes: int | None = None) -> list[Figure]:
    """Every contender of the field under `load`, in turn. `moved_bytes`: of an exchange, if not both ways."""
    moved_bytes = 2 * load.payload_bytes if moved_bytes is None else moved_bytes
    counts: dict[str, int] = {}
    for contender in list(field.contenders):
        try:
            contender.prepare(load)
            counts[contender.name] = _count_for(contender, load, pace)
        except NotMeasuredError as error:
            field.give_up(contender, str(error))
    taken: dict[str, list[tuple[Timing, float]]] = {name: [] for name in counts}
    for _ in range(pace.rounds):
        for contender in list(field.contenders):
            try:
                taken[contender.name].append(_round(contender, load, counts[contender.name]))
            except NotMeasuredError as error:
                field.give_up(contender, str(error))
    figures = [_figure(contender, moved_bytes, taken[contender.name]) for contender in field.contenders]
    for contender in list(field.contenders):
        try:
            contender.drop(load)
        except NotMeasuredError as error:
            field.give_up(contender, str(error))
    return figures


def _count_for(contender: Contender, load: Load, pace: Pace) -> int:
    trial = contender.measure(load, 3)
    return max(2, min(COUNT_MAX, round(pace.round_s / max(statistics.median(trial.seconds), 1e-7))))


def _round(contender: Contender, load: Load, count: int) -> tuple[Timing, float]:
    before_s = contender.processor_seconds()
    timing = contender.measure(load, count)
    return timing, contender.processor_seconds() - before_s


def _figure(contender: Contender, moved_bytes: int, taken: Sequence[tuple[Timing, float]]) -> Figure:
    exchanges = sorted(second for timing, _ in taken for second in timing.seconds)
    moved_gb = moved_bytes * len(exchanges) / 1e9
    return Figure(
        contender=contender.name,
        seconds_p50=percentile(exchanges, 0.50),
        seconds_p99=percentile(exchanges, 0.99),
        seconds_of_rounds=tuple(statistics.median(timing.seconds) for timing, _ in taken),
        speed_of_rounds=tuple(moved_bytes * len(timing.seconds) / timing.wall_s / 1e9 for timing, _ in taken),
        cpu_s_per_gb=sum(cpu_s for _, cpu_s in taken) / moved_gb,
        by_time=moved_bytes < SMALL_BYTES,
        exchanges=len(exchanges),
    )


def percentile(ascending: Sequence[float], share: float) -> float:
    """The value that `share` of the others do not exceed."""
    return ascending[min(len(ascending) - 1, int(share * len(ascending)))]
