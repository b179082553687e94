"""Step waits: which worker of a store the others wait for, since when, and how often it was so.

A worker can be waited for once another has closed `bound` + 1 steps more than it: then that one's next pull is parked
(bsp: bound 0). The time that counts against a worker is that in which it alone was the slowest and somebody could wait,
so that of two slow workers only the slower is charged. A server sees every mark of its stores, so it can tell by
itself; servers see the same up to the time a mark takes to travel.

Invariant: what is counted is of sessions of the roster alone. The node's lock guards it; time arrives with each event.

Prior art: Horovod's stall inspector warns of ranks that hold up a collective, without saying how often.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from windlass_server.share_events import LEFT, Member


@dataclass(slots=True)
class StepCounts:
    """What is counted of one worker: `last` steps were closed by it last, for which the others waited `waited_s`."""

    closed: int
    last: int = 0
    waited_s: float = 0.0


class StepWaits:
    """One store's."""

    def __init__(self) -> None:
        self.workers: dict[bytes, StepCounts] = {}
        self._bound: int | None = None
        self._slowest: frozenset[bytes] = frozenset()
        self._lowest = 0
        self._waiting_since_s: float | None = None  # somebody can wait for the slowest
        self._alone_since_s: float | None = None  # and it is one

    def change(self, members: Iterable[Member], bound: int | None, now_s: float) -> None:
        """These count from now on, and may be `bound` steps apart (None: nobody waits for anybody)."""
        self._bound = bound
        before, self.workers = self.workers, {}
        for member in members:
            known = before.get(member.session, StepCounts(0))
            known.closed = max(known.closed, member.join_clock)
            self.workers[member.session] = known
        self._look(now_s)

    def close(self, session: bytes, closed: int, now_s: float) -> None:
        """`session` has closed `closed` steps, or LEFT."""
        worker = self.workers.get(session)
        if worker is None or closed <= worker.closed:
            return
        if self._alone_since_s is not None and session in self._slowest:
            worker.last += 1
            worker.waited_s += now_s - self._alone_since_s
        worker.closed = closed
        self._look(now_s)

    def awaited(self, now_s: float) -> dict[bytes, float]:
        """The sessions that somebody can wait for, and for how many seconds by now."""
        if self._waiting_since_s is None:
            return {}
        return dict.fromkeys(self._slowest, now_s - self._waiting_since_s)

    def _look(self, now_s: float) -> None:
        """Who is slowest now, and since when somebody can wait for it."""
        clocks = [worker.closed for worker in self.workers.values() if worker.closed < LEFT]
        lowest = min(clocks, default=0)
        slowest = frozenset(s for s, worker in self.workers.items() if worker.closed == lowest)
        waits = self._bound is not None and bool(clocks) and max(clocks) > lowest + self._bound
        if not waits or lowest != self._lowest:
            self._waiting_since_s = self._alone_since_s = None
        if waits and self._waiting_since_s is None:
            self._waiting_since_s = now_s
        if not waits or len(slowest) > 1 or slowest != self._slowest:
            self._alone_since_s = None
        if waits and len(slowest) == 1 and self._alone_since_s is None:
            self._alone_since_s = now_s
        self._lowest, self._slowest = lowest, slowest
