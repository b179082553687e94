"""Row tables against a dict, and row kernels against the dense ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_proto import ids, limits
from windlass_proto.errors import UsageError
from windlass_proto.init_specs import Constant
from windlass_proto.rule_specs import SGD, Adagrad, Adam, AdamW, RuleSpec
from windlass_rules import build
from windlass_rules.rows import build_rows
from windlass_rules.rule import Per, Slot
from windlass_server import row_table
from windlass_server.row_table import RowTable

SEED = 99
DIM = 3


def made(rows_max: int = 100_000, held: range = range(16), slots: tuple[Slot, ...] = ()) -> RowTable:
    return RowTable("t", held, 16, SEED, DIM, np.dtype("float64"), Constant(0.5), slots, rows_max)


def array(items: Any) -> ids.Ids:
    return np.array(list(items), np.uint64)


def insert(table: RowTable, items: ids.Ids) -> UsageError | None:
    numbers = np.empty(items.size, np.uint32)
    absent = table.find(items, numbers)
    return table.insert(items, numbers, absent)


def put(table: RowTable, items: ids.Ids, value: float) -> None:
    """Make the rows of `items` and set every value."""
    assert insert(table, items) is None
    numbers = np.empty(items.size, np.uint32)
    assert table.find(items, numbers) == 0
    for number in numbers:
        table.rows[int(number) * DIM : (int(number) + 1) * DIM] = value


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "erase"]), st.lists(st.integers(0, 400), max_size=120)), max_size=12
)


@settings(max_examples=150, deadline=None)
@given(operations=OPERATIONS)
def test_a_row_table_holds_what_a_dict_would(operations: list[tuple[str, list[int]]]) -> None:
    table, oracle = made(), dict[int, float]()
    for at, (what, items) in enumerate(operations):
        if what == "put":
            put(table, array(items), at + 1.0)
            oracle.update(dict.fromkeys(items, at + 1.0))
        else:
            assert table.erase(array(items)) == len(oracle.keys() & set(items))
            for item in items:
                oracle.pop(item, None)
        table.validate()
        assert len(table) == len(oracle)
    asked = array(range(401))
    out = np.empty(asked.size * DIM)
    table.read(asked, out)
    assert [row[0] for row in out.reshape(-1, DIM)] == [oracle.get(item, 0.5) for item in range(401)]
    live = np.zeros(table.used, np.uint8)
    table.scan(0, live)
    assert sorted(table.ids[: table.used][live.astype(bool)].tolist()) == sorted(oracle)


def test_indexes_grow_and_give_their_pages_back() -> None:
    table = made(200_000)
    everything = np.arange(100_000, dtype=np.uint64)
    for begin in range(0, everything.size, 5_000):
        assert insert(table, everything[begin : begin + 5_000]) is None
    table.validate()
    assert len(table) == 100_000
    fill = table._counts / (table._masks + np.uint64(1))
    assert fill.max() <= 0.90
    assert fill.min() > 0.25, "an index is larger than it need be"
    assert len({int(mask) for mask in table._masks}) > 1, "all indexes grew together"


@pytest.mark.parametrize("seed", range(6))
def test_rows_come_and_go_while_indexes_are_rebuilt(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_table, "SLICE_SLOTS_MIN", 5)
    monkeypatch.setattr(row_table, "SLICE_SLOTS_A_ROW", 1 + seed % 3)
    random, table, oracle = np.random.default_rng(seed), made(), set[int]()
    under_way = 0
    for _ in range(250):
        items = random.integers(0, 6_000, random.integers(1, 40)).astype(np.uint64)
        if random.random() < 0.7:
            assert insert(table, items) is None
            oracle |= set(items.tolist())
        else:
            gone = np.concatenate([items, random.permutation(array(oracle))[:15]])
            assert table.erase(gone) == len(oracle & set(gone.tolist()))
            oracle -= set(gone.tolist())
        table.validate()
        under_way += any(table._walked > 0)
    assert under_way > 20
    numbers = np.empty(6_000, np.uint32)
    table.find(array(range(6_000)), numbers)
    assert set(np.flatnonzero(numbers != ids.NONE).tolist()) == oracle


def test_no_push_walks_more_of_the_indexes_than_its_part() -> None:
    table, walked = made(400_000), []
    for begin in range(0, 300_000, 3_000):
        before = table.slots_walked
        assert insert(table, np.arange(begin, begin + 3_000, dtype=np.uint64)) is None
        walked.append(table.slots_walked - before)
    assert max(walked[10:]) <= max(row_table.SLICE_SLOTS_MIN, 3_000 * row_table.SLICE_SLOTS_A_ROW)
    assert 1.0 < table.slots_walked / 300_000 < 4.0, "an index is walked once when it doubles"
    assert insert(table, np.arange(300_000, 400_000, dtype=np.uint64)) is None  # more than may wait
    table.validate()


def test_memory_is_asked_for_ahead_of_the_rows_that_pushes_make() -> None:
    asked: list[np.ndarray] = []
    table = RowTable(
        "t", range(16), 16, SEED, DIM, np.dtype("float64"), Constant(0.5), (Slot("sum", 0.25),), 200_000, asked.append
    )  # fmt: skip
    late = 0
    for begin in range(0, 100_000, 2_000):
        ends = [part.ctypes.data + part.nbytes for part in asked if np.shares_memory(part, table.rows)]
        before = (max(ends) - table.rows.ctypes.data) // (8 * DIM) if ends else 0
        assert insert(table, np.arange(begin, begin + 2_000, dtype=np.uint64)) is None
        late += table.used > max(before, 6_000)
    assert late == 0, "what a push touches was asked for by an earlier one, but for the first few"
    kinds = [sum(np.shares_memory(part, array) for part in asked) for array in (table.rows, table.ids, table.slots[0])]
    assert min(kinds) == max(kinds) > 4
    assert sum(np.shares_memory(part, table._index) for part in asked) >= 1
    taken = sum(part.nbytes for part in asked if np.shares_memory(part, table.rows))
    assert taken < table.rows[: 110_000 * DIM].nbytes, "no more than some pushes ahead"


def test_rows_beyond_the_maximum_are_refused_whole() -> None:
    table = made(rows_max=10)
    assert insert(table, array(range(8))) is None
    error = insert(table, array([1, 100, 101, 102]))
    assert error is not None
    assert (error.values["rows"], error.values["rows_asked"], error.values["rows_max"]) == (8, 3, 10)
    assert len(table) == 8
    table.validate()
    table.erase(array([0]))
    assert insert(table, array([1, 100, 101, 102])) is None
    assert len(table) == 10


def test_a_row_made_anew_begins_as_any_other() -> None:
    table = made(slots=(Slot("sum", 0.25),))
    put(table, array([7]), 9.0)
    table.slots[0][:DIM] = 8.0
    table.erase(array([7]))
    assert insert(table, array([8])) is None
    assert table.used == 1, "the row was not used again"
    assert table.rows[:DIM].tolist() == [0.5] * DIM
    assert table.slots[0][:DIM].tolist() == [0.25] * DIM


def test_an_id_given_twice_is_one_row() -> None:
    table = made()
    assert insert(table, array([5, 5, 5])) is None
    assert len(table) == 1
    assert table.erase(array([5, 5])) == 1
    table.validate()


def test_ids_of_other_bands_are_told_apart() -> None:
    items = np.arange(1000, dtype=np.uint64)
    plan = ids.plan(items, SEED, 16)
    table = made(held=range(4, 8))
    assert table.covers(plan.ids[plan.begins[4] : plan.begins[8]])
    assert not table.covers(plan.ids[plan.begins[4] : plan.begins[8] + 1])
    assert not table.covers(plan.ids[plan.begins[4] - 1 : plan.begins[8]])


def test_a_row_costs_its_values_and_24_bytes() -> None:
    table = made(400_000)
    for begin in range(0, 300_000, 50_000):
        insert(table, np.arange(begin, begin + 50_000, dtype=np.uint64))
    index = int((table._masks + np.uint64(1)).sum()) * 4
    assert 8 + index / len(table) <= limits.ROW_OVERHEAD_BYTES


@pytest.mark.parametrize(
    "spec",
    [SGD(lr=0.1, weight_decay=0.1), SGD(lr=0.1, momentum=0.9), Adagrad(lr=0.1), Adam(lr=0.1), AdamW(lr=0.1)],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_row_moves_as_a_dense_tensor_would_and_others_stay(spec: RuleSpec, dtype: str) -> None:
    rule, dense = build_rows(spec, dtype), build(spec, dtype)
    random = np.random.default_rng(3)
    dim, count = 16, 40
    rows = random.normal(size=count * dim).astype(dtype)
    slots = tuple(np.full(count * dim, slot.fill, dtype) for slot in dense.slots)
    expected, expected_slots = rows.copy(), tuple(slot.copy() for slot in slots)
    for step in range(1, 4):
        chosen = random.choice(count, 25, replace=False).astype(np.uint32)
        grads = random.normal(size=chosen.size * dim).astype(dtype)
        scalars = rule.scalars(spec, step)
        rule.update((rows, *slots), chosen, dim, grads, 0.5, scalars)
        for i, number in enumerate(chosen):
            run = grads[i * dim : (i + 1) * dim]
            dense.update(expected, expected_slots, int(number) * dim, run, 0.5, scalars)
    assert np.array_equal(rows, expected)
    assert all(np.array_equal(a, b) for a, b in zip(slots, expected_slots, strict=True))


def test_slots_of_one_value_a_row_are_filled_when_rows_are_made_and_made_anew() -> None:
    table = made(slots=(Slot("held", 0.5), Slot("n", -1.0, Per.ROW)), rows_max=1000)
    put(table, array(range(10)), 2.0)
    assert (table.slots[0][: 10 * DIM] == 0.5).all()
    assert (table.slots[1][:10] == -1.0).all()
    assert (table.slots[1][10:20] == 0.0).all()  # what nobody has reached costs nothing
    table.slots[0][:], table.slots[1][:] = 7.0, 7.0
    table.erase(array([3, 4]))
    put(table, array([50]), 2.0)
    numbers = np.empty(1, np.uint32)
    table.find(array([50]), numbers)
    at = int(numbers[0])
    assert table.slots[1][at] == -1.0
    assert (table.slots[0][at * DIM : (at + 1) * DIM] == 0.5).all()
    assert np.count_nonzero(table.slots[1] == -1.0) == 1
    wide, narrow = made(slots=(Slot("sum", 0.0),)), made(slots=(Slot("sum", 0.0, Per.ROW),))
    for each in (wide, narrow):
        put(each, array(range(1000)), 1.0)
    assert wide.nbytes - narrow.nbytes == 1000 * (DIM - 1) * 8
