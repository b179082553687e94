"""Logged scalars of a job's workers, merged by weight into one record a step.

    merged = sum(weight_w * value_w) / sum(weight_w)        (the plain mean where every weight is 0)

A step is given out once: when every live worker has logged it, when it has fallen 64 steps behind, or when
the last worker has gone. What comes for it later under a name it had is counted as late, not shown. A new name (the
accuracy that worker 0 computes after the step) is given out at once, in a record of its own, for the last 64 steps.

Invariant (`validate`): open steps of a job lie above every step given out and within 64 of the highest; names are
remembered of the last 64 steps given out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from windlass_proto.errors import UsageError
from windlass_scheduler import limits
from windlass_scheduler.effects import Effect


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """One step's scalars: of one worker going in, of all coming out (`weight` is then the sum)."""

    step: int
    weight: float
    scalars: tuple[tuple[str, float], ...]
    unix_s: float


@dataclass(frozen=True, slots=True)
class Logged:
    session: bytes
    job: str
    live: frozenset[bytes]
    records: tuple[LoggedStep, ...]


@dataclass(frozen=True, slots=True)
class WorkersChanged:
    job: str
    live: frozenset[bytes]


Event: TypeAlias = Logged | WorkersChanged


@dataclass(frozen=True, slots=True)
class Merged:
    """Effect: steps of `job` that are complete, in ascending order."""

    job: str
    records: tuple[LoggedStep, ...]


@dataclass(slots=True)
class _Sum:
    weighted: float = 0.0
    weight: float = 0.0
    plain: float = 0.0
    count: int = 0

    def mean(self) -> float:
        return self.weighted / self.weight if self.weight > 0 else self.plain / self.count


@dataclass(slots=True)
class _Step:
    sums: dict[str, _Sum] = field(default_factory=dict)
    sessions: set[bytes] = field(default_factory=set)
    weight: float = 0.0
    unix_s: float = 0.0


@dataclass(slots=True)
class _Job:
    steps: dict[int, _Step] = field(default_factory=dict)
    given_out: int = -1
    late: int = 0
    names: dict[int, set[str]] = field(default_factory=dict)  # of steps given out, oldest first


class MergedMetrics:
    """`step(event) -> effects`; a refused request raises and changes nothing. Nothing of it is stored."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}

    def late(self, job: str) -> int:
        """Records that came after their step was given out."""
        return self._jobs[job].late if job in self._jobs else 0

    def step(self, event: Event) -> list[Effect]:
        match event:
            case Logged():
                _check(event.records)
                job = self._jobs.setdefault(event.job, _Job())
                after = [_add(job, event.session, record) for record in event.records]
                later = tuple(record for record in after if record is not None)
                return [*([Merged(event.job, later)] if later else []), *self._give_out(event.job, job, event.live)]
            case WorkersChanged():
                found = self._jobs.get(event.job)
                if found is None:
                    return []
                effects = self._give_out(event.job, found, event.live)
                if not event.live:
                    del self._jobs[event.job]
                return effects

    def _give_out(self, name: str, job: _Job, live: frozenset[bytes]) -> list[Effect]:
        behind = max(job.steps, default=0) - limits.METRIC_STEPS_BEHIND_MAX
        ready = [s for s, step in job.steps.items() if s <= behind or live <= step.sessions]
        if not ready:
            return []
        last = max(ready)
        records = tuple(_merged(step, job.steps.pop(step)) for step in sorted(job.steps) if step <= last)
        job.given_out = last
        for record in records:
            job.names[record.step] = {scalar for scalar, _ in record.scalars}
        while len(job.names) > limits.METRIC_STEPS_BEHIND_MAX:
            del job.names[next(iter(job.names))]
        return [Merged(name, records)]

    def validate(self) -> None:
        for job in self._jobs.values():
            assert len(job.steps) <= limits.METRIC_STEPS_BEHIND_MAX
            assert len(job.names) <= limits.METRIC_STEPS_BEHIND_MAX
            assert all(step <= job.given_out for step in job.names)
            for step in job.steps:
                assert job.given_out < step > max(job.steps) - limits.METRIC_STEPS_BEHIND_MAX


def _check(records: Iterable[LoggedStep]) -> None:
    for record in records:
        if len(record.scalars) > limits.METRIC_NAMES_MAX:
            raise UsageError(
                "a log record has too many scalars",
                scalars=len(record.scalars),
                scalars_max=limits.METRIC_NAMES_MAX,
            )
        if not (math.isfinite(record.weight) and record.weight >= 0):
            raise UsageError("a log record's weight is not a number >= 0", weight=record.weight)
        for name, _ in record.scalars:
            if not name or len(name.encode()) > limits.NAME_BYTES_MAX:
                raise UsageError("a logged scalar needs a name", name=repr(name[:40]), bytes_max=limits.NAME_BYTES_MAX)


def _add(job: _Job, session: bytes, record: LoggedStep) -> LoggedStep | None:
    """Take a record in; returned is what of it belongs to a step given out and is to follow it."""
    if record.step <= job.given_out:
        return _following(job, record)
    step = job.steps.setdefault(record.step, _Step())
    for name, value in record.scalars:
        if name not in step.sums and len(step.sums) >= limits.METRIC_NAMES_MAX:
            continue
        found = step.sums.setdefault(name, _Sum())
        found.weighted += record.weight * value
        found.weight += record.weight
        found.plain += value
        found.count += 1
    step.sessions.add(session)
    step.weight += record.weight
    step.unix_s = max(step.unix_s, record.unix_s)
    return None


def _following(job: _Job, record: LoggedStep) -> LoggedStep | None:
    names = job.names.get(record.step)
    room = limits.METRIC_NAMES_MAX - len(names) if names is not None else 0
    new = tuple(scalar for scalar in record.scalars if names is not None and scalar[0] not in names)[:room]
    if names is None or not new:
        job.late += 1
        return None
    names.update(name for name, _ in new)
    return replace(record, scalars=new)


def _merged(number: int, step: _Step) -> LoggedStep:
    scalars = tuple((name, found.mean()) for name, found in step.sums.items())
    return LoggedStep(number, step.weight, scalars, step.unix_s)
