"""Calls that name tensors and rows of tables together: one ticket, one step, one round trip to each server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.optim import SGD, Adam
from windlass.sparse_table import Table
from windlass.store import Store
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]
FIRST: dict[str, np.ndarray] = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2)}


def declared(team: Team, mode: str = "bsp", rule: Any = None, name: str = "model") -> list[Store]:
    """A store with the tensors "w" and "b" and the tables "user" and "item" on every worker; rows begin at 0."""

    def declare(worker: wl.Cluster, _: int) -> Store:
        store = worker.store(name, consistency=mode)
        given = SGD(lr=1.0) if rule is None else rule
        store.init(FIRST, given)
        store.table("user", 4, given, init=wl.init.Zeros())
        store.table("item", 2, given, init=wl.init.Zeros(), dtype=np.float64)
        return store

    return team.each(declare)


def gradients(random: np.random.Generator) -> dict[str, Any]:
    ids, others = random.integers(0, 40, (3, 5)), random.integers(0, 40, 7)
    return {
        "user": wl.Rows(ids, random.normal(size=(3, 5, 4)).astype(np.float32)),
        "w": random.normal(size=(2, 3)).astype(np.float32),
        "item": wl.Rows(others, random.normal(size=(7, 2))),
        "b": random.normal(size=2),
    }


def everything(store: Store) -> list[bytes]:
    wanted = {"w": None, "b": None, "user": np.arange(40), "item": np.arange(40)}
    return [array.tobytes() for array in store.pull(wanted).result().values()]


def tables(store: Store) -> tuple[Table, Table]:
    return store.exchange.table("user"), store.exchange.table("item")


@pytest.mark.parametrize("mode", ["bsp", "ssp:1", "asp"])
def test_a_mixture_does_what_its_parts_do_in_one_step(team: MakeTeam, mode: str) -> None:
    group = team(2 if mode == "bsp" else 1)
    apart = declared(group, mode, Adam(lr=0.1), "apart")
    together = declared(group, mode, Adam(lr=0.1), "together")

    def train(_: object, rank: int) -> None:
        random = np.random.default_rng(rank)
        user, item = tables(apart[rank])
        for _ in range(5):
            grads = gradients(random)
            with apart[rank].step():
                apart[rank].push({"w": grads["w"], "b": grads["b"]}, weight=1.0 + rank)
                user.push(*grads["user"], weight=1.0 + rank)
                item.push(*grads["item"], weight=1.0 + rank)
            apart[rank].pull("w").result()
            together[rank].update(grads, weight=1.0 + rank)

    group.each(train)
    assert [store.clock for store in (*apart, *together)] == [5] * (2 * len(apart))
    assert everything(apart[0]) == everything(together[-1])


def test_results_are_by_name_in_the_order_of_the_call(team: MakeTeam) -> None:
    (store,) = declared(team(1))
    ids = np.array([[5, 3], [5, 9]])
    ones = np.ones((2, 2, 4), np.float32)
    found = store.push_pull({"user": wl.Rows(ids, ones), "w": np.ones((2, 3), np.float32)}).result()
    assert list(found) == ["user", "w"]
    assert found["user"][..., 0].tolist() == [[-2.0, -1.0], [-2.0, -1.0]]
    assert np.array_equal(found["w"], FIRST["w"] - 1)
    found = store.pull({"b": None, "user": [9, 1], "item": np.zeros((0, 3), int)}).result()
    assert list(found) == ["b", "user", "item"]
    assert found["user"][:, 0].tolist() == [-1.0, 0.0]
    assert found["item"].shape == (0, 3, 2)


def test_out_is_written_for_tensors_and_for_what_rows_it_names(team: MakeTeam) -> None:
    (store,) = declared(team(1))
    params = {name: array.copy() for name, array in FIRST.items()}
    rows = np.full((6, 4), np.nan, np.float32)[::2]  # not contiguous
    grads = {"w": np.ones((2, 3), np.float32), "b": np.ones(2), "user": wl.Rows([1, 2, 1], np.ones((3, 4), np.float32))}
    found = store.update(grads, out=params)
    assert found["w"] is params["w"]
    assert params["b"].tolist() == [-1.0, -1.0]
    assert found["user"][:, 0].tolist() == [-2.0, -1.0, -2.0]
    found = store.pull({"w": None, "user": [2, 1, 0]}, out={"w": params["w"], "user": rows}).result()
    assert found["user"] is rows
    assert rows[:, 3].tolist() == [-1.0, -2.0, 0.0]


def test_a_mixture_makes_one_round_trip_to_each_server(team: MakeTeam) -> None:
    group = team(1)
    (store,) = declared(group, "asp")
    links = group[0]._member.pump.links
    grads = gradients(np.random.default_rng(0))
    calls: tuple[Callable[[], Any], ...] = (
        lambda: store.pull({"w": None, "b": None, "user": np.arange(100), "item": np.arange(100)}).result(),
        lambda: store.update(grads),
    )
    for call in calls:
        call()  # shared memory is attached by frames of its own
        before = [link.writer.frames_written for link in links.values()]
        call()
        assert [link.writer.frames_written for link in links.values()] == [count + 1 for count in before]


def test_a_wrong_part_leaves_nothing_done(team: MakeTeam) -> None:
    (store,) = declared(team(1))
    good = gradients(np.random.default_rng(0))
    rows = np.ones((1, 4), np.float32)
    for grads, said in (
        ({"user": wl.Rows([-1], rows)}, "negative"),
        ({"user": wl.Rows([1.5], rows)}, "not integers"),
        ({"user": wl.Rows([1, 2], rows)}, "another shape"),
        ({"user": np.ones((1, 4), np.float32)}, r"named like a whole tensor.*Rows"),
        ({"usr": wl.Rows([1], rows)}, "Use 'user'"),
        ({"w": np.ones(3, np.float32)}, "another shape"),
    ):
        with pytest.raises(UsageError, match=said):
            store.update(good | grads)
    with pytest.raises(UsageError, match="other names"):
        store.update(good, out={"w": FIRST["w"].copy()})
    for names, said in (({"user": None}, "named like a whole tensor"), ({"w": None, "itm": [1]}, "Use 'item'")):
        with pytest.raises(UsageError, match=said):
            store.pull(names)
    with pytest.raises(UsageError, match="lacks tensors"):
        store.pull({"w": None, "user": [1]}, out={"user": rows})
    with pytest.raises(UsageError, match="another shape"):
        store.pull({"user": [1, 2]}, out={"user": rows})
    assert store.clock == 0
    assert everything(store)[0] == FIRST["w"].tobytes()
    assert [len(table) for table in tables(store)] == [0, 0]


def test_tensors_and_tables_share_their_names(team: MakeTeam) -> None:
    (store,) = declared(team(1))
    with pytest.raises(UsageError, match="user"):
        store.init({"user": np.zeros(4, np.float32)}, SGD(lr=1.0))
    with pytest.raises(UsageError, match="w"):
        store.table("w", 4, SGD(lr=1.0))
