"""The window core: what a worker has asked for, sent, and not yet had answered.

It is sans-I/O. A driver submits requests, asks for the next frame of each server when its link can take
one, and hands in answers and link changes; the core says which requests are finished.

Invariants (checked by `validate`):
- A seq is given to a writing entry when it goes on the wire, never before, so priorities may reorder what
  waits but never what was sent. From then on the entry is frozen until it is answered: same seq, same
  bytes, same place in its share's order.
- Every closed step's mark reaches every server with a share of its store, after the step's entries; a mark
  is repeated after a reconnect (marks are monotonic, so repeats are harmless).
- A stamp's record, and those of the session's stamps before it, go over a link ahead of what is stamped with it.
- A request finishes exactly once.
- Bytes on their way to a server stay within `credit_bytes`, except that one frame may always be under way,
  and that the oldest step under way may always be completed: its answers may need all of it.

Prior art: TCP's send window, and the task queues of ps-lite's customer, without its shared message struct.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, NamedTuple

from windlass.lane import Lane, LaneMark
from windlass_proto import limits
from windlass_proto.errors import InvariantError, ProtocolError
from windlass_proto.frames import Entry, EntryFlag, Flag, Op, Status

_STATUSES: Final = {int(status): status for status in Status}
STAMPS_KEPT: Final = 128
"""Of a store: twice the steps that may be open. Stamps that are on their way are held by their requests."""

WRITES: Final = frozenset({Op.PUSH, Op.PUSH_PULL, Op.INIT, Op.ASSIGN, Op.ERASE})


class Stamp(NamedTuple):
    """A version of a store's hyper-parameters, with the first step of this session that is stamped with it.

    `payload` is its record, the driver's own as those of requests; `nbytes` its length.
    """

    version: int
    clock: int
    payload: Any
    nbytes: int


class Request:
    """One entry's worth of wish. `owner` is told when it is finished; payload and out are the driver's own.

    `nbytes` counts the values that travel in the frame. `share` is (table, vshard), the unit of ordering. `rows`: how
    many rows of a dense tensor it names, None if it is about whole segments. `read`: of a gradient, the number that the
    answer gave to the weights that it was made from. `base`: the state of the weights that was read last, where they
    come down as deltas: the answer may be shorter than `out` then.
    """

    __slots__ = (
        "base",
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
        "read",
        "rows",
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
        stamp: Stamp | None = None,
        last: bool = True,
        nowait: bool = False,
        priority: int = 0,
        rows: int | None = None,
        read: int = 0,
        base: int | None = None,
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
        self.flags |= EntryFlag.ROWS if rows is not None else 0
        self.rows = rows
        self.read = read
        self.base = base
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
    """A request is answered for good. `answer` is the entry that said so.

    A status GAP says that the server misses an entry that is not held here any more: it lost what it had
    acknowledged, or the entry was abandoned. That share can admit nothing more of this session.
    """

    request: Request
    status: Status
    answer: Entry


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
        self.lanes: dict[int, Lane] = {}
        self.seqs: dict[tuple[int, int], int] = {}
        self.stamps: dict[int, list[Stamp]] = {}  # store -> those given, in order
        self._returned: dict[tuple[int, int], dict[int, Request]] = {}  # share -> seq -> what came back
        self._unanswered: dict[tuple[int, int], dict[int, Request]] = {}  # share -> seq -> what was sent
        self._fenced: list[Request] = []
        self._orders = 0
        self._wires = 0

    # ---- wishes --------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> int:
        """Queue a request; returns the server it goes to."""
        self._orders += 1
        request.order = self._orders
        self._note_stamp(request.store, request.stamp)
        self._queue(request)
        return request.server

    def close_step(
        self, store: int, clock: int, servers: Iterable[int], *, leaves: bool = False, stamp: Stamp | None = None
    ) -> None:
        """Send the mark of `clock` to `servers` once the entries of its step have gone there.

        `stamp` is that of the step, which each of them is told ahead of the mark, also where nothing was pushed.
        """
        mark = LaneMark(store, clock, leaves, stamp)
        self._note_stamp(store, stamp)
        for server in servers:
            lane = self._lane(server)
            if self._is_due(lane, mark):  # it says what older ones would
                lane.marks = deque(m for m in lane.marks if m.store != store)
            lane.marks.append(mark)

    def _note_stamp(self, store: int, stamp: Stamp | None) -> None:
        if stamp is not None:
            given = self.stamps.setdefault(store, [])
            if not given or given[-1].version < stamp.version:
                given.append(stamp)
                del given[:-STAMPS_KEPT]

    # ---- the wire ------------------------------------------------------------------------------------------

    def wants(self, server: int) -> bool:
        """Is there something to send to `server` now?"""
        lane = self.lanes.get(server)
        if lane is None or not lane.up:
            return False
        return self._head(lane) is not None or any(self._is_due(lane, mark) for mark in lane.marks)

    def next_frame(self, server: int) -> OutFrame | None:
        """The next frame for `server`, if there is something and credit. What it holds is frozen from now on."""
        lane = self.lanes.get(server)
        if lane is None or not lane.up:
            return None
        requests = self._take(lane)
        mark = self._due_mark(lane, requests[0].store if requests else None)
        if mark is None and not requests:
            return None
        store = requests[0].store if requests else mark.store if mark else 0
        flags = 0
        if self.stamps:
            requests = [*self._records_ahead(lane, store, requests, mark), *requests]
        if mark is not None:
            flags = Flag.MARK | (Flag.LEAVE if mark.leaves else 0)
        return OutFrame(store, flags, mark.clock if mark else 0, self.generation, requests)

    def _records_ahead(self, lane: Lane, store: int, requests: list[Request], mark: LaneMark | None) -> list[Request]:
        """The records that go ahead of a frame: of all stamps that this link was not told, up to the newest in it."""
        told = lane.told.get(store, 0)
        needed = {r.stamp.version: r.stamp for r in requests if r.stamp is not None and r.stamp.version > told}
        if mark is not None and mark.stamp is not None and mark.stamp.version > told:
            needed[mark.stamp.version] = mark.stamp
        if not needed:
            return []
        newest = lane.told[store] = max(needed)
        needed |= {s.version: s for s in self.stamps[store] if told < s.version < newest}
        return [
            Request(Op.SET_RULE, store, (store, 0), 0, 0, 0, clock=s.clock, payload=s.payload, nbytes=s.nbytes, stamp=s)
            for _, s in sorted(needed.items())
        ]

    def _take(self, lane: Lane) -> list[Request]:
        """Requests of one store that fit a frame and the credit."""
        taken: list[Request] = []
        nbytes = 0
        while len(taken) < limits.FRAME_ENTRIES_MAX - STAMPS_KEPT:
            request = self._head(lane)
            if request is None:
                break
            if taken and (request.store != taken[0].store or nbytes + request.nbytes > self.frame_bytes):
                break
            if lane.again:
                lane.again.popleft()
            else:
                lane.unqueue(request)
                self._freeze(lane, request)
            lane.launch(request)
            nbytes += request.nbytes
            taken.append(request)
        return taken

    def _head(self, lane: Lane) -> Request | None:
        """What goes next: the first in order, or, where the credit forbids that, the first of the oldest open step."""
        if lane.again:
            return lane.again[0]  # the credit let it go once
        if not lane.heap:
            return None
        first = lane.heap[0][2]
        if not lane.inflight or lane.inflight_bytes + first.nbytes <= self.credit_bytes:
            return first
        if lane.completes_open_step(first.store, first.clock):
            return first
        return lane.first_to_complete()

    def _freeze(self, lane: Lane, request: Request) -> None:
        self._wires += 1
        request.wire = self._wires
        request.tag = self._wires & 0xFFFFFFFF
        if request.op in WRITES:
            request.seq = self.seqs[request.share] = self.seqs.get(request.share, 0) + 1
            self._unanswered.setdefault(request.share, {})[request.seq] = request
        request.generation = self.generation

    def _is_due(self, lane: Lane, mark: LaneMark) -> bool:
        return lane.is_due(mark)

    def _due_mark(self, lane: Lane, store: int | None) -> LaneMark | None:
        """The newest due mark of `store` (None: of any), older ones being implied by it."""
        due = None
        for mark in lane.marks:
            if store in (None, mark.store) and self._is_due(lane, mark) and (due is None or mark.clock >= due.clock):
                due = mark
                store = mark.store
        if due is not None:
            lane.marks = deque(m for m in lane.marks if m.store != due.store or m.clock > due.clock)
            lane.last_marks[due.store] = due
        return due

    # ---- answers -------------------------------------------------------------------------------------------

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
        status = _STATUSES.get(answer.status)
        if status is None:
            raise ProtocolError("a server answered with an unknown status", status=answer.status)
        lane.land(request)
        if status is Status.GAP and self._is_lost(request, answer.aux):
            self._settle(lane, request)
            return Finished(request, status, answer)
        if status is Status.UNKNOWN_STAMP:
            lane.told.pop(request.store, None)  # its record goes ahead of it once more
        if status in (Status.GAP, Status.RETRY, Status.UNKNOWN_STAMP):
            self._return(lane, request)
            return None
        if status is Status.FENCED:
            if request.generation < self.generation:  # the new routing came before this answer
                self._reroute(request)
            else:
                self._fenced.append(request)
            return None
        if request.op in WRITES:
            self._settle(lane, request)
        return Finished(request, status, answer)

    def _is_lost(self, request: Request, expected: int) -> bool:
        """Does the server miss an entry that we cannot send again?"""
        unanswered = self._unanswered.get(request.share)
        return bool(unanswered) and expected < min(unanswered or (expected,))

    def _return(self, lane: Lane, request: Request) -> None:
        """The server did not take the entry: once all its share's entries are back, they go again, in order."""
        if request.op not in WRITES:
            lane.again.append(request)
            return
        self._returned.setdefault(request.share, {})[request.seq] = request
        self._resend_if_all_back(lane, request.share)

    def _settle(self, lane: Lane, request: Request) -> None:
        unanswered = self._unanswered[request.share]
        del unanswered[request.seq]
        if not unanswered:
            del self._unanswered[request.share]
        self._resend_if_all_back(lane, request.share)

    def _resend_if_all_back(self, lane: Lane, share: tuple[int, int]) -> None:
        """Resend once the first entry sent back and all after it are here.

        Those before it were admitted: under BSP their answers may wait for the very entries that came back.
        """
        returned, sent = self._returned.get(share), self._unanswered.get(share)
        if not returned or not sent or next(reversed(sent)) not in returned:
            return
        first = min(returned)
        if sum(seq >= first for seq in sent) == len(returned):
            del self._returned[share]
            lane.again.extend(returned[seq] for seq in sorted(returned))

    # ---- links and routing ---------------------------------------------------------------------------------

    def link_up(self, server: int) -> None:
        """The link to `server` stands: frozen entries go again, then the newest marks."""
        self._lane(server).up = True

    def link_down(self, server: int) -> None:
        """The link to `server` is gone. What was unanswered stays as it is, to be sent again in its first order."""
        lane = self._lane(server)
        lane.up = False
        back = [*lane.inflight.values(), *lane.again]
        for share, returned in list(self._returned.items()):
            if next(iter(returned.values())).server == server:
                back += self._returned.pop(share).values()
        lane.again = deque(sorted(back, key=lambda request: request.wire))
        lane.inflight, lane.inflight_bytes, lane.flying, lane.told = {}, 0, {}, {}
        lane.repeat_marks()

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
            for request in lane.drain(lambda _: True):
                self._queue(request)
        for request in sorted(moved, key=lambda request: request.wire):
            self._reroute(request)
        newest: dict[int, LaneMark] = {}
        for mark in (m for lane in self.lanes.values() for m in (*lane.last_marks.values(), *lane.marks)):
            known = newest.get(mark.store, mark)
            newest[mark.store] = max(known, mark, key=lambda m: (m.clock, m.leaves))
        for lane in self.lanes.values():
            lane.last_marks |= newest
            lane.repeat_marks()

    def _reroute(self, request: Request) -> None:
        """A frozen entry goes, as it is, to the present owner of its share."""
        request.server = self.server_of(request.share[1])
        request.generation = self.generation
        self._lane(request.server).again.append(request)

    def _queue(self, request: Request) -> None:
        request.server = self.server_of(request.share[1])
        self._lane(request.server).queue(request)

    def abandon(self, store: int | None = None) -> list[Request]:
        """Forget everything unfinished (of one store); returns it. Nothing of it is sent any more."""
        gone: set[Request] = set()
        for lane in self.lanes.values():
            gone.update(lane.inflight.values(), lane.again, lane.queued())
        gone.update(self._fenced, *(returned.values() for returned in self._returned.values()))
        gone = {r for r in gone if store is None or r.store == store}
        for lane in self.lanes.values():
            for request in [r for r in lane.inflight.values() if r in gone]:
                lane.land(request)
            lane.again = deque(r for r in lane.again if r not in gone)
            lane.drain(gone.__contains__)
        self._fenced = [r for r in self._fenced if r not in gone]
        self._returned = _without(self._returned, gone)
        self._unanswered = _without(self._unanswered, gone)
        return sorted(gone, key=lambda request: request.order)

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
            lane.validate(server)
            if any(request.op in WRITES and request.seq for request in lane.queued()):
                raise InvariantError("a seq was given before the wire", server=server)
            again = [request.wire for request in lane.again]
            if any(request.op in WRITES and not request.seq for request in lane.again):
                raise InvariantError("a frozen entry has no seq", server=server, again=again)
        for share, returned in self._returned.items():
            if not returned.items() <= self._unanswered.get(share, {}).items():
                raise InvariantError("more entries came back than were sent", share=share)
        held = sum(map(len, self._unanswered.values()))
        writes = sum(request.op in WRITES for request in self._frozen())
        if held != writes:
            raise InvariantError("an unanswered entry is nowhere", unanswered=held, frozen=writes)

    def _frozen(self) -> Iterator[Request]:
        """Every request that was sent and is not finished."""
        for lane in self.lanes.values():
            yield from lane.inflight.values()
            yield from lane.again
        for returned in self._returned.values():
            yield from returned.values()
        yield from self._fenced

    def _lane(self, server: int) -> Lane:
        lane = self.lanes.get(server)
        if lane is None:
            lane = self.lanes[server] = Lane()
        return lane


def _without(
    held: dict[tuple[int, int], dict[int, Request]], gone: set[Request]
) -> dict[tuple[int, int], dict[int, Request]]:
    """What `held` keeps, by share and seq, without `gone`."""
    kept = {share: {seq: r for seq, r in sent.items() if r not in gone} for share, sent in held.items()}
    return {share: sent for share, sent in kept.items() if sent}
