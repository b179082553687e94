"""Early stopping: training ends when a figure has stood still. With a cluster, for all workers at the same step."""

from __future__ import annotations

from typing import Any

from windlass_proto.errors import UsageError
from windlass_worker.callback.best import Best, Mode
from windlass_worker.callback.event import Callback, Event


class EarlyStopping(Callback):
    """Ends the fit after `patience` epochs in which `monitor` got no better.

    The figures of an epoch are those of all workers, and that somebody wants to stop is told to all of them, so every
    worker ends after the same epoch.

    Args:
        monitor: the name of a figure, such as "validation_loss" or "accuracy".
        patience: epochs without an improvement.
        min_delta: what counts as one.
        mode: "min" if lower is better, "max" if higher is.
    """

    def __init__(
        self, monitor: str = "validation_loss", patience: int = 3, min_delta: float = 0.0, mode: Mode = "min"
    ) -> None:
        if patience < 1:
            raise UsageError("patience is not positive", patience=patience, next_move="1 stops at the first epoch.")
        self.patience = patience
        self.waited = 0
        """Epochs since the best one."""
        self._best = Best(monitor, mode, min_delta)

    @property
    def best(self) -> float | None:
        """The best value so far."""
        return self._best.value

    @property
    def best_epoch(self) -> int | None:
        return self._best.epoch

    def epoch_end(self, event: Event) -> None:
        if self._best.improves(event):
            self.waited = 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            event.request_stop(f"{self._best.monitor} has not improved for {self.waited} epochs")

    def state(self) -> dict[str, Any]:
        return {"waited": self.waited, "best": self._best.state()}

    def take_state(self, state: dict[str, Any], event: Event) -> None:
        self.waited = state["waited"]
        self._best.take_state(state["best"])
