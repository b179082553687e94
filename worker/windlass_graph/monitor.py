"""Statistics of what nodes give while a program runs: `wl.Monitor`.

    with wl.Monitor(interval=100, stat="mean_abs", pattern="relu*") as monitor:
        train()
    for run, name, value in monitor.rows: ...

Invariant: values are read in the step that made them, before any other may write over them. Names are those of nodes
in programs; ops on arrays have none, and what a fused kernel passes on inside is never stored.

Prior art: MXNet's Monitor.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from windlass_graph.observation import Ran, observed_by
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError

Stat = Callable[[Any], float]
ROWS_MAX: Final = 100_000
STATS: Final[Mapping[str, Stat]] = {
    "mean_abs": lambda x: float(np.abs(x).mean()),
    "max_abs": lambda x: float(np.abs(x).max()),
    "mean": lambda x: float(x.mean()),
    "std": lambda x: float(x.std()),
    "norm": lambda x: float(np.sqrt(np.square(x, dtype=np.float64).sum())),
    "not_finite": lambda x: float(x.size - np.isfinite(x).sum()),
    "zeros": lambda x: float((x == 0).mean()),
}
"""By name; `not_finite` counts NaN and infinity, `zeros` is a share."""


class Monitor:
    """Statistics of matching nodes' outputs, every so many runs.

    Args:
        interval: programs' runs from one reading to the next; the first run is read.
        stat: a name of `STATS`, or a function of a NumPy array that gives a number.
        pattern: names of nodes, as in a shell.

    Raises:
        UsageError: the interval is not positive, or there is no such statistic; at the end of the block: programs ran
            and no node's name matched.
    """

    def __init__(self, interval: int = 1, stat: str | Stat = "mean_abs", pattern: str = "*") -> None:
        if interval < 1:
            raise UsageError("a monitor reads every run or fewer", next_move="Give interval >= 1.", interval=interval)
        if isinstance(stat, str) and stat not in STATS:
            raise UsageError(f"there is no statistic {stat!r}", next_move=did_you_mean(stat, STATS))
        self.interval = interval
        self.pattern = pattern
        self._stat: Stat = STATS[stat] if isinstance(stat, str) else stat
        self._lock = threading.Lock()
        self._runs = 0
        self._seen: set[str] = set()
        self._matched = False
        self._rows: deque[tuple[int, str, float]] = deque(maxlen=ROWS_MAX)
        self._watching: AbstractContextManager[None] | None = None

    @property
    def rows(self) -> list[tuple[int, str, float]]:
        """(number of the run, counted from 0; name of the node, with the output's number if it has several; value),
        the last 100,000 of them."""
        return list(self._rows)

    def __enter__(self) -> Self:
        self._watching = observed_by(self)
        self._watching.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._watching is not None, "only inside a block"
        self._watching.__exit__(kind, error, trace)
        if error is None and self._seen and not self._matched:
            raise UsageError(
                f"no node that ran is called {self.pattern!r}", next_move=did_you_mean(self.pattern, sorted(self._seen))
            )

    def run_begins(self, first_step: int) -> None:
        """Count the run."""
        if first_step == 0:
            with self._lock:
                self._runs += 1

    def ran(self, event: Ran) -> None:
        """Read the outputs of a matching node, if this run is one to read."""
        with self._lock:
            run = self._runs - 1
        if event.kind != "step" or run % self.interval:
            return
        if not fnmatchcase(event.name, self.pattern):
            if not self._matched:
                self._seen.add(event.name)
            return
        self._matched = True
        for number, out in enumerate(event.outs):
            name = event.name if len(event.outs) == 1 else f"{event.name}[{number}]"
            host = out if event.device.kind == "cpu" else out.get()
            self._rows.append((run, name, self._stat(host)))
