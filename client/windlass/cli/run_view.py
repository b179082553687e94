"""What `windlass run` shows: worker lines as they come, and the logged scalars.

`LiveView` owns a terminal: lines scroll above one block of figures and curves. `PlainView` is for a file or a
pipe: lines go where the worker wrote them (output or error), scalars are one line every two seconds. Neither
waits for the cluster. Owner: the launcher's main thread.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Final, Protocol

from windlass.cli.complaint import in_colour
from windlass.cli.scalars import PROGRESS, Scalars, number
from windlass.cli.status import duration
from windlass.cli.worker_fleet import Line

if TYPE_CHECKING:
    from rich.console import RenderableType

_PLAIN_EVERY_S: Final = 2.0
_LIVE_EVERY_S: Final = 0.125
_CURVE_CELLS: Final = 40
_BAR_CELLS: Final = 60
_LEVELS: Final = "▁▂▃▄▅▆▇█"


class RunView(Protocol):
    """Where a run's output goes; `close` leaves the last figures shown."""

    def line(self, line: Line) -> None: ...
    def say(self, text: str) -> None: ...
    def show(self, scalars: Scalars, running: int) -> None: ...
    def close(self, scalars: Scalars) -> None: ...


def open_view(workers: int) -> RunView:
    """Live figures on a terminal, plain lines elsewhere and on a dumb one."""
    import os

    if sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb":
        return LiveView(workers)
    return PlainView(workers)


def prefix(rank: int, workers: int) -> str:
    return f"[worker {rank}] " if workers > 1 else ""


class PlainView:
    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._said_s = time.monotonic()
        self._said = ""

    def line(self, line: Line) -> None:
        out = sys.stderr if line.error else sys.stdout
        out.write(f"{prefix(line.rank, self._workers)}{line.text}\n")
        out.flush()

    def say(self, text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def show(self, scalars: Scalars, running: int) -> None:
        if time.monotonic() > self._said_s + _PLAIN_EVERY_S:
            self._said_s = time.monotonic()
            self._once(scalars)

    def close(self, scalars: Scalars) -> None:
        self._once(scalars)

    def _once(self, scalars: Scalars) -> None:
        text = scalars.words()
        if scalars.latest and text != self._said:
            self._said = text
            self.say(text)


class LiveView:
    """Rich's live display; colour unless `NO_COLOR` is set."""

    def __init__(self, workers: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._workers = workers
        self._began_s = self._shown_s = time.monotonic()
        self._console = Console(highlight=False, no_color=not in_colour(sys.stdout.fileno()))
        self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self._live.start()

    def line(self, line: Line) -> None:
        from rich.text import Text

        rank = (prefix(line.rank, self._workers), "red" if line.error else "cyan")
        self._console.print(Text.assemble(rank, Text.from_ansi(line.text)), soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def show(self, scalars: Scalars, running: int) -> None:
        if time.monotonic() > self._shown_s + _LIVE_EVERY_S:
            self._shown_s = time.monotonic()
            self._live.update(self._block(scalars, running), refresh=True)

    def close(self, scalars: Scalars) -> None:
        self._live.update(self._block(scalars, 0), refresh=True)
        self._live.stop()

    def _block(self, scalars: Scalars, running: int) -> RenderableType:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        elapsed_s = time.monotonic() - self._began_s
        steps_s = scalars.steps_s()
        head = [f"{running} of {self._workers} workers", duration(elapsed_s)]
        if scalars.step >= 0:
            head.append(f"step {scalars.step:,}")
        if steps_s:
            head.append(f"{steps_s:,.0f} steps/s")
        rows: list[Text] = []
        done = scalars.latest.get(PROGRESS)
        if done is not None and 0 < done <= 1:
            head.append(f"{done:.0%}")
            head.append(f"{duration(elapsed_s * (1 - done) / done)} left" if done < 1 else "done")
            full = round(done * _BAR_CELLS)
            rows.append(Text("━" * full, style="green").append("─" * (_BAR_CELLS - full), style="dim"))
        grid = Table.grid(padding=(0, 2))
        for name, value in scalars.latest.items():
            if name != PROGRESS:
                grid.add_row(name, curve(scalars.course[name]), number(value))
        return Group(Text("  ".join(head), style="bold"), *rows, grid)


def curve(course: deque[float]) -> str:
    """The course of a scalar in block characters, oldest left; each cell is the mean of its part."""
    finite = [value for value in course if value - value == 0]
    if not finite:
        return ""
    cells = min(_CURVE_CELLS, len(finite))
    bounds = [len(finite) * at // cells for at in range(cells + 1)]
    means = [sum(islice(finite, begin, end)) / (end - begin) for begin, end in pairwise(bounds)]
    low, high = min(means), max(means)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(_LEVELS[round((mean - low) * scale)] for mean in means)
