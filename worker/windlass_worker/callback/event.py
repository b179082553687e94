"""What happens in a fit, and who is told.

A callback defines the moments it cares for. All of a fit's callbacks are told in their order, by the thread of the
fit. With a cluster each worker has callbacks of its own; figures of `epoch_end` are those of all workers, so what is
decided from them is decided alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from windlass_worker.metric import Composite, Metric, figures_of

if TYPE_CHECKING:
    from windlass_worker.estimator import Estimator
    from windlass_worker.passes import Passes


@dataclass(slots=True)
class Event:
    """Where a fit stands. It belongs to the fit: callbacks read it, and may ask for an end."""

    estimator: Estimator
    epochs: int
    """How many the fit was asked for."""
    passes: Passes
    metrics: list[Metric | Composite]
    epoch: int = 0
    """The number of the epoch under way, or at `epoch_end` of the one that has ended, from 0."""
    batch: int = 0
    """Batches of this epoch that are done."""
    batches: int | None = None
    """How many this epoch has; None if nobody knows."""
    step: int = 0
    """Batches that are done since the first epoch."""
    rows: int = 0
    """Samples of this epoch, of this worker."""
    history: list[dict[str, float]] = field(default_factory=list)
    """The figures of each epoch that has ended."""
    callbacks: list[Callback] = field(default_factory=list)
    error: BaseException | None = None
    """At `end`: what ended the fit."""
    stop: str = ""
    """Why the fit shall end, if it shall."""
    merged: dict[str, float] | None = None

    @property
    def figures(self) -> Mapping[str, float]:
        """By name: at `epoch_end` of all workers and with those of the validation; else of this epoch here so far."""
        return self.merged if self.merged is not None else figures_of(self.metrics)

    def request_stop(self, reason: str) -> None:
        """End the fit after this batch. With other workers: after this epoch, for all of them."""
        self.stop = self.stop or reason


class Callback:
    """Told of the moments of a fit; every one may be left out."""

    def begin(self, event: Event) -> None:
        """The model and the trainer are ready; `event.epoch` is the first epoch to come."""

    def epoch_begin(self, event: Event) -> None:
        """The first batch of an epoch is next."""

    def batch_end(self, event: Event) -> None:
        """A batch was trained on."""

    def epoch_end(self, event: Event) -> None:
        """An epoch is over and validated."""

    def end(self, event: Event) -> None:
        """The fit is over, also by an error; called if `begin` was."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this callback: JSON."""
        return {}

    def take_state(self, state: dict[str, Any], event: Event) -> None:
        """Go on from `state`, before `begin`."""
