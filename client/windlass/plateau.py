"""The watch over a plateau: has a logged metric stopped getting better?

Worker 0 keeps one for each store whose lr is a `schedule.Plateau`. Merged values come in the watch thread; the store
asks before each step and then changes lr by the means of `store.set`, so every server follows at the same step. When it
happens depends on when merged values come back, so two runs may differ in that step.

Invariant: `due` is set by what was observed alone, and cleared by `lowered`. What was best is forgotten with the
process; the lr that was reached is not. The rule is that of `torch.optim.lr_scheduler.ReduceLROnPlateau`, whose default
threshold is relative, too.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping

from windlass_proto.schedules import Plateau


class PlateauWatch:
    """Observes the metric of `plateau`."""

    def __init__(self, plateau: Plateau) -> None:
        self.plateau = plateau
        self.due = False
        self._best: float | None = None
        self._stale = 0  # values since the best one
        self._observing = threading.Lock()

    def observe(self, scalars: Mapping[str, float]) -> None:
        """Scalars of a step, merged over the workers."""
        value = scalars.get(self.plateau.metric)
        if value is None:
            return
        with self._observing:
            if self._is_better(value):
                self._best, self._stale = value, 0
            else:
                self._stale += 1
            if self._stale > self.plateau.patience:
                self.due, self._stale = True, 0

    def lowered(self, plateau: Plateau) -> None:
        """lr is what `plateau` says now."""
        with self._observing:
            self.plateau, self.due = plateau, False

    def _is_better(self, value: float) -> bool:
        if self._best is None:
            return not math.isnan(value)
        margin = abs(self._best) * self.plateau.threshold
        return value > self._best + margin if self.plateau.rises else value < self._best - margin
