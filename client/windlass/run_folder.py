"""The run folder: `runs/<name>/`, what a run leaves behind.

Invariant: only rank 0 writes here, and only whole lines.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO


class RunFolder:
    """The folder of one run. It is made when something is first written.

    Args:
        path: where; a launcher may have made it.
        main: whether this worker writes.
    """

    def __init__(self, path: Path, *, main: bool) -> None:
        self.path = path
        self.main = main
        self._metrics: TextIO | None = None

    def metric(self, step: int, unix_s: float, scalars: dict[str, float]) -> None:
        """Append one line to metrics.jsonl."""
        if not self.main:
            return
        if self._metrics is None:
            self.path.mkdir(parents=True, exist_ok=True)
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        self._metrics.write(json.dumps({"step": step, "time": unix_s, **scalars}) + "\n")

    def close(self) -> None:
        """Close the files."""
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
