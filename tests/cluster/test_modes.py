"""Another consistency mode while training: from one step on every server, together with lr, with nothing lost."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest

from tests.cluster.team import Team
from tests.cluster.test_waits import status_once
from windlass.optim import DCASGD, SGD
from windlass.store import Store
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]
MODES = ("ssp:1", "asp", "bsp", "ssp:1")


def ones(value: float = 1.0) -> dict[str, np.ndarray]:
    return {"w": np.full(300_000, value, np.float32)}


def heard(store: Store, mode: str) -> None:
    """Wait until this worker has heard of `mode`; the scheduler's word is on its way."""
    pause = threading.Event()
    while str(store.modes.newest()) != mode:
        assert not pause.wait(0.01)


def test_a_straggler_under_bsp_is_waited_for_no_more_after_a_change_to_asp(
    team: MakeTeam, capfd: pytest.CaptureFixture[str]
) -> None:
    pair = team()
    fast, slow = pair.stores(ones(0), SGD(lr=1.0))
    pair.each(lambda _, rank: (fast, slow)[rank].update(ones()))
    since = fast.set(consistency="asp", lr=0.5)
    assert since == 1
    assert "2 workers make 2 updates where bsp made one" in capfd.readouterr().err
    for step in range(3):
        assert fast.update(ones())["w"][0] == -1.0 - 0.5 * (step + 1), "alone, and with the lr that came with the mode"
    heard(slow, "asp")
    assert (fast.consistency, slow.consistency) == ("asp", "asp")
    assert slow.update(ones())["w"][0] == -3.0
    store = status_once(pair[0], lambda store: store["consistency"] == "asp")
    assert [mode["clock"] for mode in store["roster"]["modes"]] == [1]


def test_workers_far_apart_go_on_with_the_first_bsp_step_at_once(team: MakeTeam) -> None:
    pair = team()
    fast, slow = pair.stores(ones(0), SGD(lr=1.0), consistency="asp")
    for _ in range(20):
        fast.update(ones())
    since = slow.set(consistency="bsp", lr=10.0)
    assert since >= 20
    heard(fast, "bsp")
    read = pair.each(lambda _, rank: float((fast, slow)[rank].update(ones(2.0 * rank))["w"][0]))
    assert read == [-20.0 - 10.0] * 2, "one update of the mean, with the new lr"
    assert fast.clock == slow.clock == since + 1


def test_a_parked_pull_is_answered_once_the_mode_lets_it(team: MakeTeam) -> None:
    pair = team()
    fast, slow = pair.stores(ones(0), SGD(lr=1.0), consistency="ssp:1")
    for _ in range(1):
        fast.update(ones())
    parked = fast.push_pull(ones())
    with pytest.raises(TimeoutError):
        parked.result(0.2)
    slow.set(consistency="asp")
    slow.push_pull(ones())
    assert parked.result(20.0)["w"][0] <= -2.0


def test_every_mode_follows_every_other_and_each_push_is_applied_once(team: MakeTeam) -> None:
    """Workers train without pause while the mode changes; strict bsp averages, so the sums are of "sum"."""
    pair = team()
    stores = pair.stores(ones(0), SGD(lr=1.0), reduce="sum")
    done = threading.Event()
    late = [0, 0]

    def train(_: object, rank: int) -> int:
        steps = 0
        while not done.is_set() or steps < 5:
            stores[rank].update(ones())
            steps += 1
        return steps

    training = pair.begin(lambda: pair.each(train))
    changer = pair.join()
    with changer:
        store = changer.store("model", consistency="bsp")
        store.init(ones(0), SGD(lr=1.0), reduce="sum")
        for mode in MODES:
            began = store.set(consistency=mode)
            while store.clock <= began:
                late[0] += 1
                store.update(ones())
    done.set()
    steps = training.result(60.0)
    held = -stores[0].pull().result()["w"][0]
    assert held == sum(steps) + late[0], (held, steps, late)


def test_a_worker_that_joins_later_is_told_the_live_mode(team: MakeTeam) -> None:
    pair = team()
    first, second = pair.stores(ones(0), SGD(lr=1.0))
    pair.each(lambda _, rank: (first, second)[rank].update(ones()))
    first.set(consistency="asp")
    first.update(ones())
    third = pair.join().store("model", consistency="bsp")
    third.init(ones(0), SGD(lr=1.0))
    assert third.consistency == "asp"
    third.update(ones())
    with pytest.raises(UsageError, match="different consistency"):
        pair.join().store("model", consistency="asp")


def test_all_workers_may_set_the_mode_and_it_is_one_change(team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores(ones(0), SGD(lr=1.0))
    since = pair.each(lambda _, rank: stores[rank].set(consistency="ssp:2", lr=0.1))
    assert since == [0, 0] or since[0] == since[1]
    assert [str(store.modes.newest()) for store in stores] == ["ssp:2"] * 2
    assert len(stores[0].modes.steps().changes) == 1


def test_what_a_rule_cannot_do_and_what_is_no_mode_is_refused_in_the_call(team: MakeTeam) -> None:
    (store,) = team(1).stores(ones(0), DCASGD(lr=1.0), consistency="asp")
    with pytest.raises(UsageError, match="gradients that come late"):
        store.set(consistency="bsp")
    with pytest.raises(UsageError, match="ssp:N"):
        store.set(consistency="psb")
    with pytest.raises(UsageError, match="nothing to change"):
        store.set()
    assert store.consistency == "asp"
