"""Ids in plan order, rows moved by it, and ids made of other things."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import windlass as wl
from windlass_proto import ids, keys, row_moves, table_specs
from windlass_proto.errors import UsageError

ID_LISTS = st.lists(st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1)), max_size=200)


@settings(max_examples=100, deadline=None)
@given(given_ids=ID_LISTS, vshards=st.sampled_from([1, 2, 16, 256]), seed=st.integers(0, 2**64 - 1))
def test_plan_order_has_each_id_once_vshard_after_vshard(given_ids: list[int], vshards: int, seed: int) -> None:
    asked = np.array(given_ids, np.uint64)
    plan = ids.plan(asked, seed, vshards)
    assert np.array_equal(plan.ids[plan.inverse()], asked)
    expected = sorted(
        dict.fromkeys(given_ids), key=lambda i: keys.vshard_of(keys.mix64(i ^ seed), vshards)
    )  # by vshard, and within one by first appearance
    assert plan.ids.tolist() == expected
    assert np.array_equal(plan.ids[plan.places], asked[plan.order])
    assert sorted(plan.order) == list(range(asked.size))
    homes = [keys.vshard_of(keys.mix64(i ^ seed), vshards) for i in expected]
    assert [plan.begins[v + 1] - plan.begins[v] for v in range(vshards)] == [homes.count(v) for v in range(vshards)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_one_id_are_summed_in_the_order_given(dtype: str) -> None:
    asked = np.array([5, 9, 5, 5], np.uint64)
    grads = np.array([[1e8, 1], [2, 3], [1, 10], [-1e8, 100]], dtype)
    plan = ids.plan(asked, 7, 16)
    ends, moved = np.array([1, 2]), np.array([2, -2])  # the two places lie the other way round
    out = np.empty(4, dtype)
    moves = row_moves.moves(dtype)
    moves.gather_sums(grads.reshape(-1), plan.order, plan.places, ends, moved, 2, out)
    kind = np.dtype(dtype).type
    expected = (kind(1e8) + kind(1)) + kind(-1e8)
    assert out.reshape(2, 2)[1 - plan.inverse()[0]].tolist() == [expected, 111.0]
    back = np.empty(8, dtype)
    moves.scatter_rows(out, plan.order, plan.places, ends, moved, 2, back)
    assert back.reshape(4, 2)[1].tolist() == [2.0, 3.0]


@settings(max_examples=60, deadline=None)
@given(
    given_ids=st.lists(st.integers(0, 40), max_size=120),
    dim=st.sampled_from([1, 2, 7, 8, 16, 33]),
    dtype=st.sampled_from(["float32", "float64"]),
    held=st.sampled_from([1, 3, 200]),
)
def test_rows_of_any_width_find_their_place_and_come_back(
    given_ids: list[int], dim: int, dtype: str, held: int
) -> None:
    asked = np.array(given_ids, np.uint64)
    plan = ids.plan(asked, 3, 16)
    ends = np.append(np.arange(held, plan.ids.size, held), plan.ids.size)  # runs of so many places, apart by 5 elements
    moved = 5 * np.arange(ends.size)
    grads = np.arange(asked.size * dim, dtype=dtype).reshape(-1, dim)
    out = np.full(plan.ids.size * dim + 5 * ends.size, -1, dtype)
    row_moves.moves(dtype).gather_sums(grads.reshape(-1), plan.order, plan.places, ends, moved, dim, out)
    oracle = np.zeros((plan.ids.size, dim), dtype)
    np.add.at(oracle, plan.inverse(), grads)
    begins = np.arange(plan.ids.size) * dim + 5 * (np.arange(plan.ids.size) // held)
    assert np.array_equal(out[begins[:, None] + np.arange(dim)], oracle)
    assert np.count_nonzero(out == -1) == 5 * ends.size  # nothing beside the rows was written
    back = np.full((asked.size, dim), -1, dtype)
    row_moves.moves(dtype).scatter_rows(out, plan.order, plan.places, ends, moved, dim, back.reshape(-1))
    assert np.array_equal(back, oracle[plan.inverse()])


@settings(max_examples=60, deadline=None)
@given(given_ids=st.lists(st.integers(0, 40), max_size=120), weight=st.sampled_from([1.0, 0.5]))
def test_sums_of_several_calls_are_weighted_and_in_order(given_ids: list[int], weight: float) -> None:
    asked = np.array(given_ids, np.uint64)
    plan = ids.plan(asked, 0, 16)
    grads = np.arange(asked.size * 3, dtype=np.float32).reshape(-1, 3)
    total, seen = np.empty((plan.ids.size, 3), np.float32), np.zeros(plan.ids.size, np.uint8)
    begins = np.arange(plan.ids.size) * 3
    sum_rows = row_moves.moves("float32").sum_rows
    for half in (slice(0, asked.size // 2), slice(asked.size // 2, None)):
        part = grads[half].reshape(-1)
        sum_rows(part, plan.inverse()[half], begins, 3, weight, total.reshape(-1), seen)
    oracle = np.zeros((plan.ids.size, 3), np.float32)
    np.add.at(oracle, plan.inverse(), weight * grads)
    assert np.array_equal(total, oracle)


@given(begin=st.integers(0, 255), size=st.integers(1, 256), vshards=st.sampled_from([1, 2, 4, 256]))
def test_bands_cut_a_servers_run_at_the_parts_of_the_key_space(begin: int, size: int, vshards: int) -> None:
    owned = range(min(begin, vshards - 1), min(min(begin, vshards - 1) + size, vshards))
    found = table_specs.bands(owned, vshards)
    assert [v for band in found for v in band] == list(owned)
    assert len(found) <= 4
    assert all(band[0] * 4 // max(vshards, 4) == band[-1] * 4 // max(vshards, 4) for band in found)


def test_hashed_ids_are_equal_on_every_machine() -> None:
    assert wl.hash64([-1, 7]).tolist() == [keys.mix64(-1), keys.mix64(7)]
    assert wl.hash64(np.array([[0, 2**64 - 1]], np.uint64)).tolist() == [[0, keys.mix64(2**64 - 1)]]
    assert wl.hash64(np.array([-1], np.int8)).tolist() == [keys.mix64(-1)]
    assert wl.hash64("user").item() == 0x99E389D25C10AF32
    assert wl.hash64([b"user", b"user\0"]).tolist()[0] == wl.hash64("user").item()
    assert wl.hash64([b"user", b"user\0"]).tolist()[1] != wl.hash64("user").item()
    with pytest.raises(UsageError, match="float"):
        wl.hash64(np.array([1.5], object))
