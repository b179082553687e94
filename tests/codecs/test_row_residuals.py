"""What is kept back of rows: by id, whatever order they come in, within bytes; who was named longest ago goes first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.row_residuals import WAYS, RowResiduals

DIM = 3


def ids(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.uint64)


def put(residuals: RowResiduals, wanted: np.ndarray, values: np.ndarray) -> None:
    places, _ = residuals.take(wanted)
    residuals.keep(places, np.repeat(values.astype(np.float32), DIM))


def held(residuals: RowResiduals, wanted: np.ndarray) -> list[float]:
    _, kept = residuals.take(wanted)
    rows = kept.reshape(-1, DIM)
    assert (rows == rows[:, :1]).all()
    found: list[float] = rows[:, 0].tolist()
    return found


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=30, unique=True), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_what_was_kept_comes_back_for_its_id(calls: list[list[int]]) -> None:
    residuals, model = RowResiduals(DIM), dict[int, float]()
    for number, call in enumerate(calls):
        wanted = ids(*call)
        assert held(residuals, wanted) == [model.get(one, 0.0) for one in call]
        values = np.arange(len(call)) + 100.0 * number
        put(residuals, wanted, values)
        model |= dict(zip(call, values.tolist(), strict=True))
    assert len(residuals) == len(model)
    assert residuals.dropped == 0


def test_it_grows_with_the_ids_and_not_with_the_calls() -> None:
    residuals = RowResiduals(DIM)
    few = np.arange(200, dtype=np.uint64)
    for _ in range(50):
        put(residuals, few, few)
    small = residuals.nbytes
    many = np.arange(20_000, dtype=np.uint64)
    put(residuals, many, many)
    assert residuals.nbytes > small
    assert held(residuals, many[::-1].copy()) == many[::-1].tolist()
    assert small < 64 * 1024
    assert residuals.dropped == 0


def test_beyond_its_bytes_the_ids_that_were_named_longest_ago_are_dropped() -> None:
    residuals = RowResiduals(DIM, bytes_max=WAYS * (4 * DIM + 16))  # one set
    put(residuals, np.arange(WAYS, dtype=np.uint64), np.arange(WAYS) + 1.0)
    assert residuals.nbytes <= WAYS * (4 * DIM + 16)
    assert held(residuals, ids(0)) == [1.0]  # named again: not the oldest now
    assert held(residuals, ids(100)) == [0.0]
    assert residuals.dropped == 1
    found = held(residuals, ids(*range(2, WAYS), 0))
    assert sorted(found) == [1.0, *(float(i) for i in range(3, WAYS + 1))]


def test_ids_that_find_no_slot_are_encoded_without_feedback() -> None:
    residuals = RowResiduals(DIM, bytes_max=WAYS * (4 * DIM + 16))
    many = np.arange(3 * WAYS, dtype=np.uint64)
    put(residuals, many, many + 1.0)
    assert len(residuals) == WAYS
    assert held(residuals, many[:WAYS]) == (many[:WAYS] + 1.0).tolist()


def test_what_is_forgotten_is_kept_no_more() -> None:
    residuals = RowResiduals(DIM)
    put(residuals, ids(1, 2, 3), np.ones(3))
    residuals.forget(ids(2, 9, 2))
    assert len(residuals) == 2
    assert held(residuals, ids(1, 2, 3)) == [1.0, 0.0, 1.0]


def test_one_that_comes_back_from_a_checkpoint_is_the_same() -> None:
    random = np.random.default_rng(5)
    first, again = (RowResiduals(DIM, bytes_max=1 << 14) for _ in range(2))
    for number in range(20):
        wanted = np.unique(random.integers(0, 4000, 200)).astype(np.uint64)
        put(first, wanted, wanted)
        if number == 10:
            put(again, ids(1, 2), np.ones(2))
            again.unpack(first.packed())
        elif number > 10:
            put(again, wanted, wanted)
    assert (again.packed() == first.packed()).all()
    assert again.dropped == first.dropped > 0


def test_what_two_kept_is_added() -> None:
    first, second = RowResiduals(DIM), RowResiduals(DIM)
    put(first, ids(1, 2), np.array([1.0, 2.0]))
    put(second, ids(2, 3), np.array([10.0, 20.0]))
    first.add(second.packed())
    assert held(first, ids(1, 2, 3)) == [1.0, 12.0, 20.0]
    first.clear()
    assert (len(first), held(first, ids(1))) == (0, [0.0])


@pytest.mark.parametrize("cut", [0, 8, 40, -4])
def test_bytes_that_are_not_its_own_are_refused(cut: int) -> None:
    residuals = RowResiduals(DIM)
    put(residuals, ids(1, 2), np.ones(2))
    raw = residuals.packed()
    with pytest.raises(ValueError, match="bytes for"):
        residuals.unpack(raw[:cut])
    raw[:8].view(np.int64)[0] = 3
    with pytest.raises(ValueError, match="3 sets"):
        residuals.unpack(raw)
    assert held(residuals, ids(1, 2)) == [1.0, 1.0]


def test_two_that_are_told_the_same_keep_the_same() -> None:
    found = []
    for _ in range(2):
        residuals, random = RowResiduals(DIM, bytes_max=1 << 14), np.random.default_rng(3)
        for _ in range(20):
            wanted = np.unique(random.integers(0, 4000, 200)).astype(np.uint64)
            put(residuals, wanted, wanted)
        found.append((held(residuals, np.arange(300, dtype=np.uint64)), residuals.dropped))
    assert found[0] == found[1]
    assert found[0][1] > 0
