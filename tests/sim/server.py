"""A simulated server: real share cores under a driver of a few lines, with NumPy in place of the compiled kernels.

It keeps the promises that share cores ask of a driver: entries before their frame's mark, nothing of a session's old
connection after its new one, a mark for every share of the store. It checks what every driver relies on: a buffer is
not used after it was released and not released twice, an answer goes out once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from tests.sim import wire
from tests.sim.ledger import Place
from tests.sim.norms import Norms
from tests.sim.timeline import Link, Timeline
from tests.sim.wire import Values
from windlass_proto.frames import Entry, EntryFlag, Flag, Kind, Op, Status
from windlass_proto.layout import GroupLayout
from windlass_server.reduction_core import Told
from windlass_server.share_core import Answer, Apply, Effect, Push, Release, Roster, ShareCore, Source, Write
from windlass_server.share_events import Measure, Settled


class Origin(NamedTuple):
    """Where an answer goes."""

    link: Link
    tag: int
    op: int
    read_clock: int  # steps that whoever reads the answer's values has closed; 0: it does not care


class Buffer:
    """A gradient's values and how often they were given back."""

    __slots__ = ("released", "stamp", "values")

    def __init__(self, values: Values, stamp: int) -> None:
        self.values = values
        self.stamp = stamp
        self.released = 0


class Server:
    """The shares of one server, over all tables of one store."""

    def __init__(
        self,
        timeline: Timeline,
        layouts: list[GroupLayout],
        vshards: range,
        make_core: Callable[[int, list[int]], ShareCore],
        on_release: Callable[[int, list[Place]], None],
        on_apply: Callable[[int, int, list[int]], None],
        norms: Norms,
    ) -> None:
        self.timeline = timeline
        self.layouts = {layout.table_id: layout for layout in layouts}
        self.cores: dict[tuple[int, int], ShareCore] = {}
        self.weights: dict[tuple[int, int], Values] = {}
        self.buffers: list[Buffer] = []
        self.on_release = on_release
        self.on_apply = on_apply
        self.norms = norms
        self.versions: set[int] = set()  # of hyper-parameters, whose records it holds
        self.unknown_stamps = 0
        self._links: dict[bytes, Link] = {}
        self._out: dict[Link, list[tuple[Entry, Values | None]]] = {}
        for layout in layouts:
            held: dict[int, list[int]] = {}
            for block in layout.blocks:
                if block.vshard in vshards:
                    held.setdefault(block.vshard, []).append(block.index)
                    self.weights[layout.table_id, block.index] = np.zeros(block.elements, np.float32)
            for vshard, indexes in held.items():
                self.cores[layout.table_id, vshard] = make_core(layout.table_id, indexes)

    # ---- links -------------------------------------------------------------------------------------------------------

    def accept(self, session: bytes, link: Link) -> None:
        """A session connects: its old connection brings nothing more."""
        old = self._links.get(session)
        if old is not None:
            self.disconnected(old)
        self._links[session] = link

    def disconnected(self, link: Link) -> None:
        if link.server_open:
            link.server_open = False
            for core in self.cores.values():
                core.drop_origin(link)
                core.validate()

    def receive(self, session: bytes, link: Link, raw: bytes) -> None:
        """One frame of a session: its entries in order, then its mark."""
        header, entries = wire.parse(raw)
        for entry, values in entries:
            if entry.op == Op.SET_RULE:
                self._set_rule(session, entry, values)
                continue
            core = self.cores[entry.table, entry.vshard]
            self._execute(entry.table, core, self._dispatch(core, session, link, entry, values))
        if header.flags & Flag.MARK:
            for (table, _), core in self.cores.items():
                effects = core.mark(session, header.clock, leaves=bool(header.flags & Flag.LEAVE))
                self._execute(table, core, effects)
        self._flush()

    def _set_rule(self, session: bytes, entry: Entry, values: Values) -> None:
        """A record comes; it holds its version, and is no good otherwise."""
        assert values.tolist() == [entry.stamp]
        self.versions.add(entry.stamp)
        for core in self.cores.values():
            core.announce(session, entry.clock, entry.stamp)

    def _dispatch(self, core: ShareCore, session: bytes, link: Link, entry: Entry, values: Values) -> list[Effect]:
        clock = 0 if entry.flags & EntryFlag.NOWAIT else entry.clock + (entry.op == Op.PUSH_PULL)
        origin = Origin(link, entry.tag, entry.op, clock)
        if entry.op == Op.PULL:
            return core.pull(origin, clock, entry.block, entry.seg_begin, entry.seg_end)
        buffer = Buffer(values, entry.stamp)
        self.buffers.append(buffer)
        push = Push(
            origin,
            session,
            entry.seq,
            entry.clock,
            entry.block,
            entry.seg_begin,
            entry.seg_end,
            buffer,
            entry.weight,
            entry.stamp,
            bool(entry.flags & EntryFlag.LAST),
            entry.op == Op.PUSH_PULL,
        )
        if entry.op == Op.INIT:
            return core.init(push)
        if entry.op == Op.ASSIGN:
            return core.assign(push)
        if entry.stamp and self.timeline.rng.random() < link.faults.refuse / 4:
            self.versions.clear()  # it keeps few
        if entry.stamp and entry.stamp not in self.versions:
            self.unknown_stamps += 1
            return core.refuse(push, Status.UNKNOWN_STAMP)
        # What extends a step that has begun is always taken: its completion gives memory back.
        beyond = entry.clock > core.clocks.begun or self.timeline.rng.random() < 0.2
        if beyond and self.timeline.rng.random() < link.faults.refuse:
            return core.refuse(push)
        return core.push(push)

    # ---- the scheduler's word ----------------------------------------------------------------------------------------

    def set_roster(self, roster: Roster) -> None:
        for (table, _), core in self.cores.items():
            self._execute(table, core, core.set_roster(roster))
        self._flush()

    def end_session(self, session: bytes) -> None:
        for (table, _), core in self.cores.items():
            self._execute(table, core, core.end_session(session))
        self._flush()

    def prepare(self, clock: int, proposal: int, *, mode: bool) -> tuple[bool, int]:
        votes = [core.clocks.prepare(clock, proposal, mode=mode) for core in self.cores.values()]
        return all(votes), max([0, *(core.clocks.begun for core in self.cores.values())])

    def reduced(self, table: int, told: Told) -> None:
        """The total of a norm has come."""
        core = self.cores[table, self.layouts[table].blocks[told.block].vshard]
        self._execute(table, core, core.reduced(told.block, told.scope, told.clock, told.phase, told.totals))
        self._flush()

    # ---- effects -----------------------------------------------------------------------------------------------------

    def _execute(self, table: int, core: ShareCore, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Apply):
                self._apply(table, effect)
                if effect.answer is not None:
                    self._answer(table, effect.answer)
            elif isinstance(effect, Answer):
                self._answer(table, effect)
            elif isinstance(effect, Write):
                begin, end = self._span(table, effect.block, effect.seg_begin, effect.seg_end)
                self.weights[table, effect.block][begin:end] = self._live(effect.buffer)
            elif isinstance(effect, Measure):
                self.norms.measured(table, effect, lambda part: self._sum(table, part))
            elif isinstance(effect, Settled):
                self.norms.settled(table, effect)
            elif isinstance(effect, Release):
                self._live(effect.buffer)
                effect.buffer.released += 1
        core.validate()

    def _apply(self, table: int, apply: Apply) -> None:
        begin, end = self._span(table, apply.block, apply.seg_begin, apply.seg_end)
        self.on_apply(apply.clock, apply.stamp, [source.buffer.stamp for source in apply.sources])
        self.norms.check(table, apply)
        total = np.zeros(end - begin, np.float32)
        for source in apply.sources:
            total += np.float32(source.weight) * self._slice(source, end - begin)
        weights = self.weights[table, apply.block]
        weights[begin:end] -= total / np.float32(apply.divisor)

    def _sum(self, table: int, apply: Apply) -> int:
        """What tells an update from others: an integer made of its gradients' bits."""
        begin, end = self._span(table, apply.block, apply.seg_begin, apply.seg_end)
        bits = (self._slice(source, end - begin).view(np.uint32) for source in apply.sources)
        return sum(int(each.sum(dtype=np.uint64)) for each in bits)

    def _slice(self, source: Source, elements: int) -> Values:
        values = self._live(source.buffer)[source.begin : source.begin + elements]
        assert values.size == elements, "a source does not cover its run"
        return values

    def _live(self, buffer: Buffer) -> Values:
        assert not buffer.released, "a buffer was used after it was released"
        return buffer.values

    def _answer(self, table: int, answer: Answer) -> None:
        origin: Origin = answer.origin
        values = None
        if answer.values:
            places = [(table, answer.block, seg) for seg in range(answer.seg_begin, answer.seg_end)]
            self.on_release(origin.read_clock, places)
            begin, end = self._span(table, answer.block, answer.seg_begin, answer.seg_end)
            values = self.weights[table, answer.block][begin:end].copy()
        entry = Entry(
            origin.op, answer.status, 0, table, answer.block, origin.tag, 0, origin.read_clock, answer.seg_begin,
            answer.seg_end, 0, 0, 0, 0, 0, 1.0, 0, 0, answer.aux,
        )  # fmt: skip
        self._out.setdefault(origin.link, []).append((entry, values))

    def _flush(self) -> None:
        out, self._out = self._out, {}
        for link, entries in out.items():
            link.send_to_worker(wire.pack(Kind.ANSWER, 0, entries))

    def _span(self, table: int, block: int, seg_begin: int, seg_end: int) -> tuple[int, int]:
        return self.layouts[table].blocks[block].span(seg_begin, seg_end)
