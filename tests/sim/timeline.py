"""Virtual time: one queue of what happens next, and links that are streams with faults.

A link keeps its order whatever it delays, as a stream does. To lose a frame is to break the link at it: what was
behind it is lost, what was before it may still arrive, for a while, on a connection whose client has already gone to
make another. Links are independent, so frames of different links overtake each other.

Owner: the one thread of the simulation. All randomness comes from the seed's generator.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from random import Random


class Timeline:
    """Events in order of virtual seconds, then of being scheduled."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.now_s = 0.0
        self.events = 0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._scheduled = 0

    def after(self, delay_s: float, event: Callable[[], None]) -> float:
        """Run `event` in `delay_s`; returns when."""
        return self.at(self.now_s + delay_s, event)

    def at(self, when_s: float, event: Callable[[], None]) -> float:
        self._scheduled += 1
        heapq.heappush(self._queue, (when_s, self._scheduled, event))
        return when_s

    def step(self) -> bool:
        """Run the next event, if there is one."""
        if not self._queue:
            return False
        self.now_s, _, event = heapq.heappop(self._queue)
        self.events += 1
        event()
        return True


@dataclass(slots=True)
class Faults:
    """Probabilities, each of one frame; all become zero when the safety phase ends."""

    drop: float = 0.0
    duplicate: float = 0.0
    refuse: float = 0.0
    slow: float = 0.0

    def stop(self) -> None:
        self.drop = self.duplicate = self.refuse = self.slow = 0.0


class Link:
    """One connection between a worker and a server; `to_server` and `to_worker` receive frames as bytes."""

    def __init__(
        self,
        timeline: Timeline,
        faults: Faults,
        to_server: Callable[[Link, bytes], None],
        to_worker: Callable[[Link, bytes], None],
        broken: Callable[[Link], None],
    ) -> None:
        self.timeline = timeline
        self.faults = faults
        self.client_open = True  # the worker still uses it
        self.server_open = True  # the server still takes frames from it
        self.unread = 0  # frames of the worker that the server has not taken
        self._to_server = to_server
        self._to_worker = to_worker
        self._broken = broken
        self._cut = False
        self._lost_from_s = float("inf")
        self._last_s = [0.0, 0.0]

    def send_to_server(self, frame: bytes) -> None:
        if self._cut or not self.client_open:
            return
        if self._is_cut_now():
            return
        self.unread += 1
        for _ in range(self._copies()):
            self._schedule(0, lambda: self._arrive_at_server(frame))
        self._schedule(0, self._taken)

    def send_to_worker(self, frame: bytes) -> None:
        if self._cut or not self.server_open or self._is_cut_now():
            return
        for _ in range(self._copies()):
            self._schedule(1, lambda: self._arrive_at_worker(frame))

    def break_it(self) -> None:
        """The link breaks; its worker notices a little later."""
        if not self._cut:
            self._cut = True
            self._lost_from_s = self.timeline.now_s + self.timeline.rng.uniform(0.0, 0.01)
            self.timeline.after(self.timeline.rng.uniform(0.0, 0.02), lambda: self._broken(self))

    def _is_cut_now(self) -> bool:
        if self.timeline.rng.random() < self.faults.drop:
            self.break_it()
        return self._cut

    def _copies(self) -> int:
        return 2 if self.timeline.rng.random() < self.faults.duplicate else 1

    def _schedule(self, direction: int, event: Callable[[], None]) -> None:
        rng = self.timeline.rng
        delay_s = rng.expovariate(1 / 0.02) if rng.random() < self.faults.slow else rng.uniform(0.0005, 0.003)
        arrives_s = max(self._last_s[direction], self.timeline.now_s + delay_s)
        self._last_s[direction] = self.timeline.at(arrives_s, event)

    def _taken(self) -> None:
        self.unread -= 1

    def _arrive_at_server(self, frame: bytes) -> None:
        if self.server_open and self.timeline.now_s < self._lost_from_s:
            self._to_server(self, frame)

    def _arrive_at_worker(self, frame: bytes) -> None:
        if self.client_open:
            self._to_worker(self, frame)
