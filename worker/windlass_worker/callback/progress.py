"""What a fit says while it runs: a line for each epoch, the speed every so many batches, records.

Only rank 0 writes to the terminal. `windlass run` shows what is logged as bars and figures of all workers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final, TextIO

from windlass_proto.errors import UsageError
from windlass_worker.callback.event import Callback, Event
from windlass_worker.metric import figures_of

_REWRITTEN_EVERY_S: Final = 0.1
_BAR_CELLS: Final = 20


class Progress(Callback):
    """One line for each epoch. On a terminal the line of the present one is written again and again, with a bar.

    With a cluster the loss and how far the fit has come are logged too (`cluster.log`).

    Args:
        out: where lines go; what `sys.stdout` is then.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out
        self._began_s = self._written_s = 0.0
        self._shown = 0

    def epoch_begin(self, event: Event) -> None:
        self._began_s = time.monotonic()

    def batch_end(self, event: Event) -> None:
        cluster = event.estimator.cluster
        if cluster is not None:
            done = event.batch / event.batches if event.batches else 0.0
            loss = figures_of(event.metrics[:1])["loss"]  # the others may cost more
            cluster.log(event.step, loss=loss, progress=min((event.epoch + done) / event.epochs, 1.0))
        now = time.monotonic()
        if self._on_terminal(event) and now - self._written_s >= _REWRITTEN_EVERY_S:
            self._written_s = now
            self._rewrite(self._words(event, now), end="")

    def epoch_end(self, event: Event) -> None:
        if event.estimator.is_main:
            self._rewrite(self._words(event, time.monotonic()), end="\n")

    def end(self, event: Event) -> None:
        if self._shown:
            self._rewrite("", end="")
        if event.stop and event.estimator.is_main and event.error is None:
            self._rewrite(f"stopped after epoch {event.epoch}: {event.stop}", end="\n")

    def _on_terminal(self, event: Event) -> bool:
        return event.estimator.is_main and (self._out or sys.stdout).isatty()

    def _words(self, event: Event, now: float) -> str:
        width = len(str(event.epochs))
        parts = [f"epoch {event.epoch + 1:{width}}/{event.epochs}"]
        if event.merged is None and event.batches:
            filled = _BAR_CELLS * min(event.batch, event.batches) // event.batches
            parts.append("█" * filled + "░" * (_BAR_CELLS - filled))
            parts.append(f"{event.batch}/{event.batches}")
        parts += [words(event.figures), speed(event.rows, now - self._began_s)]
        return "  ".join(parts)

    def _rewrite(self, text: str, end: str) -> None:
        out = self._out or sys.stdout
        pad = " " * (self._shown - len(text))
        out.write(f"\r{text}{pad}{end}" if self._shown or not end else f"{text}{end}")
        self._shown = len(text) if not end else 0
        out.flush()


class Speedometer(Callback):
    """After every so many batches: samples a second since the last line, and this worker's figures of the epoch.

    Args:
        every: batches from line to line.
        out: where lines go; what `sys.stdout` is then.
    """

    def __init__(self, every: int = 50, out: TextIO | None = None) -> None:
        self._every = positive(every)
        self._out = out
        self._since_s = 0.0
        self._rows = 0

    def epoch_begin(self, event: Event) -> None:
        self._since_s, self._rows = time.monotonic(), 0

    def batch_end(self, event: Event) -> None:
        if event.batch % self._every:
            return
        now = time.monotonic()
        said = speed(event.rows - self._rows, now - self._since_s)
        self._since_s, self._rows = now, event.rows
        if event.estimator.is_main:
            out = self._out or sys.stdout
            out.write(f"epoch {event.epoch + 1} batch {event.batch}: {said}, {words(event.figures)}\n")
            out.flush()


class Logging(Callback):
    """Figures as records: with a cluster in its run folder, merged over workers; and in a file of JSON lines.

    Each epoch makes a record, and every so many batches, if that is said. Rank 0 writes the file.

    Args:
        path: of the file, which is appended to.
        every: batches from record to record; None: epochs only.
    """

    def __init__(self, path: str | Path | None = None, every: int | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._every = None if every is None else positive(every)
        self._file: IO[str] | None = None

    def begin(self, event: Event) -> None:
        if event.estimator.cluster is None and self._path is None:
            raise UsageError("nobody would see what is logged", next_move="Give Logging(path) or Estimator(cluster=).")
        if self._path is not None and event.estimator.is_main:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")

    def batch_end(self, event: Event) -> None:
        if self._every is not None and event.batch % self._every == 0:
            self._record(event)

    def epoch_end(self, event: Event) -> None:
        self._record(event)

    def _record(self, event: Event) -> None:
        if event.estimator.cluster is not None:
            event.estimator.cluster.log(event.step, epoch=float(event.epoch), **event.figures)
        if self._file is not None:
            figures = {name: as_json(value) for name, value in event.figures.items()}
            self._file.write(json.dumps({"epoch": event.epoch, "batch": event.batch, "step": event.step, **figures}))
            self._file.write("\n")
            self._file.flush()

    def end(self, event: Event) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def words(figures: Mapping[str, float]) -> str:
    """Names and values, four significant digits each."""
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def speed(rows: int, seconds: float) -> str:
    return f"{rows / max(seconds, 1e-9):,.0f} samples/s"


def as_json(value: float) -> Any:
    """A number of a record; null for what JSON has no number for."""
    return value if abs(value) < float("inf") else None


def positive(every: int) -> int:
    if every < 1:
        raise UsageError("every is not positive", every=every, next_move="1 is after each.")
    return every
