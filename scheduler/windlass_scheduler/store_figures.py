"""Store figures: what servers count in a store, merged for status, and the straggler in words.

Every server sees every mark of its stores, so counts of steps and seconds are those of the server that has the most;
pushes are applied piece by piece on one server each, so staleness is added up. Pure reading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from windlass_proto.gen import control_pb2 as pb
from windlass_scheduler.roster import Roster

AWAITED_SAID_AFTER_S: Final = 2.0
"""Shorter waits are how steps go: reports are a second apart."""

STRAGGLER_STEPS_MIN: Final = 20
STRAGGLER_SHARE: Final = 0.6
STRAGGLER_WAITED_S: Final = 5.0


@dataclass(slots=True)
class Reported:
    """What one server said last, and when."""

    stores: dict[int, pb.StoreFigures] = field(default_factory=dict)
    at_s: float = 0.0


def staleness(reports: Sequence[Reported], store_id: int) -> list[pb.Staleness]:
    """The histogram over all servers, by lag."""
    counts: Counter[int] = Counter()
    for report in reports:
        if store_id in report.stores:
            counts.update({bucket.lag: bucket.pushes for bucket in report.stores[store_id].staleness})
    return [pb.Staleness(lag=lag, pushes=pushes) for lag, pushes in sorted(counts.items())]


def workers(
    reports: Sequence[Reported], roster: Roster, clocks: Mapping[bytes, int], now_s: float
) -> list[pb.WorkerSteps]:
    """One entry for each member of the roster, by rank; `clocks` are those that workers said of themselves."""
    found = []
    for member in roster.members:
        merged = pb.WorkerSteps(session=member.session, rank=member.rank, host=member.host)
        merged.clock = clocks.get(member.session, 0)
        for report in reports:
            for said in report.stores.get(roster.store_id, pb.StoreFigures()).workers:
                if said.session == member.session:
                    _take(merged, said, max(0.0, now_s - report.at_s))
        found.append(merged)
    return found


def _take(merged: pb.WorkerSteps, said: pb.WorkerSteps, age_s: float) -> None:
    merged.clock = max(merged.clock, said.clock)
    merged.last = max(merged.last, said.last)
    merged.waited_s = max(merged.waited_s, said.waited_s)
    merged.late_steps = max(merged.late_steps, said.late_steps)
    if said.awaited_s > 0:
        merged.awaited_s = max(merged.awaited_s, said.awaited_s + age_s)


def in_words(store: str, job: str, found: Sequence[pb.WorkerSteps]) -> Iterator[str]:
    """Who is waited for now, and who has been most of the time."""
    steps = sum(worker.last for worker in found)
    for worker in found:
        who = f"worker rank {worker.rank} (job {job}) on {worker.host or 'an unnamed host'}"
        if worker.awaited_s >= AWAITED_SAID_AFTER_S:
            yield f"store {store} has waited {worker.awaited_s:,.0f} s for {who}, at clock {worker.clock:,}"
        enough = steps >= STRAGGLER_STEPS_MIN and worker.waited_s >= STRAGGLER_WAITED_S
        if enough and worker.last >= STRAGGLER_SHARE * steps:
            often = f"{worker.last:,} of {steps:,} steps of store {store}"
            yield f"{who} was the last in {often}; the others waited {worker.waited_s:,.0f} s for it"
