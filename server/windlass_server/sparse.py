"""A sparse table on this server: its bands, and the effects of their cores carried out on rows.

A band is a share like a dense group's (`table_specs.bands` says why a band and not a vshard): the same core decides
what is admitted, when a step completes and who is answered. It sees the band as one segment; what rows a push names is
the driver's affair. So BSP's gate is the band: a worker that pushed no row of it is done with it by its mark.

Under BSP and `reduce="mean"` a worker that pushes to a table sends every band an entry, an empty one where it has no
row: the divisor is then the weight of all who pushed to the table in that step, and an absent row counts as zeros, as
it would in a dense gradient.

Invariant: whoever touches a band holds its share's lock. A push's rows exist (or it is refused whole) before its core
admits it, so that an admitted push can always be applied. Contributions to one id are summed in rank order, then the
rule runs once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from windlass_proto import ids as id_kernels
from windlass_proto import limits, row_moves, table_specs
from windlass_proto.consistency import Mode
from windlass_proto.errors import ProtocolError, UsageError, WindlassError
from windlass_proto.frames import Entry, Op, Status, aligned
from windlass_proto.ids import Ids
from windlass_proto.layout import Block, Segment
from windlass_proto.life_specs import TTL
from windlass_proto.memory import Buffer, BufferPool
from windlass_proto.rule_records import RuleRecord
from windlass_proto.rule_specs import RuleSpec
from windlass_proto.schedules import StalenessAware
from windlass_proto.table_specs import TableSpec
from windlass_rules import reduce
from windlass_rules.rows import RowRule
from windlass_server import read_counts
from windlass_server.dense import VERSIONS_KEPT, Share
from windlass_server.dense_memory import Vector
from windlass_server.hot_rows import STRIDE, HotRows
from windlass_server.read_counts import ReadCounts
from windlass_server.replies import Origin, Reply
from windlass_server.row_life import RowLife
from windlass_server.row_table import Ahead, Numbers, RowTable
from windlass_server.row_wire import RowWire
from windlass_server.session_filter import Verdict
from windlass_server.share_core import ShareCore
from windlass_server.share_events import Answer, Apply, Effect, Release, Source, Write

STATS_BYTES = 64
_PARTS: Final = 256  # in which a step's ids are looked through for those that several workers name


@dataclass(slots=True, eq=False)
class Rows:
    """Ids (copied out of what the peer may still change) and their gradients where they arrived.

    `numbers` holds while the table's `erasures` is what it was. `reserved`: rows that were promised to it. `replaced`:
    so many values were not finite, and are what the table's policy made of them.
    """

    ids: Ids
    array: Vector
    buffer: Buffer | None
    numbers: Numbers | None = None
    erasures: int = 0
    reserved: int = 0
    read: int = 0  # the read that the gradients were made from, as dense values say it
    replaced: int = 0


class SparseTable:
    """The bands of one table that this server owns.

    Args:
        owned: the vshards this server owns.
        pool: where answers' rows come from.
        ahead: as `RowTable` takes it.

    Raises:
        UnavailableError: there are no addresses for so many rows.
    """

    def __init__(
        self, spec: TableSpec, rule: RowRule, owned: range, pool: BufferPool, ahead: Ahead | None = None
    ) -> None:
        self.spec = spec
        self._ahead = ahead
        self.rule = rule
        self.pool = pool
        self.job_room: Callable[[int], UsageError | None] | None = None  # asked before rows of so many bytes are made
        self.wire = RowWire(spec, pool)
        self.reductions = reduce.build(spec.held)
        self.moves = row_moves.moves(spec.held)
        self.shares: dict[int, Share] = {}
        self.tables: dict[int, RowTable] = {}
        self.hot: dict[int, HotRows] = {}
        self._reads: dict[int, ReadCounts] = {}
        for band in table_specs.bands(owned, spec.vshards):
            block = Block(band.start, 0, 1, band.start, (Segment(0, 0, 1, 0, 1),))
            core = ShareCore(spec.consistency, [block], mean=spec.mean)
            core.blocks[band.start].present[:] = [True]  # a row's first values are its initialiser's
            self.shares[band.start] = Share(band.start, core, {})
            self.tables[band.start] = self._row_table(band)
            self.hot[band.start] = HotRows()
            self._reads[band.start] = ReadCounts(1)
        self.share_of_block = self.shares
        self.steps_before = 0  # what clocks lack of the steps that a restored checkpoint had; schedules count them
        self._rules: dict[int, RuleSpec] = {}  # version of the hyper-parameters -> the rule under it
        self._scalars: dict[int, tuple[tuple[int, int, int, float], Vector]] = {}

    def check(self, record: RuleRecord) -> None:
        """Do the changes in `record` fit this table's rule?

        Raises:
            ProtocolError: a worker let through what no kernel here can do.
        """
        try:
            self._rule_at(record)
        except UsageError as cause:
            raise ProtocolError("a rule record does not fit its tables", reason=str(cause)) from cause

    def hottest_share(self) -> float:
        """The part of this server's calls to the table, by ids named, that its hottest row has had."""
        named = sum(hot.sampled for hot in self.hot.values()) * STRIDE
        most = max(
            (int(calls[0]) for hot in self.hot.values() for _, calls in [hot.hottest(1)] if calls.size), default=0
        )
        return most / named if named else 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of rows, slots, ids and indexes in use."""
        return sum(table.nbytes for table in self.tables.values())

    def _row_table(self, band: range) -> RowTable:
        spec, slots = self.spec, self.rule.slots
        rows_max = spec.rows_max(len(band), sum(slot.width(spec.dim) for slot in slots))
        capacity = next((wanted.rows_max for wanted in spec.evict if not isinstance(wanted, TTL)), 0)
        if capacity * len(band) // spec.vshards > rows_max:
            raise UsageError(
                "a table keeps more rows than its bytes have room for",
                table=spec.name,
                rows_max=capacity,
                bytes_max=spec.bytes_max,
                rows_of_bytes=rows_max * spec.vshards // len(band),
                next_move="Declare it with a larger bytes_max=, or evict from fewer rows on.",
            )
        rows = RowTable(
            spec.name, band, spec.vshards, spec.seed, spec.dim, spec.held, spec.init, slots, rows_max, self._ahead
        )  # fmt: skip
        if spec.admit is not None or spec.evict:
            rows.life = RowLife(rows, spec.seed, spec.vshards, spec.admit, spec.evict)
        return rows

    # ---- exchanging rows ---------------------------------------------------------------------------------------------

    def empty_rows(self, vshard: int) -> RowTable:
        """A row table as that of a band, without rows."""
        return self._row_table(self.tables[vshard].held)

    def adopt(self, share: Share, rows: RowTable, updates: int) -> None:
        """Serve `rows`, which have had `updates`, from now on. The caller holds the share's lock."""
        before = self.tables[share.vshard]
        rows.erasures = before.erasures + 1  # row numbers of pushes that wait are not of these rows
        rows.reserved = before.reserved
        self.tables[share.vshard] = rows
        share.core.blocks[share.vshard].updates[:] = [updates]
        self._reads[share.vshard].begin_anew()

    # ---- entries -----------------------------------------------------------------------------------------------------

    def ids_bytes_untrusted(self, entry: Entry) -> tuple[int, int]:
        """Bytes of an entry's ids and of all its values.

        Raises:
            ProtocolError: they are not what the entry says of itself.
        """
        count = entry.seg_end
        if entry.seg_begin or count > limits.ENTRY_IDS_MAX:
            raise ProtocolError("an entry has too many ids", ids=count, ids_max=limits.ENTRY_IDS_MAX)
        expected = 8 * count
        if entry.op in (Op.PUSH, Op.PUSH_PULL):
            expected = aligned(expected) + self.wire.bytes_up(count)
        if entry.nbytes != expected:
            raise ProtocolError("an entry's values have another length", got=entry.nbytes, expected=expected)
        return 8 * count, expected

    def answer_bytes_untrusted(self, entry: Entry) -> int:
        """Bytes of an answer's values.

        Raises:
            ProtocolError: the entry asks for rows that there are not, or for more than a frame holds.
        """
        if entry.op == Op.STATS:
            if entry.seg_begin or entry.seg_end > limits.HOT_ROWS_MAX:
                raise ProtocolError("an entry asks for too many hot rows", rows=entry.seg_end)
            return stats_bytes(entry.seg_end)
        count, nbytes = entry.seg_end - entry.seg_begin, 0
        if entry.op == Op.SCAN:
            if entry.seg_end > self.tables[entry.block].used:
                raise ProtocolError("a scan leaves its table", end=entry.seg_end, begin=entry.seg_begin)
            nbytes = scan_bytes(count, self.wire.held_row_bytes)
        elif entry.op in (Op.PULL, Op.PUSH_PULL):
            nbytes = self.wire.bytes_down(count)
        if nbytes > limits.FRAME_PAYLOAD_BYTES_MAX:
            raise ProtocolError("an entry asks for too many rows", bytes=nbytes, rows=count)
        return nbytes

    def finite(self, rows: Rows) -> bool:
        """May these gradients be applied, as far as infinities go? One pass at memory speed; no lock is needed."""
        if not self.wire.cleaning.looks or not rows.array.size:
            return True
        return self.reductions.all_finite(rows.array)

    def check_untrusted(self, band: int, ids: Ids) -> None:
        """Every id belongs to the band, so that nothing that waits for it can fail later. No lock is needed.

        Raises:
            ProtocolError: one does not.
        """
        if not self.tables[band].covers(ids):
            raise ProtocolError("an entry names an id of another band", band=band)

    def take_memory(self, band: int, rows: Rows) -> None:
        """Memory for the rows that a push may make: no lock is needed, so nobody waits for a page's first touch."""
        self.tables[band].take_memory(rows.ids.size)

    def make_room(self, share: Share, session: bytes, seq: int, rows: Rows) -> WindlassError | None:
        """Make rows for what a push names, before its core sees it; an error, and no row, where there is no room."""
        is_dropped = not share.core.blocks[share.vshard].present[0]
        if is_dropped or share.core.sessions.judge(session, seq) is not Verdict.NEXT:
            return None
        table = self.tables[share.vshard]
        self.hot[share.vshard].see(rows.ids)
        rows.numbers, rows.erasures = np.empty(rows.ids.size, np.uint32), table.erasures
        absent = table.find(rows.ids, rows.numbers)
        if not absent:
            return None
        if self.job_room is not None and (refused := self.job_room(absent * table.row_bytes)) is not None:
            return refused
        if table.life is None:
            return table.insert(rows.ids, rows.numbers, absent)
        refused = table.room_for(absent + table.reserved)
        if refused is None:
            rows.reserved = absent
            table.reserved += absent
        return refused

    # ---- effects -----------------------------------------------------------------------------------------------------

    def execute(self, share: Share, effects: list[Effect], deliver: Callable[[Reply], None]) -> None:
        """Carry out `effects` in order. The caller holds `share.lock`."""
        for effect in effects:
            if type(effect) is Apply:
                self._apply(share, effect)
                if effect.answer is not None:
                    self._answer(share, effect.answer, deliver)
            elif type(effect) is Answer:
                self._answer(share, effect, deliver)
            elif type(effect) is Release:
                if effect.buffer is not None:
                    self.tables[share.vshard].reserved -= effect.buffer.reserved
                    if effect.buffer.buffer is not None:
                        effect.buffer.buffer.release()
            elif type(effect) is Write:
                self.tables[share.vshard].erase(effect.buffer.ids)

    def _apply(self, share: Share, effect: Apply) -> None:
        table = self.tables[share.vshard]
        sources = [source for source in effect.sources if source.buffer.ids.size]
        if table.life is not None:
            self._apply_living(table, table.life, sources, share.vshard, effect)
            return
        if not sources:
            return
        numbers = [self._numbers(table, source.buffer) for source in sources]
        if len(sources) == 1:
            self._update(table, numbers[0], sources[0].buffer.array, sources[0].weight, share.vshard, effect)
        else:
            names, gradient = self._summed(sources, [own.astype(np.uint64) for own in numbers])
            self._update(table, names.astype(np.uint32), gradient, 1.0, share.vshard, effect)

    def _apply_living(self, table: RowTable, life: RowLife, sources: list[Source], vshard: int, effect: Apply) -> None:
        """Rows are made, and go, as the push is applied: what is decided follows from the order of pushes alone."""
        step = max(0, effect.clock + self.steps_before)
        life.pass_step(step)
        life.sweep()
        if not sources:
            return
        if len(sources) == 1:
            ids, gradient, weight = sources[0].buffer.ids, sources[0].buffer.array, sources[0].weight
        else:
            ids, gradient = self._summed(sources, [source.buffer.ids for source in sources])
            weight = 1.0
        numbers = life.rows_of(ids, step if self.spec.consistency.mode is Mode.BSP else effect.update)
        self._update(table, numbers, gradient, weight, vshard, effect)
        life.touch(numbers)
        life.make_way()

    def _update(
        self, table: RowTable, numbers: Numbers, gradient: Vector, weight: float, vshard: int, effect: Apply
    ) -> None:
        scalars = self._numbers_of_step(vshard, effect)
        arrays = (table.rows, *table.slots)
        self.rule.update(arrays, numbers, self.spec.dim, gradient, weight / effect.divisor, scalars)
        if table.changes is not None:
            table.changes.update(numbers)

    def _summed(self, sources: list[Source], names: list[Ids]) -> tuple[Ids, Vector]:
        """Each row of several sources once, with the weighted sum of its gradients in the order of the sources.

        `names`: of each source, what tells its rows apart.
        """
        plan = id_kernels.plan(np.concatenate(names), 0, _PARTS)
        places = plan.inverse()
        total: Vector = np.empty(plan.ids.size * self.spec.dim, self.spec.held)
        seen = np.zeros(plan.ids.size, np.uint8)
        begins = np.arange(plan.ids.size, dtype=np.int64) * self.spec.dim
        at = 0
        for source, own in zip(sources, names, strict=True):
            inverse = places[at : at + own.size]
            self.moves.sum_rows(source.buffer.array, inverse, begins, self.spec.dim, source.weight, total, seen)
            at += own.size
        return plan.ids, total

    def _numbers(self, table: RowTable, rows: Rows) -> Numbers:
        """Row numbers of a push. Rows erased since it arrived are made anew, if there is room."""
        if rows.numbers is None or rows.erasures != table.erasures:
            rows.numbers, rows.erasures = np.empty(rows.ids.size, np.uint32), table.erasures
            absent = table.find(rows.ids, rows.numbers)
            if absent:
                table.insert(rows.ids, rows.numbers, absent)
        return rows.numbers

    def _numbers_of_step(self, vshard: int, effect: Apply) -> Vector:
        rule, clock = self._rule_at(effect.stamp), max(0, effect.clock + self.steps_before)
        share = self._share_of_lr(vshard, rule, effect)
        step = (effect.update, clock, effect.stamp.version, share)
        known = self._scalars.get(vshard)
        if known is None or known[0] != step:
            known = (step, self.rule.scalars(rule, effect.update, clock, lr_mult=share))
            self._scalars[vshard] = known
        return known[1]

    def _share_of_lr(self, vshard: int, rule: RuleSpec, effect: Apply) -> float:
        """What a push keeps of lr, where that depends on its staleness: on the updates of its band meanwhile."""
        lr = getattr(rule, "lr", None)
        if not isinstance(lr, StalenessAware) or self.shares[vshard].core.modes.at(effect.clock).mode is Mode.BSP:
            return 1.0
        counts = self._reads[vshard].counts(effect.sources[0].buffer.read)
        return lr.share(read_counts.staleness(counts, 0, effect.update))

    def _rule_at(self, record: RuleRecord) -> RuleSpec:
        rule = self._rules.get(record.version)
        if rule is None:
            rule = record.rule_of(self.spec.table_id, self.spec.name, self.spec.rule)
            kept = {} if len(self._rules) >= VERSIONS_KEPT else dict(self._rules)
            self._rules = {**kept, record.version: rule}  # bands of other locks read the old one meanwhile
        return rule

    # ---- answering ---------------------------------------------------------------------------------------------------

    def _answer(self, share: Share, answer: Answer, deliver: Callable[[Reply], None]) -> None:
        origin: Origin | None = answer.origin
        if origin is None:
            return
        if answer.values and origin.asked is None and origin.op == Op.PUSH_PULL:
            deliver(Reply(origin, Status.RETRY, answer.block, 0, 0, 0, None, None))  # there was no room for its ids
            return
        snapshot: Buffer | None = None
        if answer.values and origin.op in (Op.PULL, Op.PUSH_PULL, Op.STATS, Op.SCAN):
            snapshot = self._values_of(share.vshard, origin)
            if origin.op in (Op.PULL, Op.PUSH_PULL) and answer.status is not Status.LATE:
                answer = answer._replace(
                    aux=self._reads[share.vshard].number_of(share.core.blocks[answer.block].updates)
                )
        deliver(Reply(origin, answer.status, answer.block, 0, 0, answer.aux, snapshot, answer.error))

    def _values_of(self, vshard: int, origin: Origin) -> Buffer | None:
        """What was asked for: written to the worker's shared memory, or into a pooled buffer that is returned."""
        table, asked = self.tables[vshard], origin.asked
        if origin.op == Op.PULL:
            self.hot[vshard].see(asked)
        if origin.op == Op.STATS:
            snapshot = self.pool.take(stats_bytes(len(asked)), beyond=True)
            evicted, refused = (table.life.evicted, table.life.refused) if table.life is not None else (0, 0)
            said = snapshot.array.view(np.uint64)
            said[:] = 0
            said[:5] = (len(table), table.used, table.nbytes, evicted, refused)
            ids, calls = self.hot[vshard].hottest(len(asked))
            pairs = said[STATS_BYTES // 8 :].reshape(-1, 2)
            pairs[: ids.size, 0], pairs[: ids.size, 1] = ids, calls
            return snapshot
        if origin.op == Op.SCAN:
            return self._scanned(table, asked)
        if not asked.size:
            return None
        out: Any = origin.out
        if out is None:
            snapshot = self.pool.take(self.wire.bytes_down(asked.size), beyond=True)
            out = snapshot.array.view(self.wire.answers_in)
        self.wire.count_down(asked.size)
        whole = self.wire.take_rows(asked.size)
        table.read(asked, out if whole is None else whole.array.view(self.spec.held))
        if whole is not None:
            self.wire.encode(whole, out)
        return snapshot if origin.out is None else None

    def _scanned(self, table: RowTable, asked: range) -> Buffer:
        """Ids, then which of the row numbers live, then rows; each from a multiple of 64 on."""
        count = len(asked)
        snapshot = self.pool.take(scan_bytes(count, self.wire.held_row_bytes), beyond=True)
        ids = table.ids[asked.start : asked.stop]
        snapshot.array[: 8 * count] = ids.view(np.uint8)
        flags = aligned(8 * count)
        table.scan(asked.start, snapshot.array[flags : flags + count])
        rows = flags + aligned(count)
        values: Any = table.rows[asked.start * self.spec.dim : asked.stop * self.spec.dim]
        snapshot.array[rows : rows + values.nbytes] = values.view(np.uint8)
        return snapshot


def stats_bytes(hot: int) -> int:
    """Length of the figures of a band, with so many of its hot rows: an id and a count each."""
    return STATS_BYTES + 16 * hot


def scan_bytes(count: int, row_bytes: int) -> int:
    """Length of a scan's answer."""
    return aligned(8 * count) + aligned(count) + count * row_bytes
