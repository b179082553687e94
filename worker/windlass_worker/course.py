"""One fit under way: epochs, the callbacks that are told, and how the workers of a cluster end it together.

Invariant: between two epochs every worker has done the same epochs and knows the same figures. An end that one of them
asked for is agreed on there, so that nobody goes on alone with a step that waits for the others. A worker that trains
alone ends after the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from windlass_proto import storage
from windlass_proto.errors import UsageError
from windlass_worker import saved_fit
from windlass_worker.callback.event import Callback, Event
from windlass_worker.data import DataLoader
from windlass_worker.passes import Passes

if TYPE_CHECKING:
    from windlass_worker.estimator import Estimator

Moment = Literal["begin", "epoch_begin", "batch_end", "epoch_end", "end"]


class Course:
    """Made and run by `Estimator.fit`. Owner: its thread."""

    def __init__(
        self,
        estimator: Estimator,
        passes: Passes,
        epochs: int,
        validation: Iterable[Any] | None,
        callbacks: list[Callback],
    ) -> None:
        self._estimator = estimator
        self._passes = passes
        self._validation = validation
        self._callbacks = callbacks
        self._event = Event(estimator, epochs, passes, estimator.metrics, callbacks=callbacks)
        self._resumed = False

    def run(self, resume: str | Path | None) -> list[dict[str, float]]:
        """All epochs that are left; the figures of each."""
        if resume is not None:
            self._resumed = saved_fit.resume(self._event, storage.place_of(resume))
        self._check_alike()
        event = self._event
        with contextlib.ExitStack() as ending:
            for loader in (self._passes.source, self._validation):
                if isinstance(loader, DataLoader) and not loader.is_lasting:
                    ending.enter_context(loader)  # its processes last as long as the fit
            ending.callback(self._passes.close)
            try:
                for callback in self._callbacks:
                    self._tell(callback, "begin")
                    ending.callback(self._tell, callback, "end")
                while event.epoch < event.epochs and not event.stop:
                    self._epoch()
                    event.epoch += 1
            except BaseException as error:
                event.error = error
                raise
        return event.history

    def _check_alike(self) -> None:
        """Refuse shares of different lengths where each step waits for all workers: the longer one would wait for ever.

        Raises:
            UsageError: on every worker.
        """
        known, store = self._passes.length, self._estimator.store
        length = -1 if known is None else known
        total, squares, workers = self._estimator.totals.of([length, length**2, 1])
        if store is not None and store.consistency.startswith("bsp") and total**2 != squares * workers:
            raise UsageError(
                "workers have different numbers of batches, and each step waits for all of them",
                batches_here=known,
                mean=total / workers,
                next_move="Share a wl.data.DataLoader(cluster=cluster), or pass batches_per_epoch.",
            )

    def _epoch(self) -> None:
        event = self._event
        event.batch = event.rows = 0
        event.merged = None
        event.batches = self._passes.length
        for metric in event.metrics:
            metric.reset()
        self._tell_all("epoch_begin")
        with contextlib.closing(self._batches()) as batches:
            for batch in batches:
                event.rows += self._estimator.train_on(batch, event.metrics)
                event.batch += 1
                event.step += 1
                self._tell_all("batch_end")
                if event.stop and self._estimator.totals.is_alone:
                    break
        event.merged = self._judged()
        event.history.append(event.merged)
        self._tell_all("epoch_end")
        self._agree()

    def _batches(self) -> Generator[Any]:
        """Those of an epoch. A resumed pass that was read to its end gives none: the next one is the epoch's."""
        begun = self._event.step
        yield from self._passes.epoch()
        if self._event.step == begun and self._resumed and self._passes.is_shared:
            yield from self._passes.epoch()
        if self._event.step == begun and not self._passes.is_shared:
            raise UsageError(
                "an epoch has no batches",
                epoch=self._event.epoch,
                next_move="Pass a wl.data.DataLoader or a list; what can be read once needs batches_per_epoch.",
            )

    def _judged(self) -> dict[str, float]:
        """The figures of an epoch, of all workers, with those of the validation behind them."""
        metrics = self._event.metrics
        if self._validation is None:
            return self._estimator.merged(metrics)
        return self._estimator.merged([*metrics, *self._estimator.judged(self._validation)], len(metrics))

    def _agree(self) -> None:
        """Does any worker want to end?"""
        if self._estimator.totals.of([bool(self._event.stop)])[0] and not self._event.stop:
            self._event.stop = "another worker asked for it"

    def _tell_all(self, moment: Moment) -> None:
        for callback in self._callbacks:
            self._tell(callback, moment)

    def _tell(self, callback: Callback, moment: Moment) -> None:
        try:
            getattr(callback, moment)(self._event)
        except Exception as error:
            error.add_note(f"raised by the callback {type(callback).__name__} at {moment} of epoch {self._event.epoch}")
            raise
