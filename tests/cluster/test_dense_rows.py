"""Rows of dense tensors: what is pushed counts as the whole gradient would, and nothing else travels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.optim import SGD, Adagrad, Adam
from windlass.store import Store
from windlass_proto import limits
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]

ROWS, WIDTH = 700, 613  # over several blocks, whose borders cut rows
assert ROWS * WIDTH > 3 * limits.BLOCK_ELEMENTS_MIN
assert limits.BLOCK_ELEMENTS_MIN % WIDTH
FIRST: dict[str, np.ndarray] = {
    "a": np.ones(17, np.float32),
    "emb": np.random.default_rng(9).normal(size=(ROWS, WIDTH)).astype(np.float32),
    "wide": np.zeros((3, 2, limits.BLOCK_ELEMENTS_MIN), np.float64),  # a row is longer than a block
}


def rows_of(random: np.random.Generator, name: str, count: int) -> wl.Rows:
    shape, dtype = FIRST[name].shape, FIRST[name].dtype
    return wl.Rows(random.integers(0, shape[0], count), random.normal(size=(count, *shape[1:])).astype(dtype))


def as_dense(name: str, rows: wl.Rows) -> np.ndarray:
    whole = np.zeros_like(FIRST[name])
    for i, value in zip(rows.ids, rows.values, strict=True):
        whole[i] += value
    return whole


@pytest.mark.parametrize("link", ["shm", "tcp"])
@pytest.mark.parametrize("mode", ["bsp", "asp"])
def test_rows_count_as_the_dense_gradient_that_is_0_elsewhere(
    team: MakeTeam, mode: str, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_LINK", link)
    group = team(2 if mode == "bsp" else 1)
    by_rows = group.stores(FIRST, Adam(lr=0.1), mode, "rows")
    whole = group.stores(FIRST, Adam(lr=0.1), mode, "whole")

    def train(_: object, rank: int) -> list[Any]:
        random, found = np.random.default_rng(rank), []
        for step in range(4):
            rows = {"emb": rows_of(random, "emb", 40), "wide": rows_of(random, "wide", step % 3)}
            dense = {name: as_dense(name, value) for name, value in rows.items()}
            given = dense if (rank, step) == (1, 2) else rows  # others may push the whole tensor
            mine = by_rows[rank].update(given | {"a": np.ones(17, np.float32)}, weight=1.0 + rank)
            other = whole[rank].update(dense | {"a": np.ones(17, np.float32)}, weight=1.0 + rank)
            for name, (ids, _) in rows.items():
                found.append((mine[name] if given is rows else mine[name][ids], other[name][ids]))
        return found

    for rank in group.each(train):
        assert all(np.array_equal(mine, other) for mine, other in rank)
    for name, array in by_rows[0].pull().result().items():
        assert np.array_equal(array, whole[0].pull().result()[name]), name


def test_rows_are_pulled_in_the_order_and_shape_asked(team: MakeTeam) -> None:
    (store,) = team(1).stores(FIRST)
    ids = np.array([[699, 0, 213], [427, 213, 699]], np.int16)
    out = np.zeros((2, 3, WIDTH), np.float32)
    found = store.pull({"emb": ids, "a": None, "wide": [2]}, out={"a": FIRST["a"].copy(), "emb": out}).result()
    assert found["emb"] is out
    assert np.array_equal(out, FIRST["emb"][ids])
    assert found["wide"].shape == (1, 2, limits.BLOCK_ELEMENTS_MIN)
    assert store.pull({"emb": np.zeros((0, 2), int)}).result()["emb"].shape == (0, 2, WIDTH)
    assert np.array_equal(store.pull({"a": [16, 3]}).result()["a"], [1.0, 1.0]), "a vector's rows are its values"


def test_only_the_rows_travel(team: MakeTeam, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_LINK", "tcp")
    group = team(1)
    (store,) = group.stores(FIRST, SGD(lr=1.0), "asp")
    links = group[0]._member.pump.links.values()

    def moved() -> tuple[int, int]:
        return sum(link.writer.bytes_written for link in links), sum(link.reader.bytes_read for link in links)

    before = moved()
    store.push({"emb": wl.Rows(np.arange(0, 700, 70), np.ones((10, WIDTH), np.float32))}).result()
    after_push = moved()
    store.pull({"emb": np.arange(0, 700, 70)}).result()
    after_pull = moved()
    payload, few = 10 * WIDTH * 4, 4096
    assert payload < after_push[0] - before[0] < payload + few
    assert after_push[1] - before[1] < few
    assert after_pull[0] - after_push[0] < few
    assert payload < after_pull[1] - after_push[1] < payload + few


def test_a_mean_counts_who_pushed_no_row_of_a_block(team: MakeTeam) -> None:
    group = team()
    stores = group.stores(FIRST, SGD(lr=1.0))

    def step(_: object, rank: int) -> np.ndarray:
        rows = [wl.Rows([0], np.ones((1, WIDTH), np.float32)), wl.Rows([], np.zeros((0, WIDTH), np.float32))][rank]
        stores[rank].push({"emb": rows}, weight=[1.0, 3.0][rank])
        found: np.ndarray = stores[rank].pull({"emb": [0]}).result()["emb"]
        return found

    for found in group.each(step):
        assert np.array_equal(found[0], FIRST["emb"][0] - np.float32(0.25))


def test_wrong_rows_raise_in_the_call(team: MakeTeam) -> None:
    (store,) = team(1).stores(FIRST | {"scalar": np.zeros(())}, Adagrad())
    row = np.ones((1, WIDTH), np.float32)
    for ids, said in (([-1], "negative"), ([700], r"row=700.*rows=700"), ([0.5], "not integers")):
        with pytest.raises(UsageError, match=said):
            store.pull({"emb": ids})
        with pytest.raises(UsageError, match=said):
            store.push({"emb": wl.Rows(ids, row)})
    for values, said in ((row[:, 1:], "another shape"), (row.astype(float), "another dtype"), (row * np.inf, "finite")):
        with pytest.raises(UsageError, match=said):
            store.push({"emb": wl.Rows([1], values)})
    with pytest.raises(UsageError, match="without axes"):
        store.pull({"scalar": [0]})
    assert store.clock == 0


@pytest.mark.parametrize("dim", [1, 3])
def test_rows_of_a_table_whose_bytes_fill_no_line_travel_over_tcp(
    team: MakeTeam, dim: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_LINK", "tcp")

    def declare(worker: wl.Cluster, _: int) -> Store:
        store = worker.store("model", consistency="asp")
        store.table("user", dim, SGD(lr=1.0), init=wl.init.Zeros())
        return store

    (store,) = team(1).each(declare)
    ids = np.arange(101)
    found = store.update({"user": wl.Rows(ids, np.ones((101, dim), np.float32))})
    assert (found["user"] == -1.0).all()
