"""Steps: what a step holds, when it closes, who waits for whom."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.cluster.team import Team
from windlass.optim import SGD, Adam
from windlass.store import Store
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]


def ones(value: float = 1.0, size: int = 8) -> np.ndarray:
    return np.full(size, value, np.float32)


def test_update_applies_the_mean_of_all_workers_once_a_step(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)})
    for step in range(1, 4):
        results = pair.each(lambda _, rank: stores[rank].update({"w": ones(1 + 2 * rank)}))
        assert [result["w"][0] for result in results] == [-2.0 * step] * 2
    assert [store.clock for store in stores] == [3, 3]


def test_push_pull_closes_the_step_and_returns_the_values_after_it(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)})
    tickets = [store.push_pull({"w": ones(4)}) for store in stores]
    assert [store.clock for store in stores] == [1, 1]
    assert [ticket.result()["w"][0] for ticket in tickets] == [-4.0, -4.0]


def test_the_first_pull_after_a_push_closes_the_step(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)})
    for store in stores:
        store.push({"w": ones()})
        assert store.clock == 0
    tickets = [store.pull() for store in stores]
    assert [store.clock for store in stores] == [1, 1]
    assert [ticket.result()["w"][0] for ticket in tickets] == [-1.0, -1.0]
    stores[0].pull().result()
    assert stores[0].clock == 1, "a second pull closes nothing"


def test_pushes_of_one_step_are_summed_as_in_gradient_accumulation(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)})

    def accumulate(_: object, rank: int) -> float:
        with stores[rank].step():
            for micro in range(4):
                stores[rank].push({"w": ones(micro + rank)})
        return float(stores[rank].pull().result()["w"][0])

    assert pair.each(accumulate) == [-(6.0 + 10.0) / 2] * 2
    assert [store.clock for store in stores] == [1, 1]


def test_accumulated_gradients_make_one_update_of_the_rule(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)}, Adam(lr=0.1))
    with alone.step():
        alone.push({"w": ones(1)})
        alone.push({"w": ones(2)})
    assert alone.pull().result()["w"] == pytest.approx(ones(-0.1), rel=1e-5)


def test_a_pull_inside_an_open_step_reads_the_last_step_and_never_waits(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)})
    with stores[0].step():
        stores[0].push({"w": ones()})
        seen = stores[0].pull().result(timeout=20.0)
    assert seen["w"][0] == 0.0
    stores[1].push({"w": ones(3)})
    assert stores[1].pull().result()["w"][0] == -2.0


def test_a_step_block_that_raises_is_closed_so_that_the_others_go_on(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)})
    with pytest.raises(ZeroDivisionError), stores[0].step():
        raise ZeroDivisionError
    assert stores[1].update({"w": ones(2)})["w"][0] == -2.0


def test_nested_step_blocks_are_one_step(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)})
    with alone.step(), alone.step():
        alone.push({"w": ones()})
    assert alone.clock == 1


def test_workers_may_push_different_tensors_of_one_step(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"a": ones(0), "b": ones(0)})
    pair.each(lambda _, rank: stores[rank].update({"ab"[rank]: ones(1 + rank)}))
    for values in pair.each(lambda _, rank: stores[rank].pull().result()):
        assert (values["a"][0], values["b"][0]) == (-1.0, -2.0), "the mean is over those that pushed"


def test_pushes_may_bring_a_step_tensor_by_tensor(team: MakeTeam) -> None:
    pair = team()
    arrays = {f"layer{i}": ones(0, 50) for i in range(12)}
    stores = pair.stores(arrays)

    def backward(_: object, rank: int) -> dict[str, np.ndarray]:
        for name in reversed(arrays):
            stores[rank].push({name: ones(1 + rank, 50)}, priority=-int(name[5:]))
        values: dict[str, np.ndarray] = stores[rank].pull().result()
        return values

    for values in pair.each(backward):
        assert all((value == -1.5).all() for value in values.values())


def test_the_mean_is_weighted_by_batch_size(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)})
    results = pair.each(lambda _, rank: stores[rank].update({"w": ones((4.0, 8.0)[rank])}, weight=(3, 1)[rank]))
    assert [result["w"][0] for result in results] == [-5.0, -5.0]


def test_pushes_of_one_step_must_have_one_weight(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)})
    alone.push({"w": ones()}, weight=2)
    with pytest.raises(UsageError, match=r"different weights.*first=2.*now=3"):
        alone.push({"w": ones()}, weight=3)
    with pytest.raises(UsageError, match="not a positive number"):
        alone.push({"w": ones()}, weight=0)
    assert alone.update({"w": ones()}, weight=2)["w"][0] == -2.0, "a refused push is no part of the step"


def test_reduce_sum_adds_workers(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0)}, reduce="sum")
    results = pair.each(lambda _, rank: stores[rank].update({"w": ones(1 + rank)}, weight=7))
    assert [result["w"][0] for result in results] == [-3.0, -3.0]


def test_update_belongs_outside_a_step_block(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)})
    with alone.step(), pytest.raises(UsageError, match=r"inside `with store.step\(\)`"):
        alone.update({"w": ones()})


def test_asp_makes_an_update_for_each_worker_where_bsp_makes_one(team: MakeTeam) -> None:
    trio = team(3)
    eager = trio.stores({"w": ones(0)}, consistency="asp", name="eager")
    together = trio.stores({"w": ones(0)}, consistency="bsp", name="together")
    trio.each(lambda _, rank: (eager[rank].update({"w": ones()}), together[rank].update({"w": ones()})))
    assert eager[0].pull().result()["w"][0] == -3.0
    assert together[0].pull().result()["w"][0] == -1.0


def test_asp_waits_for_nobody_and_reads_its_own_writes(team: MakeTeam) -> None:
    pair = team()
    fast, _ = pair.stores({"w": ones(0)}, consistency="asp")
    for step in range(1, 6):
        assert fast.update({"w": ones()})["w"][0] == -step


def test_ssp_lets_a_worker_run_ahead_by_its_bound_and_no_further(team: MakeTeam) -> None:
    pair = team()
    fast, slow = pair.stores({"w": ones(0)}, consistency="ssp:3")
    for _ in range(3):
        fast.update({"w": ones()})
    fourth = fast.push_pull({"w": ones()})
    with pytest.raises(TimeoutError, match="it goes on"):
        fourth.result(timeout=0.3)
    slow.push_pull({"w": ones()})
    assert fourth.result(timeout=20.0)["w"][0] <= -4.0


def test_bsp_waits_for_everybody(team: MakeTeam) -> None:
    pair = team()
    first, second = pair.stores({"w": ones(0)})
    ticket = first.push_pull({"w": ones()})
    with pytest.raises(TimeoutError):
        ticket.result(timeout=0.2)
    assert not ticket.done()
    assert ticket.exception() is None
    second.push_pull({"w": ones()}).result()
    assert ticket.result()["w"][0] == -1.0


def test_bsp_is_reproducible_to_the_bit(team: MakeTeam) -> None:
    trio = team(3)
    draws = [np.random.default_rng(rank).standard_normal((10, 5000)).astype(np.float32) for rank in range(3)]
    ends = []
    for run in range(2):
        stores = trio.stores({"w": np.zeros(5000, np.float32)}, Adam(lr=0.01), name=f"run-{run}")

        def train(_: object, rank: int, stores: list[Store] = stores) -> bytes:
            for gradient in draws[rank]:
                values = stores[rank].update({"w": gradient}, weight=rank + 1)
            found: bytes = values["w"].tobytes()
            return found

        ends += trio.each(train)
    assert len(set(ends)) == 1


@pytest.mark.parametrize("link", ["tcp", "unix", "shm"])
def test_a_model_larger_than_a_frame_crosses_every_link(
    team: MakeTeam, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_LINK", link)
    pair = team()
    shape = (1000, 1500)
    stores = pair.stores({"w": np.zeros(shape, np.float32), "b": np.zeros(3, np.float64)}, SGD(lr=1.0))
    gradient = np.arange(1_500_000, dtype=np.float32).reshape(shape)
    results = pair.each(lambda _, rank: stores[rank].update({"w": gradient, "b": np.arange(3.0)}))
    for result in results:
        np.testing.assert_array_equal(result["w"], -gradient)
        np.testing.assert_array_equal(result["b"], -np.arange(3.0))
