"""Layers pushed one by one inside a step, each for the last time: their values come without waiting for the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.optim import SGD, Adam
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster

MakeTeam = Callable[..., Team]
WAIT_S = 30.0
LAYERS = {f"layer{i}": np.zeros((40, 50), np.float32) for i in range(6)}


def filled(value: float) -> np.ndarray:
    return np.full((40, 50), value, np.float32)


def test_a_layers_values_come_while_its_step_is_open(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(LAYERS)

    def step(_: object, rank: int) -> list[float]:
        store, seen = stores[rank], []
        with store.step():
            for name in reversed(LAYERS):
                values = store.push_pull({name: filled(1 + rank)}).result(WAIT_S)
                seen.append(float(values[name][0, 0]))
            assert store.clock == 0
        assert store.clock == 1
        return seen

    assert pair.each(step) == [[-1.5] * len(LAYERS)] * 2


@pytest.mark.parametrize("mode", ["bsp", "bsp:k=2", "ssp:0", "asp"])
def test_layers_are_awaited_in_the_next_forward_pass(team: MakeTeam, mode: str) -> None:
    pair = team()
    stores = pair.stores(LAYERS, consistency=mode, name=f"forward {mode}")

    def train(_: object, rank: int) -> dict[str, np.ndarray]:
        store, coming = stores[rank], dict[str, wl.Ticket]()
        params = {name: store.empty((40, 50)) for name in LAYERS}
        for _ in range(5):
            for name in LAYERS:
                if name in coming:
                    coming[name].result()
            with store.step():
                for place, name in reversed(list(enumerate(LAYERS))):
                    store.push({name: filled(1.0)}, priority=-place)
                    coming[name] = store.push_pull({name: filled(rank)}, {name: params[name]}, priority=-place)
        for ticket in coming.values():
            ticket.result()
        return params

    pair.each(train)
    total = 5 * (1.5 if mode.startswith("bsp") else 3.0)
    for store in stores:
        for values in store.pull().result().values():
            assert (values == -total).all()


def test_by_layer_or_as_a_whole_a_model_ends_with_the_same_bits(team: MakeTeam) -> None:
    pair = team()
    rule = Adam(lr=0.01, clip_global_norm=0.5)
    whole = pair.stores(LAYERS, rule, name="whole")
    layers = pair.stores(LAYERS, rule, name="layers")

    def train(_: object, rank: int) -> None:
        random = np.random.default_rng(rank)
        for _ in range(4):
            grads = {name: random.normal(size=(40, 50)).astype(np.float32) for name in LAYERS}
            whole[rank].update(grads, weight=1 + rank)
            with layers[rank].step():
                coming = [layers[rank].push_pull({name: grads[name]}, weight=1 + rank) for name in reversed(LAYERS)]
            wl.wait(coming)

    pair.each(train)
    one, other = whole[0].pull().result(), layers[0].pull().result()
    assert all((one[name] == other[name]).all() for name in LAYERS)


def test_nothing_is_pushed_to_a_tensor_after_its_last_push_of_a_step(team: MakeTeam) -> None:
    (alone,) = team(1).stores(LAYERS)
    with alone.step():
        alone.push({"layer1": filled(1.0)})
        last = alone.push_pull({"layer1": filled(1.0)})
        for call in (alone.push, alone.push_pull):
            with pytest.raises(UsageError, match=r"pushed again .* after its push_pull.*layer1"):
                call({"layer0": filled(1.0), "layer1": filled(9.0)})
        alone.push({"layer0": filled(1.0)})
    assert (last.result()["layer1"] == -2.0).all()
    assert (alone.update({"layer1": filled(1.0)})["layer1"] == -3.0).all(), "the next step is another"
    assert (alone.pull("layer0").result()["layer0"] == -1.0).all(), "a refused push is no part of the step"


def test_a_layer_is_not_waited_for_inside_its_step(team: MakeTeam) -> None:
    (alone,) = team(1).stores(LAYERS, Adam(lr=0.01, clip_global_norm=0.5))
    with alone.step():
        first = alone.push_pull({"layer0": filled(1.0)})
        alone.push_pull({"layer1": filled(1.0)})
        with pytest.raises(UsageError, match="waited for inside its step"):
            first.result()
    assert first.result()["layer0"].shape == (40, 50)


def test_rows_of_a_table_come_back_when_the_step_is_closed(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(LAYERS, name="mixed")
    tables = pair.each(lambda _, rank: stores[rank].table("user", 4, SGD(lr=1.0), wl.init.Zeros()))

    def step(_: object, rank: int) -> np.ndarray:
        with stores[rank].step():
            rows = tables[rank].push_pull([7, 8], np.ones((2, 4), np.float32))
            layer = stores[rank].push_pull({"layer0": filled(1.0), "user": wl.Rows([9], np.ones((1, 4), np.float32))})
        assert (layer.result()["layer0"] == -1.0).all()
        found: np.ndarray = rows.result()
        return found

    for rows in pair.each(step):
        assert (rows == -1.0).all()
