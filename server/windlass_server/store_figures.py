"""Store figures: what one server has counted in a store, over all its shares, for its next report.

Tallies are read without their shares' locks: a figure may be one push behind.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from windlass_server.share_tallies import ShareTallies
from windlass_server.step_waits import StepCounts, StepWaits


@dataclass(frozen=True, slots=True)
class StoreFigures:
    """`workers`, `awaited_s` and `late_steps` are by session; `awaited_s` has those that are waited for now."""

    store_id: int
    staleness: dict[int, int]
    workers: dict[bytes, StepCounts]
    awaited_s: dict[bytes, float]
    late_steps: dict[bytes, int]
    nbytes: int = 0
    rows_nbytes: int = 0


def figures_of(store_id: int, waits: StepWaits, shares: Iterable[ShareTallies], now_s: float) -> StoreFigures:
    """Pushes are added up over the shares; of late steps the share counts that has the most of them."""
    staleness: Counter[int] = Counter()
    late_steps: dict[bytes, int] = {}
    for tallies in shares:
        staleness.update(dict(tallies.staleness))
        for session, steps in dict(tallies.late_steps).items():
            late_steps[session] = max(steps, late_steps.get(session, 0))
    return StoreFigures(store_id, dict(staleness), dict(waits.workers), waits.awaited(now_s), late_steps)
