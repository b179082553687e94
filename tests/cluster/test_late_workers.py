"""bsp:k=K on a real cluster: the first K make the step, who comes late is told and goes on with the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.cluster.team import Team
from tests.cluster.test_waits import status_once
from windlass.cluster import Cluster
from windlass.optim import SGD
from windlass.sparse_table import Table
from windlass.store import Store

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]


def grads(value: float) -> dict[str, np.ndarray]:
    return {"w": np.full(300_000, value, np.float32)}


def step(stores: list[Store], *values: float) -> list[float]:
    """The first of the stores' workers push these values in one step; what each of them reads after it."""
    tickets = [store.push_pull(grads(value)) for store, value in zip(stores, values, strict=False)]
    return [float(ticket.result(20.0)["w"][0]) for ticket in tickets]


def test_two_of_three_go_on_and_the_third_is_late_counted_and_catches_up(team: MakeTeam) -> None:
    trio = team(3)
    stores = trio.stores(grads(0), consistency="bsp:k=2")
    for done in range(1, 6):
        assert step(stores[:2], 1.0, 3.0) == [-2.0 * done] * 2
    assert stores[2].update(grads(1000.0))["w"][0] == -10.0, "present values at once, the late gradient dropped"
    assert stores[2].clock == 1
    ticket = stores[2].push_pull(grads(8.0))
    assert stores[2].clock == 6, "it has gone on with the open step"
    stores[0].push_pull(grads(2.0)).result(20.0)
    assert ticket.result(20.0)["w"][0] == -15.0
    status = status_once(trio[0], lambda store: store["workers"][2]["late_steps"] == 1)
    assert [worker["late_steps"] for worker in status["workers"]] == [0, 0, 1]


def test_a_late_push_is_folded_into_the_open_step_where_that_was_asked_for(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(grads(0), consistency="bsp:k=1,late=fold")
    assert step(stores[:1], 1.0) == [-1.0]
    assert stores[1].update(grads(9.0))["w"][0] == -1.0
    assert step(stores[:1], 1.0) == [-6.0], "(9 + 1) / 2 beyond -1"


def test_late_rows_of_a_table_are_dropped_and_read_as_they_are(team: MakeTeam) -> None:
    pair = team()

    def declare(worker: Cluster, rank: int) -> Table:
        return worker.store("rows", consistency="bsp:k=1").table("user", 4, SGD(lr=1.0))

    table, other = pair.each(declare)
    begun = table.pull([1, 2]).result()
    ones = np.ones((2, 4), np.float32)
    for _ in range(3):
        table.push_pull([1, 2], ones).result(20.0)
    late = other.push_pull([1, 2], 50 * ones).result(20.0)
    assert np.allclose(late, begun - 3, atol=1e-6)
    other.push_pull([1, 2], ones).result(20.0)
    assert np.allclose(table.pull([1, 2]).result(20.0), begun - 4, atol=1e-6)


def test_with_one_worker_left_it_goes_on_alone(team: MakeTeam) -> None:
    trio = team(3)
    stores = trio.stores(grads(0), consistency="bsp:k=2")
    assert step(stores[1:], 1.0, 1.0) == [-1.0, -1.0]
    for worker in trio.workers[1:]:
        worker.close()
    assert stores[0].update(grads(5.0))["w"][0] == -1.0
    assert stores[0].update(grads(5.0))["w"][0] == -6.0
