"""Data sets and their views: which rows they show, what is done to them, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_proto.errors import UsageError
from windlass_worker.data.draws import Draw

data = wl.data
X = np.arange(40, dtype=np.float32).reshape(10, 4)
Y = np.arange(10)


def rows_of(dataset: Any) -> list[int]:
    """The label of each sample."""
    return [int(dataset[index][1]) for index in range(len(dataset))]


def test_an_array_gives_rows_and_several_give_tuples() -> None:
    assert np.array_equal(data.ArrayDataset(X)[3], X[3])
    both = data.ArrayDataset(X, Y)
    x, y = both[-1]
    assert np.array_equal(x, X[9])
    assert y == 9
    with pytest.raises(IndexError, match="row 10 of a data set of 10 rows"):
        both[10]
    assert len(list(both)) == 10, "it ends as a sequence does"


@pytest.mark.parametrize(
    ("view", "rows"),
    [
        (lambda d: d.take(3), [0, 1, 2]),
        (lambda d: d.take(30), list(range(10))),
        (lambda d: d.shard(1, 3), [1, 4, 7]),
        (lambda d: d.filter(lambda s: s[1] % 2 == 0), [0, 2, 4, 6, 8]),
        (lambda d: d.filter(lambda s: s[1] > 2).shard(1, 2).take(2), [4, 6]),
    ],
    ids=["take", "take all", "shard", "filter", "of views"],
)
def test_a_view_shows_its_rows_and_knows_where_they_came_from(view: Callable[[Any], Any], rows: list[int]) -> None:
    shown = view(data.ArrayDataset(X, Y))
    assert rows_of(shown) == rows
    assert [shown.row(index) for index in range(len(shown))] == rows
    gathered, labels = shown.gather(np.arange(len(shown))[::-1], np.empty)
    assert labels.tolist() == rows[::-1]
    assert np.array_equal(gathered, X[rows[::-1]])


def test_shards_cover_the_rows_once_and_differ_by_one_at_most() -> None:
    shards = [rows_of(data.ArrayDataset(X, Y).shard(rank, 4)) for rank in range(4)]
    assert sorted(row for shard in shards for row in shard) == list(range(10))
    assert {len(shard) for shard in shards} == {2, 3}


def test_a_transform_is_applied_when_a_sample_is_asked_for() -> None:
    asked: list[float] = []

    def double(x: Any) -> Any:
        asked.append(float(x[0]))
        return 2 * x

    shown = data.ArrayDataset(X, Y).transform_first(double)
    assert not asked
    x, y = shown[2]
    assert np.array_equal(x, 2 * X[2])
    assert y == 2
    assert asked == [8.0]
    assert shown.gather(np.array([1]), np.empty) is None
    assert data.ArrayDataset(X, Y).transform(lambda x, y: x[0] + y)[3] == 15.0
    assert data.ArrayDataset(Y).transform(lambda y: y + 1)[3] == 4


def test_what_is_drawn_for_a_row_does_not_depend_on_the_view_or_on_other_rows() -> None:
    drawn = data.ArrayDataset(Y).transform(data.transforms.Random(lambda y, rng: (y, rng.random())))
    whole = [drawn.sample(index, Draw(7, 1, drawn.row(index))) for index in range(10)]
    shard = drawn.shard(2, 3)
    assert [shard.sample(index, Draw(7, 1, shard.row(index))) for index in range(len(shard))] == whole[2::3]
    assert len({value for _, value in whole}) == 10
    others = [drawn.sample(4, Draw(seed, epoch, 4)) for seed, epoch in ((7, 1), (7, 2), (8, 1))]
    assert others[0] == whole[4]
    assert len(set(others)) == 3
    assert drawn[4] == drawn[4] == drawn.sample(4, Draw(0, 0, 4))


def test_transforms_of_one_sample_draw_one_after_the_other() -> None:
    take_one = data.transforms.Random(lambda x, rng: (*np.atleast_1d(x), rng.random()))
    layers = data.ArrayDataset(Y).transform(take_one).transform(lambda _, a: a)
    twice = (
        data.ArrayDataset(Y).transform(take_one).transform(data.transforms.Random(lambda _, a, rng: (a, rng.random())))
    )
    first, second = twice[5]
    assert first == layers[5]
    assert first != second


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (data.ArrayDataset, "one length"),
        (lambda: data.ArrayDataset(X, Y[:3]), r"lengths=\[10, 3\]"),
        (lambda: data.ArrayDataset(X).shard(2, 2), "rank=2, ranks=2"),
        (lambda: data.ArrayDataset(X).take(-1), "count=-1"),
        (lambda: data.ArrayDataset(X).transform(3), "something to call"),
    ],
)
def test_a_wrong_argument_is_refused_in_words(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()
