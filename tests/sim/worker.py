"""A simulated worker: a real window core, and a small training program that pushes, pulls and closes steps.

The program is a generator that yields the requests it waits for. What it does in a step depends on (seed, rank, clock)
alone, never on time, so that a disturbed run and an undisturbed one do the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random

import numpy as np

from tests.sim import wire
from tests.sim.ledger import LANES, Book, Ledger, LedgerError, Place, Pushed, gradient
from tests.sim.scheduler import STORE
from tests.sim.timeline import Link, Timeline
from tests.sim.wire import Values
from windlass.window_core import Finished, Request, Stamp, WindowCore
from windlass_proto.consistency import Mode
from windlass_proto.frames import Entry, EntryFlag, Kind, Op, Status
from windlass_proto.layout import GroupLayout, Segment
from windlass_proto.step_modes import StepModes

FRAMES_UNREAD_MAX = 2


@dataclass(slots=True)
class Wish:
    """The owner of a request: what the ledger wants to know when it is finished."""

    pushes: list[tuple[Place, Pushed]] = field(default_factory=list)
    read_clock: int = 0
    waits: bool = False


@dataclass(frozen=True, slots=True)
class Version:
    """Hyper-parameters that worker `setter` set; the others hear of it later, each after a time of its own."""

    number: int
    since: int
    setter: int
    set_s: float


@dataclass(frozen=True, slots=True)
class Job:
    """What all workers of a run have in common. `exact`: real gradients for bit-for-bit comparison, no ledger lanes."""

    seed: int
    layouts: list[GroupLayout]
    servers: int
    server_of: Callable[[int], int]
    ledger: Ledger
    exact: bool
    read_at: dict[tuple[Place, int], bytes] = field(default_factory=dict)
    versions: list[Version] = field(default_factory=list)  # of hyper-parameters, as the scheduler makes them
    modes_set_s: list[float] = field(default_factory=list)  # when the modes of the ledger were set


class Worker:
    """One worker process."""

    def __init__(self, timeline: Timeline, job: Job, rank: int, index: int, steps: int, window: WindowCore) -> None:
        self.timeline = timeline
        self.job = job
        self.rank = rank
        self.session = timeline.rng.randbytes(16)
        self.steps = steps
        self.window = window
        self.book = Book(index)
        self.params = {
            (layout.table_id, block.index): np.zeros(block.elements, np.float32)
            for layout in job.layouts
            for block in layout.blocks
        }
        self.links: dict[int, Link] = {}
        self.dead = False
        self.finished = False
        self.paused_until_s = 0.0
        self.step_s = timeline.rng.choice((0.001, 0.01, 0.04))
        self._busy = False
        self._retrying = False
        self._number = 0
        self._stamp: Stamp | None = None
        self._open: set[Request] = set()
        self._program: Iterator[list[Request]] | None = None
        self._inbox: list[tuple[int, Link, bytes]] = []
        self._sent: dict[tuple[int, int], bytes] = {}
        job.ledger.books.append(self.book)

    # ---- driving -----------------------------------------------------------------------------------------------------

    def initialise(self, sealed: Callable[[], None]) -> None:
        """Write first values everywhere; `sealed` is called when every share holds them."""
        self._program = self._write_first_values(sealed)
        self.advance()

    def start(self, join_clock: int) -> None:
        """The roster counts this worker from `join_clock` on."""
        self.book.counting, self.book.join_clock, self.book.clock = True, join_clock, join_clock
        self._program = self._train()
        self.advance()

    def link_up(self, server: int, link: Link) -> None:
        self.links[server] = link
        self.window.link_up(server)
        self.pump()

    def link_down(self, server: int, link: Link) -> None:
        if self.links.get(server) is link:
            link.client_open = False
            del self.links[server]
            self.window.link_down(server)
            self.window.validate()

    def receive(self, server: int, link: Link, raw: bytes) -> None:
        if self.dead:
            return
        if self.timeline.now_s < self.paused_until_s:
            self._inbox.append((server, link, raw))
            if len(self._inbox) == 1:
                self.timeline.at(self.paused_until_s, self.resume)
            return
        _, entries = wire.parse(raw)
        for entry, values in entries:
            finished = self.window.on_answer(server, entry)
            if finished is not None:
                self._finish(finished, values)
        self.window.validate()
        self.advance()

    def resume(self) -> None:
        inbox, self._inbox = self._inbox, []
        for server, link, raw in inbox:
            if link.client_open:
                self.receive(server, link, raw)
        self.advance()

    def advance(self) -> None:
        """Run the program until it waits, then send what the links take."""
        while not (self._busy or self._open or self.dead or self._program is None):
            if self.timeline.now_s < self.paused_until_s:
                self.timeline.at(self.paused_until_s, self.advance)
                break
            program = self._program
            requests = next(program, None)
            if requests is None:
                self.finished = self.book.counting
                if self._program is program:
                    self._program = None
                break
            self._open = {request for request in requests if request.owner is not None}
            if not requests:  # it computes
                self._busy = True
                self.timeline.after(self.timeline.rng.expovariate(1 / self.step_s), self._computed)
        self.pump()

    def _computed(self) -> None:
        self._busy = False
        self.advance()

    def _retry(self) -> None:
        self._retrying = False
        self.pump()

    def pump(self) -> None:
        """Send frames while links have room; a link that is full is tried again a moment later."""
        if self.dead or self.timeline.now_s < self.paused_until_s:
            return
        for server, link in list(self.links.items()):
            while self.window.wants(server):
                if link.unread >= FRAMES_UNREAD_MAX:
                    if not self._retrying:
                        self._retrying = True
                        self.timeline.after(0.003, self._retry)
                    break
                frame = self.window.next_frame(server)
                if frame is None:
                    raise LedgerError("window", "a lane wants to send and has nothing")
                entries = [self._entry(request) for request in frame.requests]
                raw = wire.pack(
                    Kind.REQUEST,
                    frame.store,
                    entries,
                    flags=frame.flags,
                    clock=frame.clock,
                    generation=frame.generation,
                )
                link.send_to_server(raw)
            self.window.validate()

    def _entry(self, request: Request) -> tuple[Entry, Values | None]:
        entry = Entry(
            request.op, 0, request.flags, request.share[0], request.block, request.tag, request.seq, request.clock,
            request.seg_begin, request.seg_end, 0, 0, 0, 0, 0, request.weight,
            request.stamp.version if request.stamp is not None else 0, request.share[1], 0,
        )  # fmt: skip
        if request.op not in (Op.PULL, Op.SET_RULE):
            told = repr(entry).encode() + (b"" if request.payload is None else request.payload.tobytes())
            if self._sent.setdefault((hash(request.share), request.tag), told) != told:
                raise LedgerError("frozen", f"an entry was sent again with other bytes: {entry}")
        return entry, request.payload

    def _finish(self, finished: Finished, values: Values) -> None:
        request, status = finished.request, finished.status
        wish: Wish = request.owner
        request.owner = None
        self._open.discard(request)
        if status is Status.ERROR and not self.book.ended:
            raise LedgerError("acknowledged", f"a request of live worker {self.rank} failed: {finished.answer}")
        if status in (Status.ERROR, Status.GAP):
            if not self.book.ended:
                raise LedgerError("gap", f"a server misses what worker {self.rank} cannot send again: {request.seq}")
            self.dead = True  # told that its session has ended
            return
        if status is Status.LATE:
            self.book.reached = max(self.book.reached, finished.answer.aux)
        for _, push in wish.pushes:
            self.job.ledger.acknowledge(self.book, push, status)
        if request.op in (Op.PULL, Op.PUSH_PULL) and not self.book.ended:
            self._read(request, wish, values)

    def _read(self, request: Request, wish: Wish, values: Values) -> None:
        table, block = request.share[0], request.block
        segments = self._layout(table).blocks[block].segments
        base = segments[request.seg_begin].begin
        end = segments[request.seg_end - 1].end
        if not request.flags & EntryFlag.NOWAIT:  # what it trains on must not depend on time
            self.params[table, block][base:end] = values
        for seg in range(request.seg_begin, request.seg_end):
            place = (table, block, seg)
            held = values[segments[seg].begin - base : segments[seg].end - base]
            if self.job.exact:
                if wish.waits:
                    told = self.job.read_at.setdefault((place, wish.read_clock), held.tobytes())
                    if told != held.tobytes():
                        text = f"workers read different weights at clock {wish.read_clock}, {place}"
                        raise LedgerError("same-clock", text)
            else:
                self.job.ledger.check_read(self.book, place, held[:LANES], wish.read_clock, waits=wish.waits)

    # ---- the program -------------------------------------------------------------------------------------------------

    def _write_first_values(self, sealed: Callable[[], None]) -> Iterator[list[Request]]:
        yield [self._write(Op.INIT, table, block, 0, end, 0, Random(0), 0) for table, block, end in self._whole()]
        sealed()

    def _train(self) -> Iterator[list[Request]]:
        yield self._pulls(self._whole(), Random(0))
        for _ in range(self.steps):
            self._jump()
            rng = Random(f"{self.job.seed}/{self.rank}/{self.book.clock}")
            self._set_sometimes()
            self._choose_stamp()
            if rng.random() < 0.8:
                yield []
            yield from self._step(rng)
        self.book.left = True
        self._close(leaves=True)
        yield self._pulls(self._whole()[:1], Random(0), nowait=True)

    def _jump(self) -> None:
        """Go on with the step that others have come to: as it was told when it came late, or where a mode begins."""
        modes = self._modes()
        if modes.at(self.book.clock).mode is not Mode.BSP:
            self.book.reached = max(self.book.reached, modes.newest.clock)
        if self.book.reached > self.book.clock:
            self.book.clock = self.book.reached
            self.window.close_step(STORE, self.book.clock - 1, range(self.job.servers), stamp=self._stamp)

    def _set_sometimes(self) -> None:
        """Change the hyper-parameters from this step on, as `store.set` by one worker does."""
        job, clock = self.job, self.book.clock
        if Random(f"{job.seed}/{self.book.worker}/{clock}/set").random() < 0.1:
            since = max(clock, job.versions[-1].since if job.versions else 0)
            job.versions.append(Version(len(job.versions) + 1, since, self.book.worker, self.timeline.now_s))

    def _choose_stamp(self) -> None:
        """One stamp for the step that begins: the newest version that this worker has heard of and that holds."""
        job, book = self.job, self.book
        known = [version for version in job.versions if self._has_heard_of(version)]
        if self._modes().at(book.clock).mode is not Mode.ASP:
            known = [version for version in known if version.since <= book.clock]
        newest = known[-1].number if known else 0
        if newest > (self._stamp.version if self._stamp is not None else 0):
            self._stamp = Stamp(newest, book.clock, np.array([newest], np.float32), 4)
        book.stamps[book.clock] = self._stamp.version if self._stamp is not None else 0

    def _modes(self) -> StepModes:
        """The modes that this worker has heard of, each after a time of its own, in order."""
        modes = self.job.ledger.modes
        heard = 0
        for number, set_s in enumerate(self.job.modes_set_s):
            lag = Random(f"{self.job.seed}/{self.book.worker}/{number}/mode").uniform(0.0, 0.1)
            if self.timeline.now_s < set_s + lag:
                break
            heard += 1
        return StepModes(modes.declared, modes.changes[:heard])

    def _has_heard_of(self, version: Version) -> bool:
        lag = Random(f"{self.job.seed}/{self.book.worker}/{version.number}/heard")
        return version.setter == self.book.worker or self.timeline.now_s >= version.set_s + lag.uniform(0.0, 0.1)

    def _step(self, rng: Random) -> Iterator[list[Request]]:
        """One step in one of the forms that the library offers."""
        form = rng.choice(("update", "by layer", "by layer", "accumulate", "push then pull", "push on", "nothing"))
        clock = self.book.clock
        if form == "by layer":
            yield from self._by_layer(rng, clock)
        elif form == "update":
            places = self._some(rng)
            requests = [self._write(Op.PUSH_PULL, t, b, x, y, clock, rng, EntryFlag.LAST) for t, b, x, y in places]
            self._close()
            yield requests
        elif form == "accumulate":
            pushes: list[Request] = []
            for _ in range(rng.randint(1, 3)):
                pushes += [self._write(Op.PUSH, t, b, x, y, clock, rng, 0) for t, b, x, y in self._some(rng)]
                if rng.random() < 0.5:
                    yield self._pulls(self._whole()[:1], rng, nowait=True)
            self._close()
            yield pushes + self._pulls(self._whole(), rng)
        elif form == "push on":  # nothing is waited for: the next step's entries may overtake these
            for t, b, x, y in self._some(rng):
                self._write(Op.PUSH, t, b, x, y, clock, rng, 0)
            self._close()
        elif form == "push then pull":
            pushes = [self._write(Op.PUSH, t, b, x, y, clock, rng, 0) for t, b, x, y in self._some(rng)]
            self._close()
            yield self._pulls([(t, b, y) for t, b, x, y in self._some(rng)], rng)
            if rng.random() < 0.5:
                yield pushes
        else:
            self._close()

    def _by_layer(self, rng: Random, clock: int) -> Iterator[list[Request]]:
        """Each place's last push leaves while the step goes on; the values are awaited after it, or never."""
        coming = []
        for t, b, x, y in self._some(rng):
            for _ in range(rng.choice((0, 0, 1, 2))):
                self._write(Op.PUSH, t, b, x, y, clock, rng, 0)
            coming.append(self._write(Op.PUSH_PULL, t, b, x, y, clock, rng, EntryFlag.LAST))
            self._say_last(clock, [(t, b, seg) for seg in range(x, y)])
            if rng.random() < 0.7:
                yield []
        self._close()
        if (
            rng.random() < 0.2 and not self.job.exact
        ):  # so its next step may be in what comes of an answer that was lost
            for request in coming:
                if request.owner is not None:
                    request.owner.waits = False
            return
        for request in coming:
            yield [request]
            yield []

    def _say_last(self, clock: int, places: list[Place]) -> None:
        """This worker pushes nothing more to `places` in its step `clock`."""
        self.book.done |= dict.fromkeys(places, clock + 1)

    def _close(self, *, leaves: bool = False) -> None:
        if leaves:
            last = max(0, self.book.clock - 1)
            self.window.close_step(STORE, last, range(self.job.servers), leaves=True, stamp=self._stamp)
            return
        self.window.close_step(STORE, self.book.clock, range(self.job.servers), stamp=self._stamp)
        self.book.clock += 1

    def _whole(self) -> list[tuple[int, int, int]]:
        return [(lay.table_id, block.index, len(block.segments)) for lay in self.job.layouts for block in lay.blocks]

    def _some(self, rng: Random) -> list[tuple[int, int, int, int]]:
        """Runs of segments: whole blocks, or tensors' parts of them, some or all."""
        found = []
        for table, block, segments in self._whole():
            if rng.random() < 0.3:
                continue
            if rng.random() < 0.5:
                found.append((table, block, 0, segments))
                continue
            begin = rng.randrange(segments)
            end = rng.randint(begin + 1, segments)
            found.append((table, block, begin, end))
            if end < segments and rng.random() < 0.5:
                found.append((table, block, end, segments))
        return found

    def _write(
        self, op: Op, table: int, block: int, begin: int, end: int, clock: int, rng: Random, last: int
    ) -> Request:
        shape = self._layout(table).blocks[block]
        wish = Wish(read_clock=clock + 1, waits=op is Op.PUSH_PULL)
        span = shape.span(begin, end)
        values = np.zeros(span[1] - span[0], np.float32)
        priority = block % 3
        if op is Op.INIT:
            values[:] = 0 if not self.job.exact else np.arange(values.size) / 7
        elif self.job.exact:
            noise = np.random.default_rng([self.job.seed, self.rank, clock, table, block, begin, self._number])
            values[:] = noise.standard_normal(values.size, np.float32) * 0.1
            values += np.float32(0.01) * self.params[table, block][span[0] : span[1]]
        else:
            priority = rng.randint(0, 3)
            values[:] = self._lanes(wish, shape.segments[begin:end], (table, block, begin), clock)
        self._number += 1
        request = Request(
            op, STORE, (table, shape.vshard), block, begin, end, owner=wish, clock=clock, payload=values,
            nbytes=values.nbytes, last=bool(last), priority=priority, stamp=None if op is Op.INIT else self._stamp,
            weight=1.0 + self.rank if self.job.exact else 1.0,
        )  # fmt: skip
        self.window.submit(request)
        return request

    def _lanes(self, wish: Wish, segments: tuple[Segment, ...], first: Place, clock: int) -> Values:
        """Ledger values for segments from `first` on, entered into the book."""
        table, block, begin = first
        row = gradient(self.book.worker, self._number + 1)
        parts = []
        for i, segment in enumerate(segments):
            place, push = (table, block, begin + i), Pushed(self._number + 1, clock)
            self.book.places.setdefault(place, []).append(push)
            wish.pushes.append((place, push))
            part = np.zeros(segment.end - segment.begin, np.float32)
            part[:LANES] = row
            parts.append(part)
        return np.concatenate(parts)

    def _pulls(self, places: list[tuple[int, int, int]], rng: Random, *, nowait: bool = False) -> list[Request]:
        requests = []
        for table, block, segments in places:
            vshard = self._layout(table).blocks[block].vshard
            wish = Wish(read_clock=self.book.clock, waits=not nowait and self.book.clock > 0)
            request = Request(
                Op.PULL, STORE, (table, vshard), block, 0, segments, owner=wish, clock=self.book.clock, nowait=nowait
            )
            self.window.submit(request)
            requests.append(request)
        return requests

    def _layout(self, table: int) -> GroupLayout:
        return self.job.layouts[table - 1]
