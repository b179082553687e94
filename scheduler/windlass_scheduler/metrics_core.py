"""Logged scalars of a job's workers, merged by weight into one record a step.

    merged = sum(weight_w * value_w) / sum(weight_w)        (the plain mean where every weight is 0)

A step is given out once: when every live worker has logged it, when it is 64 steps and 2 s behind, or when the last
worker has gone. A worker that has never logged when a step is given out without it is *quiet*: not waited for until it
logs (where worker 0 alone logs, its steps come out at once). What comes for a step later under a name it had is counted
as late, not shown. A new name (the accuracy that worker 0 computes after the step) is given out at once, in a record
of its own.

Invariant (`validate`): open steps of a job lie above every step given out; at most 4,096 are open, and of as many given
out the names are remembered.
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
    now_s: float


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
    since_s: float = 0.0


@dataclass(slots=True)
class _Job:
    steps: dict[int, _Step] = field(default_factory=dict)
    given_out: int = -1
    late: int = 0
    names: dict[int, set[str]] = field(default_factory=dict)  # of steps given out, oldest first
    logging: set[bytes] = field(default_factory=set)  # sessions that have logged
    quiet: set[bytes] = field(default_factory=set)
    now_s: float = 0.0


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
                job.now_s = event.now_s
                job.logging.add(event.session)
                job.quiet.discard(event.session)
                after = [_add(job, event.session, record) for record in event.records]
                later = tuple(record for record in after if record is not None)
                return [*([Merged(event.job, later)] if later else []), *self._give_out(event.job, job, event.live)]
            case WorkersChanged():
                found = self._jobs.get(event.job)
                if found is None:
                    return []
                found.logging &= event.live
                found.quiet &= event.live
                effects = self._give_out(event.job, found, event.live)
                if not event.live:
                    del self._jobs[event.job]
                return effects

    def _give_out(self, name: str, job: _Job, live: frozenset[bytes]) -> list[Effect]:
        highest = max(job.steps, default=0)
        overdue = [n for n, step in job.steps.items() if _is_overdue(highest - n, job.now_s - step.since_s)]
        if overdue:
            job.quiet |= live - job.logging
        ready = [*overdue, *(n for n, step in job.steps.items() if live - job.quiet <= step.sessions)]
        if not ready:
            return []
        last = max(ready)
        records = tuple(_merged(step, job.steps.pop(step)) for step in sorted(job.steps) if step <= last)
        job.given_out = last
        for record in records:
            job.names[record.step] = {scalar for scalar, _ in record.scalars}
        while len(job.names) > limits.METRIC_STEPS_MAX:
            del job.names[next(iter(job.names))]
        return [Merged(name, records)]

    def validate(self) -> None:
        for job in self._jobs.values():
            assert len(job.names) <= limits.METRIC_STEPS_MAX
            assert all(step <= job.given_out for step in job.names)
            assert not job.quiet & job.logging
            for step in job.steps:
                assert job.given_out < step > max(job.steps) - limits.METRIC_STEPS_MAX


def _is_overdue(steps_behind: int, age_s: float) -> bool:
    waited = steps_behind >= limits.METRIC_STEPS_BEHIND and age_s >= limits.METRIC_BEHIND_S
    return waited or steps_behind >= limits.METRIC_STEPS_MAX


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
    step = job.steps.setdefault(record.step, _Step(since_s=job.now_s))
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
