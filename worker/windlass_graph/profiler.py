"""Where time and memory go: `wl.profiler`.

    with wl.profiler.profile() as profile:
        train_for_a_while()
    print(profile)                    # a row an op or node, the slowest first
    profile.save("trace.json")        # for chrome://tracing or ui.perfetto.dev

It sees steps of programs (executors, hybrid blocks) under their nodes' names and ops on arrays under the ops' own, in
all threads. Invariant: without a profile nothing is measured; with one each op costs some three microseconds more, and
on a GPU is waited for. A profile keeps its first `EVENTS_MAX` events and counts the rest; it belongs to the block that
made it, and may be read when that has ended.

The file follows the Trace Event Format of the Chromium project: complete events ("X"), counters ("C"), metadata ("M").
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from windlass_graph.device import Device
from windlass_graph.observation import Ran, observed_by

EVENTS_MAX: Final = 1_000_000
"""About 300 bytes each."""


@dataclass(frozen=True, slots=True)
class Row:
    """All calls of one op under one name."""

    op: str
    name: str
    calls: int
    total_us: float
    mean_us: float
    p95_us: float
    nbytes: int
    """Written by all calls together."""


class _Event(NamedTuple):
    kind: str
    op: str
    name: str
    where: str
    nbytes: int
    device: Device
    thread: int
    begin_ns: int
    end_ns: int


class Profile:
    """What ran inside one `profile()` block."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began_ns = time.perf_counter_ns()
        self._events: list[_Event] = []
        self._tracks: dict[tuple[int, Device], tuple[int, str]] = {}
        """By thread and device, a number and a name."""
        self.lost_events = 0
        """Events behind the first `EVENTS_MAX`, of which nothing is kept."""

    def run_begins(self, first_step: int) -> None:
        """Nothing: a run is told of when it has ended."""

    def ran(self, event: Ran) -> None:
        """Keep one event."""
        kind, op, name, where, _, nbytes, device, begin_ns, end_ns = event
        thread = threading.get_ident()
        if (thread, device) not in self._tracks:
            self._add_track(thread, device)
        if len(self._events) < EVENTS_MAX:
            self._events.append(_Event(kind, op, name, where, nbytes, device, thread, begin_ns, end_ns))
        else:
            with self._lock:
                self.lost_events += 1

    def _add_track(self, thread: int, device: Device) -> None:
        with self._lock:
            name = f"{threading.current_thread().name} on {device}"
            self._tracks[thread, device] = (len(self._tracks) + 1, name)

    @property
    def runs(self) -> int:
        """Runs of programs; one in two parts counts twice."""
        return sum(event.kind == "run" for event in self._events)

    def rows(self) -> list[Row]:
        """One row for each op and name, the largest total first. Runs of whole programs are left out."""
        calls: dict[tuple[str, str], list[_Event]] = {}
        for event in self._events:
            if event.kind != "run":
                calls.setdefault((event.op, event.name), []).append(event)
        rows = [_row(op, name, events) for (op, name), events in calls.items()]
        return sorted(rows, key=lambda row: (-row.total_us, row.name))

    def __str__(self) -> str:
        rows = self.rows()
        total = sum(row.total_us for row in rows) or 1.0
        width = max((len(row.name) for row in rows), default=4)
        ops = max((len(row.op) for row in rows), default=2)
        numbers = f"{'calls':>7} {'total us':>11} {'share':>6} {'mean us':>9} {'p95 us':>9} {'MiB':>9}"
        lines = [f"{'op':<{ops}} {'name':<{width}} {numbers}"]
        lines += [
            f"{row.op:<{ops}} {row.name:<{width}} {row.calls:>7} {row.total_us:>11.1f} {row.total_us / total:>6.1%}"
            f" {row.mean_us:>9.1f} {row.p95_us:>9.1f} {row.nbytes / 2**20:>9.2f}"
            for row in rows
        ]
        if self.lost_events:
            lines.append(f"{self.lost_events} more events are not in this table")
        return "\n".join(lines)

    def trace(self) -> dict[str, Any]:
        """The profile in the Trace Event Format, as `save` writes it."""
        events: list[dict[str, Any]] = [_metadata("process_name", 0, "windlass")]
        events += [_metadata("thread_name", track, name) for track, name in self._tracks.values()]
        for event in self._events:
            begin = (event.begin_ns - self._began_ns) / 1000
            lasted = (event.end_ns - event.begin_ns) / 1000
            place = {"pid": 1, "tid": self._tracks[event.thread, event.device][0]}
            args = {"op": event.op, "bytes": event.nbytes, **({"made_at": event.where} if event.where else {})}
            events.append(
                {"ph": "X", "cat": event.kind, "name": event.name, "ts": begin, "dur": lasted, **place, "args": args}
            )
            if event.kind == "run":
                for at, nbytes in ((begin, event.nbytes), (begin + lasted, 0)):
                    events.append({"ph": "C", "name": "arena", "ts": at, **place, "args": {"bytes": nbytes}})
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def save(self, path: str | Path) -> None:
        """Write `trace()` as JSON."""
        Path(path).write_text(json.dumps(self.trace()), encoding="utf-8")


def _row(op: str, name: str, events: list[_Event]) -> Row:
    lasted = sorted((event.end_ns - event.begin_ns) / 1000 for event in events)
    total = sum(lasted)
    p95 = lasted[min(len(lasted) - 1, (len(lasted) * 95) // 100)]
    return Row(op, name, len(lasted), total, total / len(lasted), p95, sum(event.nbytes for event in events))


def _metadata(name: str, track: int, value: str) -> dict[str, Any]:
    return {"ph": "M", "name": name, "pid": 1, "tid": track, "args": {"name": value}}


@contextmanager
def profile() -> Iterator[Profile]:
    """Measure all ops that run inside, in whatever thread."""
    found = Profile()
    with observed_by(found):
        yield found
