"""The run folder `runs/<name>/`: what a run leaves behind, in a public format (docs/run-folder.md).

Invariant: one process writes metrics.jsonl and events.jsonl (worker 0), in whole lines, many in one write to a file
opened for appending, so that `tail -f` and a page read lines only. Nothing here raises: a folder that cannot be written
costs one line of warning and the record, not the run.

Owner: `_lock` for the lines that have come (from the watch thread), `_writing` for the files (the thread of
`ScalarLog`, and `close`).
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from windlass._version import __version__

FORMAT: Final = 1
# Events that came while there was no folder to write to; a run that logs nothing makes none.
_EVENTS_WAITING_MAX: Final = 1024

ConfigValue = str | int | list[str]


class RunFolder:
    """The folder of one run. It is made when a scalar is logged; events wait for that.

    Args:
        path: where; a launcher may have made it.
        main: whether this worker writes.
        facts: the `[run]` table of config.toml, which is written unless a launcher has.
    """

    def __init__(self, path: Path, *, main: bool, facts: Mapping[str, ConfigValue] | None = None) -> None:
        self.path = path
        self.main = main
        self._facts = dict(facts or {})
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._metrics: list[str] = []
        self._events: deque[str] = deque(maxlen=_EVENTS_WAITING_MAX)
        self._broken = not main
        self._made = False
        self._failure: BaseException | None = None
        self.event("run_started", f"{__version__}, process {os.getpid()}")

    def metric(self, step: int, unix_s: float, scalars: Mapping[str, float]) -> None:
        """Append a line to metrics.jsonl at the next `flush`. A value that is not finite becomes null."""
        if self._broken:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in scalars.items()}
        line = json.dumps({"step": step, "time": round(unix_s, 6), **finite})
        with self._lock:
            self._metrics.append(line)

    def event(self, kind: str, text: str, unix_s: float | None = None) -> None:
        """Append a line to events.jsonl at the next `flush`."""
        if self._broken:
            return
        at = time.time() if unix_s is None else unix_s
        with self._lock:
            self._events.append(json.dumps({"time": round(at, 6), "kind": kind, "text": text}))

    def flush(self) -> None:
        """Write the lines that have come. They are taken first, so that nobody waits for the disk."""
        with self._writing:
            with self._lock:
                if self._broken or not (self._metrics or self._made or self.path.is_dir()):
                    return
                metrics, self._metrics = self._metrics, []
                events = list(self._events)
                self._events.clear()
            try:
                self._make()
                _append(self.path / "metrics.jsonl", metrics)
                _append(self.path / "events.jsonl", events)
            except OSError as error:
                self._broken = True
                sys.stderr.write(f"windlass: nothing more is recorded in {self.path}: {error.strerror or error}\n")

    def failed(self, error: BaseException) -> None:
        """The run ends by this exception."""
        self._failure = error

    def close(self) -> None:
        """Write what is left, and draw loss.png."""
        if self._failure is None:
            self.event("run_ended", "finished")
        else:
            said = str(self._failure).partition("\n")[0]
            self.event("run_ended", f"failed: {type(self._failure).__name__}: {said}")
        self.flush()
        if self._broken or not self._made:
            return
        from windlass import loss_figure

        self._broken = True
        if problem := loss_figure.draw(self.path):
            sys.stderr.write(f"windlass: {problem}\n")

    def _make(self) -> None:
        if self._made:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        written_by = {"windlass": __version__, "python": sys.version.split()[0], "folder": os.getcwd()}
        try:
            with (self.path / "config.toml").open("x", encoding="utf-8") as file:
                file.write(config_text({"run": self._facts, "written_by": written_by}))
        except FileExistsError:
            pass  # the launcher's
        self._made = True


def config_text(tables: Mapping[str, Mapping[str, ConfigValue]]) -> str:
    """The text of config.toml: the format's number, then a TOML table for each entry."""
    lines = [f"format = {FORMAT}"]
    for title, fields in tables.items():
        lines += ["", f"[{title}]", *(f"{key} = {_toml(value)}" for key, value in fields.items())]
    return "\n".join(lines) + "\n"


def _toml(value: ConfigValue) -> str:
    """JSON strings are TOML basic strings but for U+007F, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _append(path: Path, lines: list[str]) -> None:
    if lines:
        with path.open("ab", buffering=0) as file:
            file.write(("\n".join(lines) + "\n").encode())
