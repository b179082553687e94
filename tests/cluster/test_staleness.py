"""Rates that heed staleness, on real servers: each push gets the rate of what came between, in tensors and tables."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.optim import SGD, Adam
from windlass.schedule import Cosine, StalenessAware
from windlass.store import Store
from windlass_proto import limits
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]

BASE = Cosine(0.1, 40)
AWARE = StalenessAware(BASE, power=0.5, slope=2.0)
SHAPES = {"w": (2 * limits.BLOCK_ELEMENTS_MIN + 100,), "b": (33,), "emb": (50, 7)}  # over several blocks
DIM = 5
IDS = np.arange(20)


class Oracle:
    """Adam in float64, with the rate of each push by the updates that came since its worker's last read."""

    def __init__(self) -> None:
        self.w = {name: np.zeros(shape) for name, shape in SHAPES.items()} | {"user": np.zeros((IDS.size, DIM))}
        self.m = {name: np.zeros_like(w) for name, w in self.w.items()}
        self.v = {name: np.zeros_like(w) for name, w in self.w.items()}
        self.updates = dict.fromkeys(self.w, 0)
        self.seen = [dict(self.updates), dict(self.updates)]
        self.stalest = 0

    def read(self, rank: int, names: list[str]) -> None:
        self.seen[rank] |= {name: self.updates[name] for name in names}

    def push(self, rank: int, name: str, g: np.ndarray, clock: int) -> None:
        stale = self.updates[name] - self.seen[rank][name]
        self.stalest = max(self.stalest, stale)
        self.updates[name] += 1
        t = self.updates[name]
        self.m[name] = 0.9 * self.m[name] + 0.1 * g
        self.v[name] = 0.999 * self.v[name] + 0.001 * g * g
        lr = BASE.value(clock) / (1 + 2.0 * max(0, stale - 1)) ** 0.5
        root = np.sqrt(self.v[name]) / np.sqrt(1 - 0.999**t) + 1e-8
        self.w[name] -= lr / (1 - 0.9**t) * self.m[name] / root


def declare(group: Team, rate: Any, mode: str = "asp") -> list[Store]:
    """A store of both workers with some tensors and a table whose rows begin at 0, all of them pulled."""
    arrays = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    stores = group.stores(arrays, Adam(lr=rate), mode)
    group.each(lambda _, rank: stores[rank].table("user", DIM, Adam(lr=rate), init=wl.init.Zeros(), dtype=np.float64))
    for store in stores:
        store.pull({"user": IDS}).result()
    return stores


@pytest.mark.parametrize("mode", ["asp", "ssp:40"])
def test_each_push_has_the_rate_of_its_own_staleness(team: MakeTeam, mode: str) -> None:
    stores, oracle, random = declare(team(), AWARE, mode), Oracle(), np.random.default_rng(5)
    ids = {"user": IDS, "emb": np.arange(50)}
    for _ in range(60):  # one thread, so the order of updates is known
        rank, what = int(random.integers(2)), str(random.choice([*SHAPES, "user", "all", "read"]))
        store, names = stores[rank], [*SHAPES] if what in ("all", "read") else [what]
        if what == "read":
            store.pull().result()
            oracle.read(rank, names)
            continue
        clock = store.clock
        grads = {name: random.normal(size=oracle.w[name].shape) for name in names}
        given = {name: wl.Rows(ids[name], g) if name in ids and what != "all" else g for name, g in grads.items()}
        if what in ("all", "user"):
            store.update(given)
        else:
            with store.step():
                store.push(given).result()
        for name, g in grads.items():
            oracle.push(rank, name, g, clock)
        if what in ("all", "user"):
            oracle.read(rank, names)
    assert oracle.stalest > 5
    found = stores[0].pull({name: ids.get(name) for name in oracle.w} | {"emb": None}).result()
    for name, due in oracle.w.items():
        np.testing.assert_allclose(found[name], due, rtol=1e-9, atol=1e-12, err_msg=name)


def test_weights_that_have_not_been_taken_are_not_what_a_gradient_is_made_from(team: MakeTeam) -> None:
    first, second = team().stores({"w": np.zeros(4)}, SGD(lr=StalenessAware(1.0)), "asp")
    one = {"w": np.ones(4)}
    for _ in range(3):
        second.update(one)
    ahead = first.pull()  # asked for, while gradients are made from what init gave
    while not ahead.done():
        first.member.pump.wait(ahead, None)
    first.push(one).result()
    assert first.pull().result()["w"][0] == pytest.approx(-3 - 1 / 3)


def test_the_rate_heeds_staleness_from_a_live_change_on(team: MakeTeam) -> None:
    stores = team().stores({"w": np.zeros(4)}, SGD(lr=1.0), "asp")
    one = {"w": np.ones(4)}
    for store in stores:
        store.update(one)
    stores[0].set(lr=StalenessAware(1.0))
    for store in stores:
        store.update(one)
        store.pull().result()
    stores[1].update(one)
    stores[1].update(one)
    stores[1].update(one)
    stores[0].push(one).result()  # four updates since its read: the second worker's
    found = stores[0].pull().result()["w"][0]
    assert found == -7.25


def test_modes_without_staleness_refuse_it_and_a_store_that_changes_to_one_goes_on_with_the_schedule(
    team: MakeTeam,
) -> None:
    group = team(1)
    with pytest.raises(UsageError, match="no step of this mode is stale"):
        group[0].store("model").init({"w": np.zeros(4)}, SGD(lr=StalenessAware(1.0)))
    (store,) = group.stores({"w": np.zeros(4)}, SGD(lr=1.0), "bsp", "other")
    with pytest.raises(UsageError, match="no step of this mode is stale"):
        store.set(lr=StalenessAware(1.0))
    store.set(consistency="asp", lr=StalenessAware(1.0))
    store.update({"w": np.ones(4)})
    store.set(consistency="bsp")
    assert store.update({"w": np.ones(4)})["w"][0] == -2.0


def test_a_run_that_is_restored_heeds_staleness_from_what_it_then_reads(team: MakeTeam, tmp_path: Path) -> None:
    (store,) = team(1).stores({"w": np.zeros(4)}, SGD(lr=StalenessAware(Cosine(1.0, 8))), "asp")
    for _ in range(2):
        store.update({"w": np.ones(4)})
    store.checkpoint(tmp_path).result()
    through = [store.update({"w": np.ones(4)})["w"][0] for _ in range(3)]
    store.restore(tmp_path)
    assert [store.update({"w": np.ones(4)})["w"][0] for _ in range(3)] == through
