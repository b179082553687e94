"""The window core: what a worker has asked for, sent, and not yet had answered.

It is sans-I/O. A driver submits requests, asks for the next frame of each server when its link can take one, and hands in
answers and link changes; the core says which requests are finished.

Invariants (checked by `validate`):
- A seq is given to a writing entry when it goes on the wire, never before, so priorities may reorder what waits but never
  what was sent. From then on the entry is frozen until it is answered: same seq, same bytes, same place in its share's order.
- Every closed step's mark reaches every server with a share of its store, after the step's entries; a mark is repeated after
  a reconnect (marks are monotonic, so repeats are harmless).
- A request finishes exactly once.
- Bytes on their way to a server stay within `credit_bytes`, except that one frame may always be under way.

Prior art: TCP's send window, and the task queues of ps-lite's customer, without its shared message struct.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from windlass_proto import limits
from windlass_proto.errors import InvariantError, ProtocolError
from windlass_proto.frames import Entry, EntryFlag, Flag, Op, Status

WRITES: Final = frozenset({Op.PUSH, Op.PUSH_PULL, Op.INIT, Op.ASSIGN})


class Request:
    """One entry's worth of wish. `owner` is told when it is finished; payload and out are the driver's own.

    `nbytes` counts the values that travel in the frame. `share` is (table, vshard), the unit of ordering.
    """

    __slots__ = (
        "block",
        "clock",
        "flags",
        "generation",
        "nbytes",
        "op",
        "order",
        "out",
        "owner",
        "payload",
        "priority",
        "seg_begin",
        "seg_end",
        "seq",
        "server",
        "share",
        "stamp",
        "store",
        "tag",
        "weight",
        "wire",
    )

    def __init__(
        self,
        op: Op,
        store: int,
        share: tuple[int, int],
        block: int,
        seg_begin: int,
        seg_end: int,
        *,
        owner: Any = None,
        clock: int = 0,
        payload: Any = None,
        nbytes: int = 0,
        out: Any = None,
        weight: float = 1.0,
        stamp: int = 0,
        last: bool = True,
        nowait: bool = False,
        priority: int = 0,
    ) -> None:
        self.op = op
        self.store = store
        self.share = share
        self.block = block
        self.seg_begin = seg_begin
        self.seg_end = seg_end
        self.owner = owner
        self.clock = clock
        self.payload = payload
        self.nbytes = nbytes
        self.out = out
        self.weight = weight
        self.stamp = stamp
        self.flags = (EntryFlag.LAST if last else 0) | (EntryFlag.NOWAIT if nowait else 0)
        self.priority = priority
        self.seq = 0
        self.tag = 0
        self.order = 0
        self.wire = 0
        self.server = -1
        self.generation = 0


class OutFrame(NamedTuple):
    """What to send next to one server: its requests in order, and the mark that rides on it."""

    store: int
    flags: int
    clock: int
    generation: int
    requests: list[Request]


class Finished(NamedTuple):
    """A request is answered for good. `answer` is the entry that said so."""

    request: Request
    status: Status
    answer: Entry


@dataclass(slots=True)
class _Mark:
    store: int
    clock: int
    leaves: bool


@dataclass(slots=True)
class _Lane:
    """One server's queue."""

    up: bool = False
    heap: list[tuple[int, int, Request]] = field(default_factory=list)
    again: deque[Request] = field(default_factory=deque)  # frozen entries to send once more, in order
    inflight: dict[int, Request] = field(default_factory=dict)
    inflight_bytes: int = 0
    marks: deque[_Mark] = field(default_factory=deque)
    last_marks: dict[int, _Mark] = field(default_factory=dict)
    waiting: dict[tuple[int, int], int] = field(default_factory=dict)  # (store, clock) -> entries not sent yet


class WindowCore:
    """The window of one session over all servers. The driver's pump lock owns it."""

    def __init__(
        self,
        server_of: Callable[[int], int],
        *,
        credit_bytes: int = limits.CREDIT_BYTES,
        frame_bytes: int = limits.FRAME_PAYLOAD_BYTES_TARGET,
    ) -> None:
        self.server_of = server_of
        self.generation = 0
        self.credit_bytes = credit_bytes
        self.frame_bytes = frame_bytes
        self.lanes: dict[int, _Lane] = {}
        self.seqs: dict[tuple[int, int], int] = {}
        self._returned: dict[tuple[int, int], list[Request]] = {}
        self._unanswered: dict[tuple[int, int], int] = {}
        self._fenced: list[Request] = []
        self._orders = 0
        self._wires = 0

    # ---- wishes ------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> int:
        """Queue a request; returns the server it goes to."""
        self._orders += 1
        request.order = self._orders
        self._queue(request)
        return request.server

    def close_step(self, store: int, clock: int, servers: Iterable[int], *, leaves: bool = False) -> None:
        """Send the mark of `clock` to `servers` once the entries of its step have gone there."""
        for server in servers:
            lane = self._lane(server)
            lane.marks.append(_Mark(store, clock, leaves))

    # ---- the wire ----------------------------------------------------------------------------------------------------

    def wants(self, server: int) -> bool:
        """Is there something to send to `server` now?"""
        lane = self.lanes.get(server)
        if lane is None or not lane.up:
            return False
        if lane.again or lane.heap:
            return lane.inflight_bytes < self.credit_bytes or not lane.inflight
        return bool(lane.marks)

    def next_frame(self, server: int) -> OutFrame | None:
        """The next frame for `server`, or None if there is nothing or no credit. What it holds is frozen from now on."""
        lane = self.lanes.get(server)
        if lane is None or not lane.up:
            return None
        requests = self._take(lane)
        store = requests[0].store if requests else lane.marks[0].store if lane.marks else 0
        mark = self._due_mark(lane, store)
        if not requests and mark is None:
            return None
        flags = 0
        if mark is not None:
            flags = Flag.MARK | (Flag.LEAVE if mark.leaves else 0)
        return OutFrame(store, flags, mark.clock if mark else 0, self.generation, requests)

    def _take(self, lane: _Lane) -> list[Request]:
        """Requests of one store that fit a frame and the credit."""
        taken: list[Request] = []
        nbytes = 0
        while len(taken) < limits.FRAME_ENTRIES_MAX:
            source_again = bool(lane.again)
            if source_again:
                request = lane.again[0]
            elif lane.heap:
                request = lane.heap[0][2]
            else:
                break
            if taken and (request.store != taken[0].store or nbytes + request.nbytes > self.frame_bytes):
                break
            if lane.inflight_bytes + request.nbytes > self.credit_bytes and lane.inflight:
                break
            if source_again:
                lane.again.popleft()
            else:
                heapq.heappop(lane.heap)
                self._freeze(lane, request)
            lane.inflight[request.tag] = request
            lane.inflight_bytes += request.nbytes
            nbytes += request.nbytes
            taken.append(request)
        return taken

    def _freeze(self, lane: _Lane, request: Request) -> None:
        key = (request.store, request.clock)
        left = lane.waiting[key] - 1
        if left:
            lane.waiting[key] = left
        else:
            del lane.waiting[key]
        self._wires += 1
        request.wire = self._wires
        request.tag = self._wires & 0xFFFFFFFF
        if request.op in WRITES:
            request.seq = self.seqs[request.share] = self.seqs.get(request.share, 0) + 1
            self._unanswered[request.share] = self._unanswered.get(request.share, 0) + 1
        request.generation = self.generation

    def _due_mark(self, lane: _Lane, store: int) -> _Mark | None:
        """The newest mark of `store` whose step's entries have all been sent, older ones being implied by it."""
        if not lane.marks:
            return None
        if lane.again and any(request.store == store for request in lane.again):
            return None
        due = None
        open_clocks = [clock for (s, clock) in lane.waiting if s == store]
        lowest = min(open_clocks) if open_clocks else None
        kept: deque[_Mark] = deque()
        for mark in lane.marks:
            if mark.store == store and (lowest is None or lowest > mark.clock):
                due = mark
            else:
                kept.append(mark)
        lane.marks = kept
        if due is not None:
            lane.last_marks[store] = due
        return due

    # ---- answers -----------------------------------------------------------------------------------------------------

    def request_of(self, server: int, tag: int) -> Request | None:
        """The request in flight to `server` under `tag`."""
        return self.lanes[server].inflight.get(tag)

    def on_answer(self, server: int, answer: Entry) -> Finished | None:
        """An entry came back. None: it will be sent again, or was answered before.

        Raises:
            ProtocolError: if the server answers what was never asked.
        """
        lane = self.lanes[server]
        request = lane.inflight.get(answer.tag)
        if request is None:
            if answer.tag > self._wires:
                raise ProtocolError("a server answered what was never asked", tag=answer.tag)
            return None
        del lane.inflight[answer.tag]
        lane.inflight_bytes -= request.nbytes
        status = Status(answer.status)
        if status in (Status.GAP, Status.RETRY):
            self._return(lane, request)
            return None
        if status is Status.FENCED:
            self._fenced.append(request)
            return None
        if request.op in WRITES:
            self._settle(lane, request.share)
        return Finished(request, status, answer)

    def _return(self, lane: _Lane, request: Request) -> None:
        """The server did not take the entry: once all its share's entries are back, they go again, in order."""
        if request.op not in WRITES:
            lane.again.append(request)
            return
        self._returned.setdefault(request.share, []).append(request)
        self._resend_if_all_back(lane, request.share)

    def _settle(self, lane: _Lane, share: tuple[int, int]) -> None:
        left = self._unanswered[share] - 1
        if left:
            self._unanswered[share] = left
            self._resend_if_all_back(lane, share)
        else:
            del self._unanswered[share]

    def _resend_if_all_back(self, lane: _Lane, share: tuple[int, int]) -> None:
        returned = self._returned.get(share)
        if returned and len(returned) == self._unanswered.get(share, 0):
            del self._returned[share]
            lane.again.extend(sorted(returned, key=lambda request: request.seq))

    # ---- links and routing -------------------------------------------------------------------------------------------

    def link_up(self, server: int) -> None:
        """The link to `server` stands: frozen entries go again, then the newest marks."""
        self._lane(server).up = True

    def link_down(self, server: int) -> None:
        """The link to `server` is gone. What was unanswered stays as it is, to be sent again in its first order."""
        lane = self._lane(server)
        lane.up = False
        back = [*lane.inflight.values(), *lane.again]
        for share in [share for share in self._returned if self.server_of(share[1]) == server]:
            back += self._returned.pop(share)
        lane.again = deque(sorted(back, key=lambda request: request.wire))
        lane.inflight = {}
        lane.inflight_bytes = 0
        self._repeat_marks(lane)

    def set_routing(self, server_of: Callable[[int], int], generation: int) -> None:
        """Shares have other owners: what is not on its way goes to them."""
        if generation <= self.generation:
            return
        self.server_of = server_of
        self.generation = generation
        moved, self._fenced = self._fenced, []
        for server, lane in list(self.lanes.items()):
            stay = [r for r in lane.again if server_of(r.share[1]) == server]
            moved += [r for r in lane.again if server_of(r.share[1]) != server]
            lane.again = deque(stay)
            waiting = [r for _, _, r in lane.heap]
            lane.heap, lane.waiting = [], {}
            for request in waiting:
                self._queue(request)
        for request in sorted(moved, key=lambda request: request.wire):
            request.server = server_of(request.share[1])
            request.generation = generation
            self._lane(request.server).again.append(request)
        marks = {m.store: m for lane in self.lanes.values() for m in lane.last_marks.values()}
        for lane in self.lanes.values():
            for store, mark in marks.items():
                lane.last_marks[store] = mark
            self._repeat_marks(lane)

    def _repeat_marks(self, lane: _Lane) -> None:
        lane.marks.extendleft(lane.last_marks.values())

    def _queue(self, request: Request) -> None:
        request.server = self.server_of(request.share[1])
        lane = self._lane(request.server)
        heapq.heappush(lane.heap, (-request.priority, request.order, request))
        key = (request.store, request.clock)
        lane.waiting[key] = lane.waiting.get(key, 0) + 1

    def abandon(self, store: int | None = None) -> list[Request]:
        """Forget everything unfinished (of one store); returns it. Nothing of it is sent any more."""
        dropped: list[Request] = []
        for lane in self.lanes.values():
            found = [*lane.inflight.values(), *lane.again, *(r for _, _, r in lane.heap)]
            dropped += [r for r in found if store is None or r.store == store]
        for pending in self._returned.values():
            dropped += [r for r in pending if store is None or r.store == store]
        gone = set(map(id, dropped))
        for lane in self.lanes.values():
            lane.inflight = {t: r for t, r in lane.inflight.items() if id(r) not in gone}
            lane.inflight_bytes = sum(r.nbytes for r in lane.inflight.values())
            lane.again = deque(r for r in lane.again if id(r) not in gone)
            lane.heap = [item for item in lane.heap if id(item[2]) not in gone]
            heapq.heapify(lane.heap)
            lane.waiting = {}
            for _, _, request in lane.heap:
                key = (request.store, request.clock)
                lane.waiting[key] = lane.waiting.get(key, 0) + 1
        self._returned = {s: rs for s, rs in self._returned.items() if not any(id(r) in gone for r in rs)}
        return dropped

    def open_requests(self) -> int:
        """Requests that are not finished."""
        lanes = sum(len(lane.inflight) + len(lane.again) + len(lane.heap) for lane in self.lanes.values())
        return lanes + sum(map(len, self._returned.values())) + len(self._fenced)

    def validate(self) -> None:
        """Check the module's invariants.

        Raises:
            InvariantError: if one does not hold.
        """
        for server, lane in self.lanes.items():
            if lane.inflight_bytes != sum(request.nbytes for request in lane.inflight.values()):
                raise InvariantError("bytes in flight are miscounted", server=server)
            if any(request.op in WRITES and request.seq for _, _, request in lane.heap):
                raise InvariantError("a seq was given before the wire", server=server)
            again = [request.wire for request in lane.again]
            if any(request.op in WRITES and not request.seq for request in lane.again):
                raise InvariantError("a frozen entry has no seq", server=server, again=again)
        for share, returned in self._returned.items():
            if len(returned) > self._unanswered.get(share, 0):
                raise InvariantError("more entries came back than were sent", share=share)

    def _lane(self, server: int) -> _Lane:
        lane = self.lanes.get(server)
        if lane is None:
            lane = self.lanes[server] = _Lane()
        return lane
