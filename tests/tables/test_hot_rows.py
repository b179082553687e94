"""The sketch of hot rows: what is named often is found, whatever else is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_server import hot_rows
from windlass_server.hot_rows import HELD, STRIDE, HotRows


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_one_id_of_each_stride_is_counted_whatever_sizes_calls_have(sizes: list[int]) -> None:
    hot = HotRows()
    for size in sizes:
        hot.see(np.arange(size, dtype=np.uint64))
    assert abs(hot.sampled - sum(sizes) / STRIDE) < 1
    assert hot._counts.sum() == hot.sampled


def test_ids_that_are_in_every_call_are_found_among_many_that_are_in_one() -> None:
    hot, random = HotRows(), np.random.default_rng(0)
    often = np.arange(5, dtype=np.uint64)
    for _ in range(100_000):
        rare = random.integers(1 << 20, 1 << 60, 45).astype(np.uint64)
        hot.see(random.permutation(np.concatenate([often, rare])))
    ids, calls = hot.hottest(5)
    assert sorted(ids.tolist()) == often.tolist()
    assert (calls >= 100_000 * 0.7).all()
    assert (calls <= 100_000 * 1.3 + 50 * 100_000 / HELD).all(), "a count is too high by the lowest one at most"


def test_what_was_hot_fades(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hot_rows, "_HALVED_AFTER", 20)
    hot = HotRows()
    for _ in range(10 * STRIDE):
        hot.see(np.array([1], np.uint64))
    for _ in range(100 * STRIDE):
        hot.see(np.array([2], np.uint64))
    assert hot.hottest(10)[0].tolist() == [2]
    assert hot.sampled < 40
