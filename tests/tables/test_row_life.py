"""Admission and eviction against a model in plain dicts; what a restart keeps; that order of rows does not matter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tables import test_staged_bands as bands
from windlass_proto import ids, life_specs, limits, table_specs
from windlass_proto.consistency import Consistency
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import control_pb2
from windlass_proto.init_specs import Constant
from windlass_proto.life_specs import LFU, LRU, TTL, AdmitSpec, Count, Evictions, Probability, Score
from windlass_proto.memory import BufferPool
from windlass_proto.rule_records import DECLARED
from windlass_proto.rule_specs import Adagrad
from windlass_proto.table_specs import TableSpec
from windlass_rules.rows import build_rows
from windlass_server import row_life
from windlass_server.admission_counts import WAYS, AdmissionCounts
from windlass_server.share_core import Push, Roster
from windlass_server.share_events import Member
from windlass_server.sparse import Rows, SparseTable

VSHARDS = 4
DIM = 2
POOL = BufferPool(16 * limits.MIB)
MASK = (1 << 64) - 1
SPEC = TableSpec(
    1, 7, "user", DIM, "float64", Constant(0.0), limits.MIB, Adagrad(lr=1.0), False, Consistency.parse("asp"), VSHARDS
)
RULE = build_rows(SPEC.rule, "float64")


@pytest.fixture(autouse=True)
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few rows a vshard, and a sweep that takes several pushes to go round."""
    monkeypatch.setattr(limits, "EVICT_ROWS_MIN", 1)
    monkeypatch.setattr(row_life, "SWEEP_ROWS", 7)


def made(admit: AdmitSpec | None, evict: Evictions, **changes: Any) -> SparseTable:
    return SparseTable(replace(SPEC, admit=admit, evict=evict, **changes), RULE, range(VSHARDS), POOL)


class Pusher:
    """One session that pushes gradients of 1 to a table."""

    def __init__(self, table: SparseTable) -> None:
        self.table = table
        self.seqs = dict.fromkeys(table.shares, 0)

    def push(self, items: list[int], step: int) -> list[Any]:
        """The refusals of bands, in their order."""
        wanted, refused = np.array(items, np.uint64), []
        for vshard, share in self.table.shares.items():
            mine = wanted[self.table.tables[vshard].belonging(wanted)]
            self.seqs[vshard] += 1
            rows = Rows(mine, np.ones(mine.size * DIM), None)
            with share.lock:
                refusal = self.table.make_room(share, b"s", self.seqs[vshard], rows)
                event = Push(None, b"s", self.seqs[vshard], step, vshard, 0, 1, rows, refusal=refusal, stamp=DECLARED)
                self.table.execute(share, share.core.push(event), lambda _: None)
            refused.append(refusal)
            assert self.table.tables[vshard].reserved == 0
        return refused


def held(table: SparseTable) -> dict[int, float]:
    """id -> first slot value (how many pushes it has had), of every row that can be read."""
    found = {}
    for rows in table.tables.values():
        rows.validate()
        live = np.zeros(rows.used, np.uint8)
        rows.scan(0, live)
        for number in np.flatnonzero(live):
            found[int(rows.ids[number])] = float(rows.slots[0][number * DIM])
    return found


# ---- the model -----------------------------------------------------------------------------------------------------


def mix64(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@dataclass
class Row:
    pushes: int = 0
    touched: int = 0
    score: float = 0.0


@dataclass
class Model:
    """What a table holds, row by row, in dicts."""

    admit: AdmitSpec | None
    evict: Evictions
    rows: dict[int, Row] = field(default_factory=dict)
    counted: dict[int, int] = field(default_factory=dict)
    now: int = 0
    updates: int = 0

    def key(self, item: int) -> int:
        return mix64(item ^ SPEC.seed)

    def vshard(self, item: int) -> int:
        return self.key(item) * VSHARDS >> 64

    def push(self, items: list[int], step: int) -> None:
        self.updates += 1
        self.now = max(self.now, step)
        self.expire()
        for item in items:
            if item not in self.rows and self.admits(item):
                self.rows[item] = Row()
            if item in self.rows:
                row = self.rows[item]
                row.score = float(np.float32(self.score(row) + 1.0))
                row.pushes, row.touched = row.pushes + 1, self.now
        for spec in self.evict:
            if not isinstance(spec, TTL):
                self.make_way(spec.rows_max // VSHARDS)

    def expire(self) -> None:
        for spec in self.evict:
            if isinstance(spec, TTL):
                self.rows = {item: row for item, row in self.rows.items() if self.now - row.touched <= spec.steps}

    def admits(self, item: int) -> bool:
        if isinstance(self.admit, Count):
            self.counted[item] = self.counted.get(item, 0) + 1
            if self.counted[item] < self.admit.n:
                return False
            del self.counted[item]
        if isinstance(self.admit, Probability):
            stream = mix64((self.admit.seed + (self.updates + 1) * 0x9E3779B97F4A7C15) & MASK)
            return mix64(item ^ SPEC.seed ^ stream) >> 11 < int(self.admit.p * (1 << 53))
        return True

    def score(self, row: Row) -> float:
        spec = next((spec for spec in self.evict if not isinstance(spec, TTL)), None)
        if not isinstance(spec, Score):
            return row.score
        halvings, rest = divmod(self.now - row.touched, spec.half_life)
        return float(np.float32(row.score * (1.0 - rest / (2.0 * spec.half_life)) / 2.0**halvings))

    def make_way(self, whole: int) -> None:
        for v in range(VSHARDS):
            mine = [item for item in self.rows if self.vshard(item) == v]
            part = whole - (whole // 8 * ((v * 0x9E3779B97F4A7C15 & MASK) >> 32) >> 32)
            if len(mine) > part:
                by_worth = sorted(mine, key=lambda item: (self.worth(self.rows[item]), self.key(item)))
                for item in by_worth[: len(mine) - (part - part // 8)]:
                    del self.rows[item]

    def worth(self, row: Row) -> float:
        if any(isinstance(spec, LRU) for spec in self.evict):
            return row.touched
        return self.score(row)

    def held(self) -> dict[int, float]:
        return {item: float(row.pushes) for item, row in self.rows.items()}


ADMISSIONS = st.one_of(
    st.none(), st.builds(Count, st.integers(1, 4)), st.builds(Probability, st.floats(0.05, 1.0), st.integers(0, 9))
)
CAPACITIES = st.one_of(
    st.builds(LRU, st.integers(4, 80)),
    st.builds(LFU, st.integers(4, 80)),
    st.builds(Score, st.integers(4, 80), st.integers(1, 12)),
)
EVICTIONS = st.one_of(
    st.just(()),
    st.tuples(CAPACITIES),
    st.tuples(st.builds(TTL, st.integers(1, 12))),
    st.tuples(st.builds(TTL, st.integers(1, 12)), CAPACITIES),
)
PUSHES = st.lists(st.tuples(st.integers(0, 4), st.sets(st.integers(0, 120), max_size=50)), max_size=14)


@settings(max_examples=80, deadline=None)
@given(admit=ADMISSIONS, evict=EVICTIONS, pushes=PUSHES)
def test_rows_are_those_of_the_model_after_every_push(
    admit: AdmitSpec | None, evict: Evictions, pushes: list[tuple[int, set[int]]]
) -> None:
    pusher, model, step = Pusher(made(admit, evict)), Model(admit, evict), 0
    for passed, items in pushes:
        step += passed
        order = sorted(items)
        assert pusher.push(order, step) == [None] * len(pusher.seqs)
        model.push(order, step)
        assert held(pusher.table) == model.held()
    asked = np.arange(121, dtype=np.uint64)
    for rows in pusher.table.tables.values():
        mine = asked[rows.belonging(asked)]
        out = np.empty(mine.size * DIM)
        rows.read(mine, out)
        for item, value in zip(mine.tolist(), out[::DIM], strict=True):
            assert (value < 0) == (item in model.rows), "an id without a row is read as its initialiser has it"


@settings(max_examples=25, deadline=None)
@given(admit=ADMISSIONS, evict=EVICTIONS, pushes=PUSHES, at=st.integers(0, 13), gone=st.integers(0, 3))
def test_a_table_taken_from_a_checkpoint_goes_on_as_the_one_that_was_saved(
    admit: AdmitSpec | None, evict: Evictions, pushes: list[tuple[int, set[int]]], at: int, gone: int
) -> None:
    """Its rows lie in another order in memory, since those that had gone left no holes."""
    import tempfile

    pusher, step = Pusher(made(admit, evict)), 0
    for passed, items in pushes[:at]:
        step += passed
        pusher.push(sorted(items), step)
    for rows in pusher.table.tables.values():
        wanted = np.arange(gone, dtype=np.uint64)
        rows.erase(wanted[rows.belonging(wanted)])
    other = Pusher(made(admit, evict))
    other.seqs = dict(pusher.seqs)
    with tempfile.TemporaryDirectory() as name:
        manifest = bands.saved([pusher.table], Path(name))
        bands.restored(Path(name), manifest, [other.table])
    for vshard, share in other.table.shares.items():
        share.core.sessions.admit(b"s", pusher.seqs[vshard])
    assert held(other.table) == held(pusher.table)
    for passed, items in pushes[at:]:
        step += passed
        pusher.push(sorted(items), step)
        other.push(sorted(items), step)
        assert held(other.table) == held(pusher.table)


SESSIONS = (b"first", b"second")
STEPS = st.lists(st.tuples(*[st.sets(st.integers(0, 60), max_size=25)] * 2), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(admit=ADMISSIONS, evict=EVICTIONS, steps=STEPS, orders=st.tuples(*[st.randoms(use_true_random=False)] * 2))
def test_under_bsp_rows_do_not_depend_on_whose_push_comes_first_nor_on_how_early(
    admit: AdmitSpec | None, evict: Evictions, steps: list[tuple[set[int], set[int]]], orders: tuple[Random, Random]
) -> None:
    """A worker may be a step ahead: its pushes wait, and neither their rows nor their counts show before."""
    found = []
    for order in orders:
        table = made(admit, evict, consistency=Consistency.parse("bsp"), mean=True)
        left = {session: [items[at] for items in steps] for at, session in enumerate(SESSIONS)}
        roster = Roster(1, True, tuple(Member(session, rank, 0) for rank, session in enumerate(SESSIONS)))
        for share in table.shares.values():
            share.core.set_roster(roster)
        while any(left.values()):
            session = order.choice([session for session in SESSIONS if left[session]])
            step = len(steps) - len(left[session])
            contribute(table, session, step, sorted(left[session].pop(0)))
        found.append((held(table), [rows.reserved for rows in table.tables.values()]))
    assert found[0] == found[1]
    assert set(found[0][1]) == {0}


def contribute(table: SparseTable, session: bytes, step: int, items: list[int]) -> None:
    """Push to every band, as under a mean, and close the step."""
    wanted = np.array(items, np.uint64)
    for vshard, share in table.shares.items():
        mine = wanted[table.tables[vshard].belonging(wanted)]
        rows = Rows(mine, np.ones(mine.size * DIM), None)
        with share.lock:
            assert table.make_room(share, session, step + 1, rows) is None
            event = Push(None, session, step + 1, step, vshard, 0, 1, rows, stamp=DECLARED)
            table.execute(share, share.core.push(event), lambda _: None)
            table.execute(share, share.core.mark(session, step), lambda _: None)


def test_what_has_expired_gives_its_memory_back_a_few_rows_a_push() -> None:
    pusher = Pusher(made(None, (TTL(2),)))
    pusher.push(list(range(100)), 0)
    pusher.push([1], 3)
    assert held(pusher.table) == {1: 1.0}, "it can be read no more, whether it was swept or not"
    for _ in range(20):
        pusher.push([1], 3)
    assert sum(len(rows) for rows in pusher.table.tables.values()) == 1
    assert sum(rows.life.evicted for rows in pusher.table.tables.values() if rows.life) == 100, "1 began anew"


def test_a_row_that_is_evicted_begins_anew() -> None:
    pusher = Pusher(made(None, (LRU(4),)))
    pusher.push([1], 0)
    rows = next(rows for rows in pusher.table.tables.values() if rows.belonging(np.array([1], np.uint64)).all())
    others = [item for item in range(2, 200) if rows.belonging(np.array([item], np.uint64)).all()]
    for item in others:
        pusher.push([item], 1)
    assert 1 not in held(pusher.table)
    pusher.push([1], 2)
    assert held(pusher.table)[1] == 1.0, "its slots were kept"


@pytest.mark.parametrize("capacity", [lambda: LRU(400), lambda: LFU(400), lambda: Score(400, 3)])
def test_the_lowest_rows_are_those_of_least_worth_and_of_least_key_among_equals(
    capacity: Callable[[], life_specs.Capacity],
) -> None:
    pusher, random = Pusher(made(None, (capacity(),))), np.random.default_rng(0)
    for step in range(8):
        pusher.push(random.choice(300, 80, replace=False).tolist(), step)
    for rows in pusher.table.tables.values():
        numbers, columns = rows.numbers_of(0), rows.columns()
        assert rows.life is not None
        worths = rows.life._scores(numbers) if "score" in columns else columns["touched"][0][numbers]
        order = np.lexsort((ids.mix64(rows.ids[numbers] ^ np.uint64(SPEC.seed)), worths))
        for count in (1, numbers.size // 2, numbers.size):
            found = rows.life._lowest(0, numbers.size, count)
            assert sorted(found.tolist()) == sorted(numbers[order[:count]].tolist())


def test_vshards_that_fill_alike_do_not_all_make_way_in_one_push() -> None:
    shares = row_life.parts(1 << 20, range(64, 128), 256)
    assert shares.max() <= 1 << 12
    assert shares.min() >= (1 << 12) * 7 // 8
    assert np.array_equal(shares[16:], row_life.parts(1 << 20, range(80, 128), 256))  # wherever bands are cut
    rows_a_push = 8  # into each vshard
    over = [np.count_nonzero((shares >= at) & (shares < at + rows_a_push)) for at in range(3584, 4096, rows_a_push)]
    assert max(over) <= 2


def test_a_push_beyond_the_bytes_is_refused_before_its_step_and_leaves_no_promise() -> None:
    pusher = Pusher(made(Count(2), (), bytes_max=4 * 10 * (2 * DIM * 8 + limits.ROW_OVERHEAD_BYTES)))
    refused = pusher.push(list(range(400)), 0)
    assert all(error is not None and "full" in str(error) for error in refused)
    assert pusher.push([1, 2, 3], 1) == [None] * 4
    assert held(pusher.table) == {}


def test_more_rows_than_the_bytes_hold_are_refused_when_declared() -> None:
    with pytest.raises(UsageError, match=r"more rows than its bytes.*rows_max=1000000.*bytes_max=1048576"):
        made(None, (LRU(1_000_000),))


def test_counts_are_never_too_high_and_frequent_ids_are_admitted_among_many_rare_ones() -> None:
    counts = AdmissionCounts(range(1), 1, SPEC.seed, 50)
    random, often = np.random.default_rng(0), np.arange(20, dtype=np.uint64)
    seen: dict[int, int] = {}
    for _ in range(200):
        rare = np.unique(random.integers(1 << 32, 1 << 62, 400).astype(np.uint64))
        pushed = np.concatenate([often, rare])
        for item, admitted in zip(pushed.tolist(), counts.admits(pushed).tolist(), strict=True):
            seen[item] = seen.get(item, 0) + 1
            if admitted:
                assert seen.pop(item) >= 50
    assert not seen.keys() & {item for item in often.tolist() if seen.get(item, 0) > 60 + 80_000 / 512 / WAYS}


def test_specs_survive_the_wire_and_nonsense_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    admits: list[AdmitSpec | None] = [None, Count(3), Probability(0.25, 7)]
    evicts: list[Evictions] = [(), (TTL(5),), (LRU(40_000),), (TTL(2), LFU(50_000)), (Score(20_000, 100),)]
    for admit in admits:
        for evict in evicts:
            message = table_specs.table_message(replace(SPEC, admit=admit, evict=evict))
            assert life_specs.from_message(message) == (admit, evict)
    for bad in (
        control_pb2.Table(admit=control_pb2.Admit()),
        control_pb2.Table(admit=control_pb2.Admit(count=1 << 20)),
        control_pb2.Table(evict=[control_pb2.Evict(kind="soon")]),
        control_pb2.Table(evict=[control_pb2.Evict(kind="ttl")]),
        control_pb2.Table(evict=[control_pb2.Evict(kind="ttl", steps=1)] * 2),
        control_pb2.Table(evict=[control_pb2.Evict(kind="lru", rows_max=1 << 20)] * 2),
    ):
        with pytest.raises(ProtocolError):
            life_specs.from_message(bad)
    monkeypatch.setattr(limits, "EVICT_ROWS_MIN", 1 << 14)
    for wrong in (lambda: LRU(100), lambda: TTL(0), lambda: Count(0), lambda: Probability(0.0), lambda: TTL(1.5)):  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            wrong()
    for given_ in (3, (LRU(20_000), LFU(20_000)), "lru"):
        with pytest.raises(UsageError):
            life_specs.evictions(given_)
    assert life_specs.evictions((LRU(20_000), TTL(3))) == (TTL(3), LRU(20_000))


def test_half_the_pushes_of_an_id_are_drawn() -> None:
    pusher = Pusher(made(Probability(0.5), ()))
    pusher.push(list(range(1000)), 0)
    assert 400 < len(held(pusher.table)) < 600
    for _ in range(20):
        pusher.push(list(range(1000)), 0)
    assert len(held(pusher.table)) == 1000, "every push draws again"
    assert ids.NONE not in held(pusher.table)
