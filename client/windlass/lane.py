"""A lane: what of a worker's window goes to one server, in which order.

    heap      asked for and not sent, by priority, then by the order of asking
    again     sent once and to be sent again, in the order of the wire
    inflight  sent and not answered
    marks     steps that are closed, to be said after their entries

Invariant: a push that says it is the last of its step for some segments is not sent before what was asked for on them
earlier, except reads that do not care for the step: its step would be complete without those. Who waits for it inherits
its priority, as a lock's holder does its waiter's (Sha, Rajkumar, Lehoczky, IEEE Trans. Computers 39 (9), 1990).

The window core owns its lanes, and counts nothing but through them.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from windlass_proto.errors import InvariantError
from windlass_proto.frames import EntryFlag, Op

if TYPE_CHECKING:
    from windlass.window_core import Request, Stamp

_GRADIENTS: Final = frozenset({Op.PUSH, Op.PUSH_PULL})


@dataclass(slots=True)
class LaneMark:
    """Step `clock` of `store` is closed; with `leaves` it was the last."""

    store: int
    clock: int
    leaves: bool
    stamp: Stamp | None = None


@dataclass(slots=True)
class Lane:
    """See the module."""

    up: bool = False
    heap: list[tuple[int, int, Request]] = field(default_factory=list)
    again: deque[Request] = field(default_factory=deque)
    inflight: dict[int, Request] = field(default_factory=dict)
    inflight_bytes: int = 0
    marks: deque[LaneMark] = field(default_factory=deque)
    last_marks: dict[int, LaneMark] = field(default_factory=dict)
    waiting: dict[tuple[int, int], int] = field(default_factory=dict)  # (store, clock) -> entries not sent yet
    flying: dict[tuple[int, int], int] = field(default_factory=dict)  # (store, clock) -> entries in flight
    told: dict[int, int] = field(default_factory=dict)  # store -> the newest version whose record went over this link
    _of_block: dict[tuple[int, int], list[Request]] = field(default_factory=dict)  # (table, block) -> what waits

    # ---- what waits --------------------------------------------------------------------------------------------------

    def queue(self, request: Request) -> None:
        """It is asked for."""
        beside = self._of_block.setdefault((request.share[0], request.block), [])
        if beside and request.op in _GRADIENTS and request.flags & EntryFlag.LAST:
            self._hurry(beside, request)
        beside.append(request)
        heapq.heappush(self.heap, (-request.priority, request.order, request))
        key = (request.store, request.clock)
        self.waiting[key] = self.waiting.get(key, 0) + 1

    def _hurry(self, beside: list[Request], last: Request) -> None:
        """What is asked for on the segments of `last` may not wait longer than it does."""
        lower = [r for r in beside if r.priority < last.priority and _must_go_before(r, last)]
        for request in lower:
            request.priority = last.priority
        if lower:
            self.heap = [(-request.priority, order, request) for _, order, request in self.heap]
            heapq.heapify(self.heap)

    def unqueue(self, request: Request) -> None:
        """It goes on the wire."""
        if self.heap[0][2] is request:
            heapq.heappop(self.heap)
        else:
            self.heap = [item for item in self.heap if item[2] is not request]
            heapq.heapify(self.heap)
        self._forget(request)

    def drain(self, is_gone: Callable[[Request], bool]) -> list[Request]:
        """Take out what waits and `is_gone`, in its order."""
        gone = [item for item in sorted(self.heap) if is_gone(item[2])]
        self.heap = [item for item in self.heap if not is_gone(item[2])]
        heapq.heapify(self.heap)
        for _, _, request in gone:
            self._forget(request)
        return [request for _, _, request in gone]

    def _forget(self, request: Request) -> None:
        _take_one(self.waiting, (request.store, request.clock))
        key = (request.share[0], request.block)
        beside = self._of_block[key]
        beside.remove(request)
        if not beside:
            del self._of_block[key]

    def queued(self) -> Iterator[Request]:
        """What waits, in no order."""
        return (request for _, _, request in self.heap)

    def first_to_complete(self) -> Request | None:
        """Of the entries of the oldest step under way the first that waits."""
        if not any(self.completes_open_step(*key) for key in self.waiting):
            return None
        return min(item for item in self.heap if self.completes_open_step(item[2].store, item[2].clock))[2]

    # ---- what is under way -------------------------------------------------------------------------------------------

    def launch(self, request: Request) -> None:
        """It is on the wire."""
        self.inflight[request.tag] = request
        self.inflight_bytes += request.nbytes
        key = (request.store, request.clock)
        self.flying[key] = self.flying.get(key, 0) + 1

    def land(self, request: Request) -> None:
        """It is answered, or given up."""
        del self.inflight[request.tag]
        self.inflight_bytes -= request.nbytes
        _take_one(self.flying, (request.store, request.clock))

    def completes_open_step(self, store: int, clock: int) -> bool:
        """Does an entry of step `clock` belong to the oldest step under way?"""
        return clock <= min((c for s, c in self.flying if s == store), default=clock)

    # ---- marks -------------------------------------------------------------------------------------------------------

    def is_due(self, mark: LaneMark) -> bool:
        """Have all entries of the mark's step been sent, and sent again where a link broke?"""
        if any(store == mark.store and clock <= mark.clock for store, clock in self.waiting):
            return False
        return not any(request.store == mark.store for request in self.again)

    def repeat_marks(self) -> None:
        """The server may not have heard the newest."""
        self.marks.extendleft(mark for mark in self.last_marks.values() if mark not in self.marks)

    def validate(self, server: int) -> None:
        """Check that nothing is miscounted, and that no last push is ahead of what must go before it.

        Raises:
            InvariantError: if it is.
        """
        flying = Counter((request.store, request.clock) for request in self.inflight.values())
        nbytes = sum(request.nbytes for request in self.inflight.values())
        if self.inflight_bytes != nbytes or self.flying != flying:
            raise InvariantError("what is in flight is miscounted", server=server, nbytes=nbytes)
        if self.waiting != Counter((request.store, request.clock) for request in self.queued()):
            raise InvariantError("what waits is miscounted", server=server)
        if sum(map(len, self._of_block.values())) != len(self.heap):
            raise InvariantError("what waits is not listed by its block", server=server)


def _must_go_before(request: Request, last: Request) -> bool:
    """Were `request` sent after `last`, would it come late for its step, or read a later one?"""
    return (
        request.store == last.store
        and request.seg_begin < last.seg_end
        and last.seg_begin < request.seg_end
        and not request.flags & EntryFlag.NOWAIT
    )


def _take_one(counts: dict[tuple[int, int], int], key: tuple[int, int]) -> None:
    """One less under `key`; a count of nothing goes."""
    if counts[key] == 1:
        del counts[key]
    else:
        counts[key] -= 1
