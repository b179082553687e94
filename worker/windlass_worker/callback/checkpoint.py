"""Checkpoints of a fit, from which `fit(resume=folder)` goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from windlass_proto import storage
from windlass_proto.errors import UsageError
from windlass_worker import saved_fit
from windlass_worker.callback.best import Best, Mode
from windlass_worker.callback.event import Callback, Event
from windlass_worker.callback.progress import positive

BEST = "best"


class Checkpoint(Callback):
    """Saves parameters, the rule's state and where the fit stands, after every so many epochs and the last.

    With a store it is `store.checkpoint`, one action of all workers; without, three files (`saved_fit`).

    Args:
        folder: a path that every server and worker reaches.
        every: epochs from one to the next.
        keep: how many stay, the newest; None: all.
        monitor: the name of a figure; the epoch with its best value is kept as well, in the folder `best`.
        mode: "min" if lower is better, "max" if higher is.

    List it behind callbacks whose state it shall keep as of the same epoch.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int = 1,
        keep: int | None = 3,
        monitor: str | None = None,
        mode: Mode = "min",
    ) -> None:
        if keep is not None and keep < 1:
            raise UsageError("keep is not positive", keep=keep, next_move="The newest one always stays.")
        self.folder = storage.place_of(folder)
        self._every = positive(every)
        self._keep = keep
        self._best = None if monitor is None else Best(monitor, mode)

    def epoch_end(self, event: Event) -> None:
        if self._best is not None and self._best.improves(event):
            saved_fit.save(event, self.folder / BEST, 1)
        if (event.epoch + 1) % self._every == 0 or event.epoch + 1 == event.epochs:
            saved_fit.save(event, self.folder, self._keep)

    def state(self) -> dict[str, Any]:
        return {} if self._best is None else self._best.state()

    def take_state(self, state: dict[str, Any], event: Event) -> None:
        if self._best is not None and state:
            self._best.take_state(state)
