"""Threads that loops are shared among: a kernel cuts its work into as many parts as there are threads.

    threads = Threads(2)
    threads.share(work, items, nbytes)      # work(begin, end) for parts of range(items), at once, then goes on

The caller's thread takes the first part. The others are taken by threads that are started when there is work and end
when there was none for `LINGER_S`, so what forgets to stop them leaves nothing behind; `stop` ends and joins them now.
Handing a part over costs 30 us on a quiet core and 200 on one where a thread of BLAS still spins, so work that moves
less than `NBYTES_MIN` is not shared.

Parts run at once where they hold no interpreter lock: compiled loops, and NumPy's. Owner: the process (`of_process`),
as all its devices of kind cpu have the same cores; several threads may share at once, each waits for its own parts.
"""

from __future__ import annotations

import functools
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

LINGER_S: Final = 0.3
NBYTES_MIN: Final = 4 << 20
COUNT_MAX: Final = 64

Work = Callable[[int, int], None]


@dataclass(slots=True)
class _Part:
    """One part of shared work; its caller reads `raised` once `ended` is set."""

    work: Work
    begin: int
    end: int
    ended: threading.Event = field(default_factory=threading.Event)
    raised: BaseException | None = None

    def run(self) -> None:
        try:
            self.work(self.begin, self.end)
        except BaseException as cause:  # noqa: BLE001 - raised again by the caller, whose thread this is not
            self.raised = cause
        self.ended.set()


class Threads:
    """`count` threads, the caller's among them."""

    def __init__(self, count: int) -> None:
        self.count = max(1, min(count, COUNT_MAX))
        self._parts: queue.SimpleQueue[_Part | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards the two below
        self._started: list[threading.Thread] = []
        self._idle = 0  # threads that wait, less parts that wait for one

    def share(self, work: Work, items: int, nbytes: int) -> None:
        """Call `work(begin, end)` for parts that cover range(items), in one part unless `nbytes` moved are worth more.

        Raises:
            BaseException: what a part raised, once all have ended.
        """
        count = min(self.count, items) if nbytes >= NBYTES_MIN else 1
        if count <= 1:
            work(0, items)
            return
        ends = [items * k // count for k in range(count + 1)]
        parts = [_Part(work, ends[k], ends[k + 1]) for k in range(1, count)]
        for part in parts:
            self._hand_over(part)
        try:
            work(0, ends[1])
        finally:
            for part in parts:
                part.ended.wait()
        for part in parts:
            if part.raised is not None:
                raise part.raised

    def stop(self) -> None:
        """End the threads and join them; work that comes after starts new ones."""
        with self._lock:
            leaving, self._started, self._idle = self._started, [], 0
            for _ in leaving:
                self._parts.put(None)
            self._parts = queue.SimpleQueue()  # parts handed over before are ahead of the Nones, and are taken
        for thread in leaving:
            thread.join()

    def _hand_over(self, part: _Part) -> None:
        with self._lock:
            self._parts.put(part)
            self._idle -= 1
            if self._idle < 0 and len(self._started) < self.count - 1:
                thread = threading.Thread(target=self._take_parts, args=(self._parts,), name="windlass-loops")
                self._started.append(thread)
                self._idle += 1
                thread.start()

    def _take_parts(self, parts: queue.SimpleQueue[_Part | None]) -> None:
        while True:
            try:
                part = parts.get(timeout=LINGER_S)
            except queue.Empty:
                with self._lock:
                    if not parts.empty():
                        continue
                    if threading.current_thread() in self._started:
                        self._started.remove(threading.current_thread())
                        self._idle -= 1
                    return
            if part is None:
                return
            part.run()
            with self._lock:
                if parts is self._parts:
                    self._idle += 1


def available() -> int:
    """Threads that a process should use: those its BLAS is told to, else the cores it may run on."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        told = os.environ.get(name, "")
        if told.isdecimal() and int(told) > 0:
            return min(int(told), COUNT_MAX)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def of_process() -> Threads:
    """The threads of this process, which end by themselves."""
    return Threads(available())
