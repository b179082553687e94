"""Hyper-parameters as functions of the step, and changed live: the same step on every server and worker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.optim import SGD, Adagrad, Adam
from windlass.store import Store
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]

NAMES = [f"t{i}" for i in range(6)]  # on two servers, a block and more each


def ones(value: float = 1.0, size: int = 4) -> np.ndarray:
    return np.full(size, value, np.float32)


def model(value: float = 0.0) -> dict[str, np.ndarray]:
    return {name: ones(value, 60_000) for name in NAMES}


def step(store: Store, value: float = 1.0) -> set[float]:
    """One step with equal gradients everywhere; the different values that the weights then have."""
    return {float(number) for array in store.update(model(value)).values() for number in np.unique(array)}


# ---- schedules -----------------------------------------------------------------------------------------------------


def test_a_schedule_counts_steps_on_every_server(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(model(), SGD(lr=wl.schedule.Step(1.0, step_size=2, gamma=0.5)))
    seen = [pair.each(lambda _, rank: step(stores[rank])) for _ in range(5)]
    assert seen == [[{value}] * 2 for value in (-1.0, -2.0, -2.5, -3.0, -3.25)]


def test_under_asp_a_schedule_counts_the_pushing_worker_s_steps_not_updates(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)}, SGD(lr=wl.schedule.MultiStep(1.0, [2], gamma=0.25)), consistency="asp")
    for _ in range(2):
        for store in stores:
            store.update({"w": ones()})
    assert stores[0].pull().result()["w"][0] == -4.0, "four updates, and nobody's step 2 yet"
    stores[0].update({"w": ones()})
    assert stores[1].pull().result()["w"][0] == -4.25


def test_adam_s_own_count_of_updates_stays_what_it_is(team: MakeTeam) -> None:
    alone = team(1)
    scheduled, plain = (
        alone.stores({"w": ones(1)}, Adam(lr=lr), name=name)[0]
        for name, lr in (("scheduled", wl.schedule.Constant(0.1)), ("plain", 0.1))
    )
    for store in (scheduled, plain):
        for gradient in (1.0, -2.0, 0.5):
            store.update({"w": ones(gradient)})
    assert (scheduled.pull().result()["w"] == plain.pull().result()["w"]).all()


def test_weight_decay_follows_a_schedule_and_multipliers_multiply_it(team: MakeTeam) -> None:
    (alone,) = team(1).stores(
        {"w": ones(1), "b": ones(1)},
        SGD(lr=1.0, weight_decay=wl.schedule.Step(0.5, step_size=1, gamma=0.5)),
        groups={"b": {"decay_mult": 0.0}},
    )
    nothing = {"w": ones(0), "b": ones(0)}
    assert [alone.update(nothing)["w"][0] for _ in range(2)] == [0.5, 0.375]
    assert alone.pull().result()["b"][0] == 1.0


# ---- set -----------------------------------------------------------------------------------------------------------


def test_set_by_all_workers_holds_from_this_step_on_every_server(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(model(), SGD(lr=1.0))
    assert pair.each(lambda _, rank: step(stores[rank])) == [{-1.0}] * 2
    assert pair.each(lambda _, rank: stores[rank].set(lr=0.5)) == [1, 1]
    assert pair.each(lambda _, rank: step(stores[rank])) == [{-1.5}] * 2
    assert [store.specs()["t0"]["rule"] for store in stores] == [SGD(lr=0.5)] * 2


def test_set_by_one_worker_is_followed_by_all(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(model(), SGD(lr=1.0))
    assert stores[1].set(lr=0.25) == 0
    assert pair.each(lambda _, rank: step(stores[rank])) == [{-0.25}] * 2
    assert pair.each(lambda _, rank: step(stores[rank])) == [{-0.5}] * 2


def test_who_pushes_nothing_still_says_from_which_step_its_change_holds(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(model(), SGD(lr=1.0))
    ahead = [stores[0].push_pull(model(1.0)) for _ in range(3)]
    with stores[1].step():
        pass
    stores[1].set(lr=0.25)
    for _ in range(2):
        with stores[1].step():
            pass
    values = [{float(array[0]) for array in ticket.result().values()} for ticket in ahead]
    assert values == [{-1.0}, {-1.25}, {-1.5}]


def test_under_asp_all_workers_follow(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(model(), SGD(lr=1.0), consistency="asp")
    for _ in range(3):
        stores[0].update(model(0.0))
    assert stores[0].set(lr=0.5) == 3
    learned(stores[1], 0.5)
    assert step(stores[1]) == {-0.5}, "it is at its first step"
    assert step(stores[0]) == {-1.0}


def learned(store: Store, lr: float) -> None:
    """Wait until the worker has heard of it."""

    tick = threading.Event()
    for _ in range(1000):
        if next(iter(store.specs().values()))["rule"].lr == lr:
            return
        tick.wait(0.01)
    pytest.fail("the worker never heard of the change")


def test_set_names_some_tensors_and_the_latest_wins(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0), "b1": ones(0), "b2": ones(0)}, SGD(lr=1.0))
    alone.set("b*", lr=0.5)
    alone.set("b2", lr=0.25)
    values = alone.update({"w": ones(), "b1": ones(), "b2": ones()})
    assert [values[name][0] for name in ("w", "b1", "b2")] == [-1.0, -0.5, -0.25]
    alone.set(lr=0.125)
    values = alone.update({"w": ones(), "b1": ones(), "b2": ones()})
    assert [values[name][0] for name in ("w", "b1", "b2")] == [-1.125, -0.625, -0.375]


def test_a_schedule_may_be_set_live_and_other_numbers_too(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)}, SGD(lr=1.0, momentum=0.5))
    alone.update({"w": ones(0)})
    alone.set(lr=wl.schedule.MultiStep(1.0, [2], gamma=0.5), momentum=0.25)
    assert alone.update({"w": ones(1)})["w"][0] == -1.0
    assert alone.update({"w": ones(0)})["w"][0] == -1.125


def test_different_sets_at_one_step_are_refused_with_both_ranks_and_values(team: MakeTeam) -> None:
    stores = team().stores({"w": ones(0)})
    stores[0].set(lr=0.5)
    with pytest.raises(UsageError, match=r"workers call set differently.*rank_0_gave=lr=0\.5.*rank_1_gives=lr=0\.25"):
        stores[1].set(lr=0.25)
    assert stores[1].set(lr=0.125) == 0, "its second set of the step is another action"


def test_later_inits_compare_with_what_was_declared_and_live_values_stay(
    team: MakeTeam, capfd: pytest.CaptureFixture[str]
) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)}, consistency="asp")
    stores[0].set(lr=0.5)
    again = stores[0].init({"w": ones(0)}, SGD(lr=1.0))
    assert again["w"][0] == 0.0
    with pytest.raises(UsageError, match="another optimizer"):
        stores[0].init({"w": ones(0)}, SGD(lr=0.5))
    capfd.readouterr()
    late = pair.join().store("model", consistency="asp")
    late.init({"w": ones(0)}, SGD(lr=1.0))
    assert "store model: set live, from step 0 on: lr=0.5" in capfd.readouterr().err
    assert late.update({"w": ones()})["w"][0] == -0.5
    everyone = [*stores, late]
    pair.each(lambda _, rank: everyone[rank].init({"v": ones(0)}, SGD(lr=1.0)))
    assert late.update({"v": ones()})["v"][0] == -1.0, "what is declared later is as declared"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "nothing to change"),
        ({"lrr": 1.0}, "Did you mean lr"),
        ({"lr": -1.0}, "lr >= 0"),
        ({"lr": "fast"}, "what is no number"),
        ({"lr": float("nan")}, "not finite"),
        ({"momentum": 0.9}, "momentum of sgd cannot be changed while training"),
        ({"nesterov": True}, "nesterov of sgd cannot be changed|no number"),
        ({"names": "x*", "lr": 1.0}, "matches no tensor"),
        ({"names": 3, "lr": 1.0}, "not a string"),
    ],
    ids=str,
)
def test_a_wrong_set_raises_in_the_call_and_changes_nothing(team: MakeTeam, given: dict[str, Any], said: str) -> None:
    stores = team().stores({"w": ones(0)})
    with pytest.raises(UsageError, match=said):
        stores[0].set(**given)
    assert stores[1].set(lr=0.5) == 0
    assert stores[1].specs()["w"]["rule"] == SGD(lr=0.5)


def test_what_fills_slots_at_first_cannot_be_set_later(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)}, Adagrad())
    with pytest.raises(UsageError, match="initial_accumulator_value of adagrad cannot be changed"):
        alone.set(initial_accumulator_value=1.0)


def test_set_inside_a_step_is_refused(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)})
    alone.push({"w": ones()})
    with pytest.raises(UsageError, match="inside a step"):
        alone.set(lr=0.5)
    assert alone.pull().result()["w"][0] == -1.0


def test_more_changes_than_anybody_keeps_and_patterns_beyond_a_record(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)})
    for i in range(300):
        alone.set(lr=1.0 + i)
    alone.set(lr=0.5)
    assert alone.update({"w": ones()})["w"][0] == -0.5
    for length in range(1, 25):
        alone.set("w" + "*" * length, lr=0.5)
    with pytest.raises(UsageError, match="too many bytes"):
        alone.set("w" + "*" * 200, lr=0.5)
    assert alone.update({"w": ones()})["w"][0] == -1.0


@pytest.mark.parametrize("consistency", ["bsp", "ssp:2"])
def test_weights_are_equal_bit_for_bit_over_many_changes(team: MakeTeam, consistency: str) -> None:
    pair = team()
    stores = pair.stores(model(0.5), Adam(lr=wl.schedule.Cosine(0.1, 30, warmup=3)), consistency=consistency)

    def train(_: wl.Cluster, rank: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(7)
        for clock in range(12):
            if clock % 3 == 1:
                stores[rank].set("t[0-3]", lr=float(random.random()), weight_decay=0.01 * clock)
            stores[rank].update({name: array * np.float32(0.1 + rank) for name, array in model().items()})
        result: dict[str, np.ndarray] = stores[rank].pull().result()
        return result

    first, second = pair.each(train)
    if consistency == "bsp":
        for name in NAMES:
            assert first[name].tobytes() == second[name].tobytes()
            assert len(np.unique(first[name])) == 1, "both servers, every block"


# ---- plateau -------------------------------------------------------------------------------------------------------


def test_worker_0_lowers_lr_when_a_logged_metric_stands_still(team: MakeTeam) -> None:
    pair = team()
    plateau = wl.schedule.Plateau(1.0, metric="error", factor=0.5, patience=2, end=0.25)
    stores = pair.stores(model(), SGD(lr=plateau))
    rates: list[float] = []

    def train(worker: wl.Cluster, rank: int) -> list[set[float]]:
        seen = []
        for clock in range(400):
            seen.append(step(stores[rank]))
            worker.log(step=clock, error=1.0)
            rate = stores[rank].specs()["t0"]["rule"].lr.lr
            if rank == 0 and rate not in rates:
                rates.append(rate)
            worker.barrier("step")
            if worker.broadcast(rates[-1:] if rank == 0 else None) == [0.25]:
                break
            pause.wait(0.02)
        return seen

    pause = threading.Event()
    first, second = pair.each(train)
    assert first == second, "both saw the same weights after each step, on every server one value"
    assert all(len(values) == 1 for values in first)
    assert rates == [1.0, 0.5, 0.25], "and not below its end"


def test_a_plateau_stands_alone_in_its_store(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0), "b": ones(0)}, SGD(lr=wl.schedule.Plateau(1.0, "loss")))
    with pytest.raises(UsageError, match="a plateau is for all tensors"):
        alone.set("b", lr=0.5)
    with pytest.raises(UsageError, match="a plateau is for all tensors"):
        alone.init({"v": ones(0)}, SGD(lr=1.0))
    assert alone.set(lr=0.5) == 0
    assert alone.update({"w": ones(), "b": ones()})["b"][0] == -0.5
