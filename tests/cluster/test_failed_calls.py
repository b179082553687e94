"""Errors: raised in the call where the argument is wrong, else by the ticket, the store's next call or `close`."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from tests.cluster.workers import Workers
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD
from windlass_proto.errors import ClosedError, UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]


def ones(value: float = 1.0, size: int = 4) -> np.ndarray:
    return np.full(size, value, np.float32)


def broken(size: int = 4) -> np.ndarray:
    gradient = ones(size=size)
    gradient[size // 2] = np.nan
    return gradient


@pytest.mark.parametrize(
    ("grads", "said"),
    [
        ({"w": ones(size=5)}, r"another shape.*name=w.*got=\(5,\).*declared=\(4,\)"),
        ({"w": np.ones((4, 1), np.float32)}, "another shape"),
        ({"w": np.ones(4)}, r"another dtype.*got=float64.*declared=float32.*astype"),
        ({"weights": ones()}, "not declared"),
        ({"bias1": ones()}, "nearest=bias"),
        ({"w": None}, "not an array"),
        ({}, "no arrays"),
    ],
    ids=["shape", "rank", "dtype", "unknown", "near", "none", "empty"],
)
def test_a_wrong_gradient_raises_in_the_call_and_changes_nothing(
    team: MakeTeam, grads: dict[str, Any], said: str
) -> None:
    (alone,) = team(1).stores({"w": ones(0), "bias": ones(0)})
    for call in (alone.push, alone.push_pull, alone.update):
        with pytest.raises(UsageError, match=said):
            call(grads)
    assert alone.clock == 0
    assert alone.update({"w": ones()})["w"][0] == -1.0


def test_push_and_pull_before_init_name_init(team: MakeTeam) -> None:
    store = team(1)[0].store("fresh")
    with pytest.raises(UsageError, match=r"name=w.*store\.init"):
        store.push({"w": ones()})
    with pytest.raises(UsageError, match=r"store\.init"):
        store.pull("w")
    assert store.pull().result() == {}


def test_wrong_out_arrays_raise_in_the_call(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0), "b": ones(0)})
    fixed = ones()
    fixed.flags.writeable = False
    for out, said in (
        ({"w": ones(size=3)}, "out array has another shape"),
        ({"b": ones()}, "other names"),
        ({"w": fixed}, "cannot be written to"),
        ({"w": np.zeros(4, ">f4")}, "cannot be written to"),
        ({"w": [0.0] * 4}, "not an array"),
    ):
        with pytest.raises(UsageError, match=said):
            alone.update({"w": ones()}, out=out)
    with pytest.raises(UsageError, match=r"lacks.*missing=b"):
        alone.pull(["w", "b"], out={"w": ones()})
    assert alone.clock == 0


def test_values_arrive_in_the_out_arrays_whatever_their_layout(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": np.zeros((2, 3), np.float32), "s": np.zeros(4, np.float32)})
    out = {"w": np.empty((2, 3), np.float32, order="F"), "s": np.empty(8, np.float32)[::2]}
    returned = alone.update({"w": np.ones((2, 3), np.float32), "s": ones()}, out=out)
    assert returned["w"] is out["w"]
    assert (out["w"] == -1).all()
    assert (out["s"] == -1).all()
    part = {"s": np.empty(4, np.float32)}
    assert alone.pull("s", out=part).result()["s"] is part["s"]
    assert (part["s"] == -1).all()


# ---- non-finite gradients ------------------------------------------------------------------------------------------


def test_a_non_finite_gradient_names_tensor_and_worker_and_the_step_goes_on(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0), "good": ones(0), "v": ones(0)})
    grads = [{"w": ones(2), "good": ones(2), "v": ones(2)}, {"w": broken(), "good": ones(4), "v": ones(4)}]
    first, second = pair.errors(lambda _, rank: stores[rank].update(grads[rank]))
    assert first is None
    assert isinstance(second, UsageError)
    assert second.values["tensors"] == "w"
    assert second.values["worker"] == 1
    for values in pair.each(lambda _, rank: stores[rank].pull().result()):
        assert values["w"][0] == -2.0, "the mean is over those whose gradients count"
    assert pair.errors(lambda _, rank: stores[rank].update({"w": ones()})) == [None, None]


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_under_asp_a_non_finite_gradient_changes_nothing(team: MakeTeam, bad: float) -> None:
    (alone,) = team(1).stores({"w": ones(0)}, consistency="asp")
    with pytest.raises(UsageError, match="not finite"):
        alone.update({"w": ones(bad)})
    assert alone.update({"w": ones()})["w"].tolist() == [-1.0] * 4


# ---- tickets -------------------------------------------------------------------------------------------------------


def test_a_failed_ticket_that_nobody_waited_for_raises_at_the_stores_next_call(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)}, consistency="asp")
    ticket = alone.push({"w": broken()})
    while not ticket.done():
        pass  # the background thread finishes it
    with pytest.raises(UsageError, match="not finite"):
        alone.pull()
    assert alone.pull().result()["w"][0] == 0.0, "it raises once"


def test_a_failed_ticket_that_was_looked_at_does_not_raise_again(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)}, consistency="asp")
    ticket = alone.push({"w": broken()})
    with pytest.raises(UsageError):
        ticket.result()
    assert isinstance(ticket.exception(), UsageError)
    assert alone.pull().result()["w"][0] == 0.0


def test_a_failed_ticket_that_nobody_waited_for_raises_at_close(local: LocalCluster, token: None, job: str) -> None:
    cluster = wl.connect(local.address, job=job)
    store = cluster.store(consistency="asp")
    store.init({"w": ones(0)}, SGD(lr=1.0))
    store.push({"w": broken()})
    with pytest.raises(UsageError, match="not finite"):
        cluster.close()
    cluster.close()


def test_close_does_not_hide_the_error_that_ended_the_block(local: LocalCluster, token: None, job: str) -> None:
    with pytest.raises(ZeroDivisionError) as raised, wl.connect(local.address, job=job) as cluster:  # noqa: PT012
        store = cluster.store(consistency="asp")
        store.init({"w": ones(0)}, SGD(lr=1.0))
        store.push({"w": broken()})
        raise ZeroDivisionError
    assert "not finite" in "".join(raised.value.__notes__)


def test_close_waits_for_a_push_that_waits_for_others(local: LocalCluster, token: None, job: str) -> None:
    pair = Team(local, job)
    stores = pair.stores({"w": ones(0)})
    stores[0].push_pull({"w": ones(1)})
    closing = pair.begin(pair[0].close)
    assert stores[1].update({"w": ones(3)})["w"][0] == -2.0
    closing.result(30.0)
    pair[1].close()
    pair.__exit__(None, None, None)


def test_tickets_can_be_awaited(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)})

    async def train() -> float:
        with alone.step():
            ticket = alone.push({"w": ones()})
        await ticket
        first = alone.push_pull({"w": ones()})
        values, _ = await asyncio.gather(first, alone.pull())
        return float(values["w"][0])

    assert asyncio.run(train()) == -2.0


def test_to_wait_for_a_push_of_the_open_step_is_an_error_not_a_hang(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)})
    ticket = alone.push({"w": ones()})
    with pytest.raises(UsageError, match="only this worker can close"):
        ticket.result()
    assert alone.pull().result()["w"][0] == -1.0
    assert ticket.result() is None


def test_wait_returns_all_results_in_order(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": ones(0)}, consistency="asp")
    tickets = [alone.push_pull({"w": ones()}) for _ in range(3)]
    assert [values["w"][0] for values in wl.wait(tickets)] == [-1.0, -2.0, -3.0]
    assert all(ticket.done() for ticket in tickets)


def test_two_threads_may_wait_for_one_ticket(team: MakeTeam) -> None:
    pair = team()
    first, second = pair.stores({"w": ones(0)})
    ticket = first.push_pull({"w": ones()})
    waiting = [pair.begin(ticket.result) for _ in range(2)]
    second.update({"w": ones()})
    one, other = (future.result(30.0) for future in waiting)
    assert one["w"] is other["w"]


def test_two_threads_may_share_a_cluster_and_a_store(team: MakeTeam) -> None:
    alone = team(1)
    (shared,) = alone.stores({"w": ones(0)}, consistency="asp", name="shared")
    own = [alone.stores({"w": ones(0)}, consistency="bsp", name=f"own-{i}")[0] for i in range(2)]
    barrier = threading.Barrier(2)

    def train(number: int) -> float:
        barrier.wait(30.0)
        for _ in range(100):
            shared.push({"w": ones()})
            values = own[number].update({"w": ones()})
        return float(values["w"][0])

    running = [alone.begin(functools.partial(train, number)) for number in range(2)]
    assert [future.result(60.0) for future in running] == [-100.0, -100.0]
    assert shared.pull().result()["w"][0] == -200.0


# ---- after the end -------------------------------------------------------------------------------------------------


def test_calls_after_close_say_that_it_was_closed(local: LocalCluster, token: None, job: str) -> None:
    cluster = wl.connect(local.address, job=job)
    store = cluster.store()
    params = store.init({"w": ones(0)}, SGD(lr=1.0))
    cluster.close()
    for call in (
        lambda: store.update({"w": ones()}),
        lambda: store.push({"w": ones()}),
        store.pull,
        lambda: store.assign({"w": ones()}),
        lambda: store.delete("w"),
        lambda: store.init({"w": ones()}, SGD(lr=1.0)),
        cluster.store,
        cluster.barrier,
        cluster.status,
        lambda: cluster.log(loss=1.0),
        lambda: cluster.broadcast(1),
        lambda: cluster.batches(10, size=2),
    ):
        with pytest.raises(ClosedError, match=r"closed.*connect\(\)"):
            call()
    assert params["w"][0] == 0.0, "arrays stay usable"
    cluster.close()


FORKS = """
import os, sys, time
import numpy as np
import windlass as wl

cluster = wl.connect()
store = cluster.store()
params = store.init({"w": np.zeros(4, np.float32)}, optimizer=wl.optim.SGD(lr=1.0))
ticket = store.push({"w": np.ones(4, np.float32)})
child = os.fork()
if child == 0:
    for call in (store.pull, lambda: store.update({"w": np.ones(4, np.float32)}), cluster.barrier, ticket.result):
        try:
            call()
        except wl.ClosedError as error:
            assert "spawn" in str(error), error
        else:
            assert call is ticket.result
    cluster.close()
    sys.stdout.write("child refused\\n")
    sys.exit(0)  # with everything that Python does at an end
_, status = os.waitpid(child, 0)
assert status == 0, status
print(store.pull().result()["w"][0], store.update({"w": np.ones(4, np.float32)})["w"][0])
cluster.close()
"""


def test_a_fork_is_told_to_spawn_and_the_parent_goes_on(local: LocalCluster, job: str, tmp_path: Path) -> None:
    quiet = {"PYTHONWARNINGS": "ignore", "GRPC_VERBOSITY": "NONE"}
    with Workers(local, FORKS, count=1, run_dir=tmp_path, job=job, environ=quiet, finish_s=30.0) as workers:
        (worker,) = workers.finish()
    assert worker.out == "child refused\n-1.0 -2.0\n"
