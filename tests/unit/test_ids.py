"""Ids in plan order, rows moved by it, and ids made of other things."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import windlass as wl
from windlass_proto import ids, keys, table_specs
from windlass_proto.errors import UsageError

ID_LISTS = st.lists(st.one_of(st.integers(0, 20), st.integers(0, 2**64 - 1)), max_size=200)


@settings(max_examples=100, deadline=None)
@given(given_ids=ID_LISTS, vshards=st.sampled_from([1, 2, 16, 256]), seed=st.integers(0, 2**64 - 1))
def test_plan_order_has_each_id_once_vshard_after_vshard(given_ids: list[int], vshards: int, seed: int) -> None:
    asked = np.array(given_ids, np.uint64)
    plan = ids.plan(asked, seed, vshards)
    assert np.array_equal(plan.ids[plan.inverse], asked)
    expected = sorted(
        dict.fromkeys(given_ids), key=lambda i: keys.vshard_of(keys.mix64(i ^ seed), vshards)
    )  # by vshard, and within one by first appearance
    assert plan.ids.tolist() == expected
    homes = [keys.vshard_of(keys.mix64(i ^ seed), vshards) for i in expected]
    assert [plan.begins[v + 1] - plan.begins[v] for v in range(vshards)] == [homes.count(v) for v in range(vshards)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_of_one_id_are_summed_in_the_order_given(dtype: str) -> None:
    asked = np.array([5, 9, 5, 5], np.uint64)
    grads = np.array([[1e8, 1], [2, 3], [1, 10], [-1e8, 100]], dtype)
    plan = ids.plan(asked, 7, 16)
    out, seen = np.empty((2, 2), dtype).reshape(-1), np.zeros(2, np.uint8)
    begins = np.array([2, 0])
    ids.moves(dtype).sum_rows(grads.reshape(-1), plan.inverse, begins, 2, 1.0, out, seen)
    kind = np.dtype(dtype).type
    expected = (kind(1e8) + kind(1)) + kind(-1e8)
    assert out.reshape(2, 2)[1 - plan.inverse[0]].tolist() == [expected, 111.0]
    back = np.empty(8, dtype)
    ids.moves(dtype).take_rows(out, plan.inverse, begins, 2, back)
    assert back.reshape(4, 2)[1].tolist() == [2.0, 3.0]


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
