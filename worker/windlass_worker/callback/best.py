"""The best value of a figure so far: what early stopping and checkpoints look at."""

from __future__ import annotations

import math
from typing import Any, Final, Literal

from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError
from windlass_worker.callback.event import Event

Mode = Literal["min", "max"]
_MODES: Final = ("min", "max")


class Best:
    """The best value of `monitor`.

    Args:
        monitor: the name of a figure, such as "validation_loss".
        mode: whether a lower or a higher value is better.
        min_delta: by how much it has to be.
    """

    def __init__(self, monitor: str, mode: Mode, min_delta: float = 0.0) -> None:
        if mode not in _MODES:
            raise UsageError("mode is none", given=mode, next_move=did_you_mean(mode, _MODES))
        if not 0 <= min_delta < math.inf:
            raise UsageError("min_delta is no distance", min_delta=min_delta)
        self.monitor = monitor
        self.value: float | None = None
        self.epoch: int | None = None
        self._sign = 1.0 if mode == "min" else -1.0
        self._min_delta = min_delta

    def improves(self, event: Event) -> bool:
        """Take the figure of this epoch; is it the best one? nan never is.

        Raises:
            UsageError: the fit has no such figure.
        """
        if self.monitor not in event.figures:
            raise UsageError(
                "the fit has no such figure",
                monitor=self.monitor,
                next_move=did_you_mean(self.monitor, list(event.figures)),
                figures=", ".join(event.figures),
            )
        value = event.figures[self.monitor]
        before = math.inf if self.value is None else self._sign * self.value
        if not self._sign * value < before - (self._min_delta if self.value is not None else 0.0):
            return False
        self.value, self.epoch = value, event.epoch
        return True

    def state(self) -> dict[str, Any]:
        return {"value": self.value, "epoch": self.epoch}

    def take_state(self, state: dict[str, Any]) -> None:
        self.value, self.epoch = state["value"], state["epoch"]
