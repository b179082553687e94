"""Who watches ops run: profiles and monitors, told of each step of a program and of each op on arrays.

Invariant: while nobody watches, a run asks once and an op on arrays once whether anybody does, and nothing else is
done. Observers see all threads of the process. The tuple is replaced as a whole under the lock, so a run in progress
keeps the observers with which it began.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol

from windlass_graph.device import Device


class Ran(NamedTuple):
    """One op that has run, or one run of a program.

    Args:
        kind: "step" of a program, "op" on arrays, "run", which encloses its steps, or "store": a trainer sent a
            gradient to the cluster or waited for values.
        op: its name in the op table; of a run "program".
        name: the node's; of an op on arrays the op's; of a run its first output's.
        where: the line that made it, "" if unknown.
        outs: its results, which belong to the plan: read them now or copy them. Empty for a run.
        nbytes: what it wrote; of a run the arena it needs.
        begin_ns, end_ns: of `time.perf_counter_ns`; on a GPU the end is when it was done there.
    """

    kind: str
    op: str
    name: str
    where: str
    outs: Sequence[Any]
    nbytes: int
    device: Device
    begin_ns: int
    end_ns: int


class Observer(Protocol):
    """Called in the thread that runs the op, one call at a time in each."""

    def run_begins(self, first_step: int) -> None:
        """A program is about to run from this step; 0 begins a new run, another number goes on with one."""

    def ran(self, event: Ran) -> None: ...


class _Watch:
    """The observers of this process."""

    __slots__ = ("lock", "observers")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.observers: tuple[Observer, ...] = ()


WATCH: Final = _Watch()


@contextmanager
def observed_by(observer: Observer) -> Iterator[None]:
    """Inside, the observer is told of whatever runs in this process."""
    with WATCH.lock:
        WATCH.observers = (*WATCH.observers, observer)
    try:
        yield
    finally:
        with WATCH.lock:
            WATCH.observers = tuple(each for each in WATCH.observers if each is not observer)


@contextmanager
def observed(kind: str, op: str, name: str, nbytes: int, device: Device) -> Iterator[None]:
    """Tell who watches of what is done inside, which is no op: how long it took, and of how many bytes it was."""
    begin_ns = time.perf_counter_ns()
    yield
    for observer in WATCH.observers:
        observer.ran(Ran(kind, op, name, "", (), nbytes, device, begin_ns, time.perf_counter_ns()))


def settle(device: Device) -> None:
    """Wait until a GPU has done what it was given, so that the clock means something."""
    if device.kind == "gpu":
        device.xp.cuda.get_current_stream().synchronize()
