"""Rows of half types: tables of them, and rows of half tensors; halves on the wire, float32 masters on the servers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from tests.cluster.test_mixed_precision import rounded, widened
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD, Adagrad
from windlass.sparse_table import Table
from windlass_proto import limits
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]
DIM = 5
ROWS, WIDTH = 700, 613  # over several blocks, whose borders cut rows
assert ROWS * WIDTH > 3 * limits.BLOCK_ELEMENTS_MIN


def tables(team: Team, dtype: str, mode: str = "bsp", **options: Any) -> list[Table]:
    def declare(worker: wl.Cluster, _: int) -> Table:
        given: dict[str, Any] = {"optimizer": SGD(lr=1.0), "init": wl.init.Zeros(), "dtype": dtype}
        return worker.store("model", consistency=mode).table("user", DIM, **(given | options))

    return team.each(declare)


@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_updates_of_rows_add_up_in_float32_masters(
    dtype: str, link: str, team: MakeTeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_LINK", link)
    pair = team()
    both = tables(pair, dtype)
    ids = np.array([[3, 8], [2**63, 3]], np.uint64)
    first = rounded(dtype, np.ones((2, 2, DIM)))
    small = rounded(dtype, np.full((2, 2, DIM), 2.0**-13))  # below half a last bit of 1
    master = {3: -2.0, 8: -1.0, 2**63: -1.0}

    def train(_: object, rank: int) -> np.ndarray:
        found: np.ndarray = both[rank].push_pull(ids, first).result()
        for _step in range(8):
            found = both[rank].push_pull(ids, small).result()
        return found

    for found in pair.each(train):
        assert found.dtype == first.dtype
        assert found.shape == first.shape
        expected = [[master[int(i)] - 8 * 2.0**-13 * (2 if i == 3 else 1) for i in line] for line in ids]
        assert np.array_equal(widened(dtype, found)[..., 0], widened(dtype, rounded(dtype, expected)))
    out = np.zeros((3, DIM), first.dtype)
    both[0]._store.pull({"user": [8, 8, 1]}, out={"user": out}).result()
    assert np.array_equal(widened(dtype, out)[:, 0], widened(dtype, rounded(dtype, [-1 - 2.0**-10] * 2 + [0])))
    assert {run.dtype.name for _, run in both[0].items()} == {first.dtype.name}
    assert len(both[0]) == 3
    assert both[0]._store.specs()["user"]["dtype"] == dtype


def test_gradients_of_one_id_are_summed_before_they_are_rounded(team: MakeTeam) -> None:
    (table,) = tables(team(1), "float16")
    grads = np.full((4096, DIM), 1.0, np.float16)  # as float16 the sum would stand still at 2,048
    assert table.push_pull(np.zeros(4096, int), grads).result()[0, 0] == -4096.0


def test_rows_of_the_wrong_type_raise_in_the_call(team: MakeTeam) -> None:
    (table,) = tables(team(1), "float16")
    with pytest.raises(UsageError, match="another dtype"):
        table.push([1], np.ones((1, DIM), np.float32))
    with pytest.raises(UsageError, match=r"not finite.*rows=1"):
        table.push([1], np.full((1, DIM), np.inf, np.float16))
    assert len(table) == 0


def test_masters_of_rows_are_in_a_checkpoint(local: LocalCluster, token: None, job: str, tmp_path: Path) -> None:
    def step(table: Table, n: int) -> np.ndarray:
        grads = rounded("bfloat16", np.random.default_rng(n).normal(size=(50, DIM)))
        found: np.ndarray = table.push_pull(np.arange(50), grads).result()
        return found

    with Team(local, f"{job}-a", workers=1) as alone:
        (table,) = tables(alone, "bfloat16", optimizer=Adagrad(lr=0.01))
        step(table, 1)
        table._store.checkpoint(tmp_path).result()
        undisturbed = [step(table, n) for n in (2, 3, 4)]
    with Team(local, f"{job}-b", workers=1) as alone:
        (table,) = tables(alone, "bfloat16", optimizer=Adagrad(lr=0.01))
        assert table._store.resume(tmp_path) == wl.Resume(1, 0, {})
        resumed = [step(table, n) for n in (2, 3, 4)]
    assert all(np.array_equal(a, b) for a, b in zip(undisturbed, resumed, strict=True))


@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rows_of_a_half_tensor_count_as_the_dense_gradient_that_is_0_elsewhere(
    dtype: str, link: str, team: MakeTeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_LINK", link)
    group = team()
    first = {"emb": rounded(dtype, np.random.default_rng(9).normal(size=(ROWS, WIDTH)))}
    by_rows = group.stores(first, Adagrad(lr=0.1), name="rows", dtype=dtype)
    whole = group.stores(first, Adagrad(lr=0.1), name="whole", dtype=dtype)

    def train(_: object, rank: int) -> list[Any]:
        random, found = np.random.default_rng(rank), []
        for step in range(3):
            ids = random.permutation(ROWS)[:40]
            values = rounded(dtype, random.normal(size=(40, WIDTH)))
            dense = np.zeros_like(first["emb"])
            dense[ids] = values
            given = dense if (rank, step) == (1, 1) else wl.Rows(ids, values)  # others may push the whole tensor
            mine = by_rows[rank].update({"emb": given})["emb"]
            other = whole[rank].update({"emb": dense})["emb"]
            found.append((mine, other if given is dense else other[ids]))
        return found

    for rank in group.each(train):
        assert all(np.array_equal(mine, other) for mine, other in rank)
    ids = np.array([[699, 0, 213], [427, 213, 699]])
    held = by_rows[0].pull().result()["emb"]
    assert held.dtype == first["emb"].dtype
    assert np.array_equal(by_rows[0].pull({"emb": ids}).result()["emb"], held[ids])
    out = np.zeros((1, WIDTH), held.dtype)
    by_rows[0].pull({"emb": [428]}, out={"emb": out}).result()
    assert np.array_equal(out[0], held[428])


@pytest.mark.parametrize("policy", ["reject", "zero"])
def test_a_policy_holds_for_rows_of_tensors_too(policy: str, team: MakeTeam) -> None:
    (store,) = team(1).stores({"h": np.zeros((4, 3), np.float16)}, SGD(lr=1.0), nonfinite=policy)
    grads = np.array([[1, np.nan, np.inf], [1, 1, 1]], np.float16)
    if policy == "reject":
        with pytest.raises(UsageError, match=r"not finite.*rows=2"):
            store.push({"h": wl.Rows([2, 3], grads)})
        return
    assert store.update({"h": wl.Rows([2, 3], grads)})["h"].tolist() == [[-1, 0, 0], [-1, -1, -1]]
    assert store.replaced == {"h": 2}
