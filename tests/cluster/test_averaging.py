"""avg:H: workers train on their own and exchange; each kind against what it says, in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from tests.cluster.team import Team
from windlass.optim import SGD
from windlass.store import Store
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]
Vector = npt.NDArray[np.float64]
SIZE = 300_000


def drift(rank: int, step: int, size: int = SIZE) -> Vector:
    """How a worker's own training moves its parameters in one step."""
    return np.random.default_rng([rank, step]).standard_normal(size)


def trained(pair: Team, stores: list[Store], steps: int, weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> list[Vector]:
    """Every worker takes `steps` steps of its own and averages after each; what each of them ends with."""

    def train(_: object, rank: int) -> Vector:
        params = {"w": np.zeros(SIZE)}
        for step in range(steps):
            params["w"] += drift(rank, step)
            stores[rank].average(params, weight=weights[rank])
        return params["w"]

    return pair.each(train)


def test_theta_is_the_mean_of_all_theta_i_after_every_h_steps(team: MakeTeam) -> None:
    trio = team(3)
    stores = trio.stores({"w": np.zeros(SIZE)}, SGD(lr=1.0), consistency="avg:H=4")
    ends = trained(trio, stores, 8)
    assert all(np.array_equal(end, ends[0]) for end in ends), "the same bits on every worker"
    mean = np.zeros(SIZE)
    for exchange in (range(4), range(4, 8)):
        mean = np.mean([mean + sum(drift(rank, step) for step in exchange) for rank in range(3)], axis=0)
    np.testing.assert_allclose(ends[0], mean, rtol=0, atol=1e-13)
    assert stores[0].clock == 2


def test_the_mean_is_weighted_by_what_each_worker_trained_on(team: MakeTeam) -> None:
    trio = team(3)
    stores = trio.stores({"w": np.zeros(SIZE)}, SGD(lr=1.0), consistency="avg:H=2")
    ends = trained(trio, stores, 2, (1.0, 2.0, 5.0))
    thetas = [drift(rank, 0) + drift(rank, 1) for rank in range(3)]
    np.testing.assert_allclose(ends[0], np.average(thetas, axis=0, weights=(1, 2, 5)), rtol=0, atol=1e-13)


def test_in_float32_a_mean_is_summed_by_rank_to_the_bit(team: MakeTeam) -> None:
    trio = team(3)
    stores = trio.stores({"w": np.ones(SIZE, np.float32)}, SGD(lr=1.0), consistency="avg:H=1")
    own = [drift(rank, 0).astype(np.float32) for rank in range(3)]

    def exchange(_: object, rank: int) -> npt.NDArray[np.float32]:
        params = {"w": own[rank].copy()}
        assert stores[rank].average(params)
        return params["w"]

    ends = trio.each(exchange)
    ways = [np.float32(1) - theta for theta in own]
    mean = np.float32(1 / 3) * ((ways[0] + ways[1]) + ways[2])
    assert [end.tobytes() for end in ends] == [(np.float32(1) - mean).tobytes()] * 3


def test_with_reduce_sum_every_workers_way_is_added(team: MakeTeam) -> None:
    trio = team(3)
    stores = trio.stores({"w": np.zeros(SIZE)}, SGD(lr=1.0), consistency="avg:H=2", reduce="sum")
    ends = trained(trio, stores, 2)
    total = sum(drift(rank, step) for rank in range(3) for step in range(2))
    np.testing.assert_allclose(ends[1], total, rtol=0, atol=1e-12)


def test_an_outer_optimizer_takes_the_mean_way_as_its_gradient(team: MakeTeam) -> None:
    """DiLoCo, algorithm 1: outer gradient = mean of theta(t-1) - theta_i, outer optimizer Nesterov."""
    trio = team(3)
    outer = SGD(lr=0.7, momentum=0.9, nesterov=True)
    stores = trio.stores({"w": np.zeros(SIZE)}, outer, consistency="avg:H=2")
    ends = trained(trio, stores, 6)
    theta, buf = np.zeros(SIZE), np.zeros(SIZE)
    for t in range(3):
        own = [theta + drift(rank, 2 * t) + drift(rank, 2 * t + 1) for rank in range(3)]
        gradient = np.mean([theta - end for end in own], axis=0)
        buf = gradient if t == 0 else 0.9 * buf + gradient
        theta = theta - 0.7 * (gradient + 0.9 * buf)
    np.testing.assert_allclose(ends[2], theta, rtol=0, atol=1e-12)


def test_elastic_averaging_pulls_workers_and_center_towards_each_other(team: MakeTeam) -> None:
    """Zhang et al., equations 5 and 6: x_i += a (center - x_i), center += a sum(x_i - center)."""
    trio = team(3)
    mode = "avg:H=2,elastic=0.25"
    stores = trio.stores({"w": np.zeros(SIZE)}, SGD(lr=0.25), consistency=mode, reduce="sum")
    ends = trained(trio, stores, 6)
    own, center = [np.zeros(SIZE) for _ in range(3)], np.zeros(SIZE)
    for t in range(3):
        own = [x + drift(rank, 2 * t) + drift(rank, 2 * t + 1) for rank, x in enumerate(own)]
        ways = [center - x for x in own]
        own = [x + 0.25 * way for x, way in zip(own, ways, strict=True)]
        center = center - 0.25 * sum(ways)
    for end, x in zip(ends, own, strict=True):
        np.testing.assert_allclose(end, x, rtol=0, atol=1e-12)
    np.testing.assert_allclose(stores[0].pull().result()["w"], center, rtol=0, atol=1e-12)


def test_who_has_no_more_data_leaves_the_mean_to_the_others(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": np.zeros(8)}, SGD(lr=1.0), consistency="avg:H=3")
    params = [{"w": np.zeros(8)} for _ in stores]

    def train(_: object, rank: int) -> bool:
        params[rank]["w"] += 1.0 + rank
        stores[rank].average(params[rank])
        params[rank]["w"] += 1.0 + rank
        return stores[rank].average(params[rank], now=True)

    assert pair.each(train) == [True, True]
    assert params[0]["w"][0] == params[1]["w"][0] == 3.0
    pair[1].close()
    for _ in range(3):
        params[0]["w"] += 1.0
        stores[0].average(params[0])
    assert params[0]["w"][0] == 6.0


def test_what_does_not_fit_is_refused_in_the_call(team: MakeTeam) -> None:
    alone = team(1)
    (store,) = alone.stores({"w": np.zeros(8)}, SGD(lr=1.0))
    with pytest.raises(UsageError, match="do not train on their own"):
        store.average({"w": np.zeros(8)})
    (elastic,) = alone.stores({"w": np.zeros(8)}, SGD(lr=1.0), "avg:H=2,elastic=0.5", "elastic")
    with pytest.raises(UsageError, match=r"SGD\(lr=0.5\)"):
        elastic.average({"w": np.zeros(8)})
    (plain,) = alone.stores({"w": np.zeros(8)}, SGD(lr=1.0), "avg:H=2", "plain")
    with pytest.raises(UsageError, match="weight"):
        plain.average({"w": np.zeros(8)}, weight=0.0)
