"""loss.png: the course of a run's losses, drawn from its metrics.jsonl.

It reads the public format and nothing else, so that a run that ended in any way can be drawn again. matplotlib comes
with the extra `plot`; it is imported here, at the end of a run, and without pyplot, which would look for a display.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, Final

_LINES_READ_MAX: Final = 100_000  # half a second of reading; of a longer file every n-th line counts
_LINE_BYTES: Final = 64
_SMOOTH_SHARE: Final = 80  # the bold line is a mean over 2/80 of the points
_LOG_FROM_RATIO: Final = 100.0  # highest to lowest, from which a straight axis shows nothing

Course = tuple[list[int], list[float]]


def draw(folder: Path) -> str:
    """Write loss.png into `folder`: empty if that worked or nothing was to be drawn, else one sentence why not."""
    courses = _losses(folder / "metrics.jsonl")
    if not courses:
        return ""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return "no loss.png: matplotlib is not installed; pip install 'windlass[plot]' adds it"
    figure = Figure(figsize=(7.0, 4.0), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, course) in enumerate(courses.items()):
        _line(axes, name, course, f"C{number % 10}")
    axes.set_title(folder.name, loc="left", fontsize=10)
    axes.set_xlabel("step")
    every = sorted(value for _, values in courses.values() for value in values)
    if every[0] > 0.0 and every[-1] > _LOG_FROM_RATIO * every[0]:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0.0 if every[0] >= 0.0 else None)
    axes.margins(x=0.0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, alpha=0.25)
    try:
        figure.savefig(folder / "loss.png")
    except OSError as error:
        return f"no loss.png: {error.strerror or error}"
    return ""


def _line(axes: Any, name: str, course: Course, colour: str) -> None:
    """The raw course thin, its running mean bold, the last mean at its end."""
    steps, values = course
    means = _running_means(values, len(values) // _SMOOTH_SHARE)
    axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.8)
    axes.plot(steps, means, color=colour, linewidth=1.8)
    end = (steps[-1], means[-1])
    axes.annotate(f"{name} {means[-1]:.4g}", end, (5, 0), textcoords="offset points", va="center", color=colour)


def _running_means(values: list[float], width: int) -> list[float]:
    """Each value's mean with its neighbours, `width` on either side where there are so many."""
    sums = [0.0, *itertools.accumulate(values)]
    spans = [(max(0, i - width), min(len(values), i + width + 1)) for i in range(len(values))]
    return [(sums[end] - sums[begin]) / (end - begin) for begin, end in spans]


def _losses(path: Path) -> dict[str, Course]:
    """Every scalar whose name speaks of a loss, with its steps; values that were not finite are left out."""
    found: dict[str, Course] = {}
    try:
        every = 1 + path.stat().st_size // (_LINE_BYTES * _LINES_READ_MAX)
        with path.open("rb") as file:
            for number, line in enumerate(file):
                if number % every == 0 and line.endswith(b"\n"):
                    _add(found, json.loads(line))
    except FileNotFoundError:
        return {}
    return {name: _by_step(course) for name, course in found.items()}


def _by_step(course: Course) -> Course:
    """What was written late stands where it belongs."""
    steps, values = course
    order = sorted(range(len(steps)), key=steps.__getitem__)
    return [steps[i] for i in order], [values[i] for i in order]


def _add(found: dict[str, Course], record: dict[str, Any]) -> None:
    for name, value in record.items():
        if "loss" in name.lower() and value is not None:
            steps, values = found.setdefault(name, ([], []))
            steps.append(record["step"])
            values.append(value)
