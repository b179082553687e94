"""Samplers: an epoch's rows are a function of the arguments and the epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_proto.errors import UsageError

data = wl.data
untyped: Any = data


def batches(last_batch: Any, epochs: int, *, rows: int = 10, size: int = 4, sampler: Any = None) -> list[Any]:
    made = data.BatchSampler(sampler or data.SequentialSampler(rows), size, last_batch)
    return [[batch.tolist() for batch in made.batches(epoch)] for epoch in range(epochs)]


def test_a_random_epoch_holds_every_row_once_and_is_its_numbers() -> None:
    sampler = data.RandomSampler(50, seed=3)
    epochs = [sampler.rows(epoch).tolist() for epoch in range(3)]
    assert all(sorted(rows) == list(range(50)) for rows in epochs)
    assert len({tuple(rows) for rows in epochs}) == 3
    assert data.RandomSampler(50, seed=3).rows(2).tolist() == epochs[2]
    assert data.RandomSampler(50, seed=4).rows(2).tolist() != epochs[2]
    assert data.SequentialSampler(4).rows(9).tolist() == [0, 1, 2, 3]


def test_the_last_rows_are_kept_or_left_out() -> None:
    assert batches("keep", 1) == [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]]
    assert batches("discard", 1) == [[[0, 1, 2, 3], [4, 5, 6, 7]]]


def test_rows_left_over_begin_the_next_epoch() -> None:
    assert batches("rollover", 3) == [
        [[0, 1, 2, 3], [4, 5, 6, 7]],
        [[8, 9, 0, 1], [2, 3, 4, 5], [6, 7, 8, 9]],
        [[0, 1, 2, 3], [4, 5, 6, 7]],
    ]
    assert batches("rollover", 4, rows=3, size=8) == [[], [], [[0, 1, 2, 0, 1, 2, 0, 1]], []]


@pytest.mark.parametrize(("rows", "size"), [(10, 4), (7, 5), (3, 8), (1, 3)])
def test_rolling_over_reads_the_epochs_rows_one_after_the_other(rows: int, size: int) -> None:
    sampler = data.RandomSampler(rows, seed=1)
    flat = [row for epoch in batches("rollover", 9, size=size, sampler=sampler) for batch in epoch for row in batch]
    whole = np.concatenate([sampler.rows(epoch) for epoch in range(9)])
    assert flat == whole[: 9 * rows // size * size].tolist()


def test_shares_of_ranks_cover_an_order_and_are_equally_long() -> None:
    order = data.RandomSampler(11, seed=5)
    shares = [data.SplitSampler(order, rank, 4) for rank in range(4)]
    assert {len(share) for share in shares} == {3}
    counted = Counter(row for share in shares for row in share.rows(2).tolist())
    assert sorted(counted.values()) == [1] * 10 + [2]
    exact = [data.SplitSampler(order, rank, 4, even=False).rows(2).tolist() for rank in range(4)]
    assert [len(share) for share in exact] == [3, 3, 3, 2]
    assert sorted(row for share in exact for row in share) == list(range(11))
    assert data.SplitSampler(6, 1, 2).rows(0).tolist() == [1, 3, 5]


def test_weights_decide_how_often_a_row_comes() -> None:
    drawn = data.WeightedSampler([0.0, 1.0, 3.0], 4000, seed=2).rows(0)
    assert np.bincount(drawn, minlength=3)[0] == 0
    assert np.bincount(drawn)[2] / 4000 == pytest.approx(0.75, abs=0.03)
    once = data.WeightedSampler([1.0, 0.0, 5.0, 2.0], 3, replacement=False)
    assert sorted(once.rows(1).tolist()) == [0, 2, 3]
    assert once.rows(1).tolist() == once.rows(1).tolist()


def test_a_filter_keeps_rows_by_their_sample() -> None:
    sampler = data.FilterSampler(lambda sample: sample > 6, np.arange(10))
    assert sampler.rows(0).tolist() == [7, 8, 9]
    assert len(sampler) == 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: data.RandomSampler(-1), "length=-1"),
        (lambda: data.BatchSampler(data.SequentialSampler(4), 0), "batch_size=0"),
        (lambda: untyped.BatchSampler(data.SequentialSampler(4), 2, "disgard"), "Did you mean discard"),
        (lambda: data.SplitSampler(4, 4, 4), "rank=4, ranks=4"),
        (lambda: data.WeightedSampler([0.0, 0.0]), "not all 0"),
        (lambda: data.WeightedSampler([1.0, -1.0]), "from 0"),
        (lambda: data.WeightedSampler([1.0, 0.0], 2, replacement=False), "count=2, with_weight=1"),
    ],
)
def test_a_wrong_argument_is_refused_in_words(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()
