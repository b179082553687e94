"""Learning rates that follow figures. Rates that follow steps are schedules of the rule (`wl.schedule`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from windlass_worker.callback.event import Callback, Event


class Schedule(Callback):
    """Asks for a learning rate after each epoch.

    Args:
        rate: of the event, at `epoch_end`; a number becomes the rate from the next step on, None leaves it. With a
            cluster every worker has to answer alike, as it does from the event's figures.
    """

    def __init__(self, rate: Callable[[Event], float | None]) -> None:
        self._rate = rate
        self.lr: float | None = None
        """What it has set last."""

    def epoch_end(self, event: Event) -> None:
        lr = self._rate(event)
        if lr is not None and lr != self.lr:
            event.estimator.trainer.set_learning_rate(float(lr))
            self.lr = float(lr)

    def state(self) -> dict[str, Any]:
        return {"lr": self.lr}

    def take_state(self, state: dict[str, Any], event: Event) -> None:
        self.lr = state["lr"]
        if self.lr is not None and event.estimator.store is None:  # a store brings back what was set
            event.estimator.trainer.set_learning_rate(self.lr)
