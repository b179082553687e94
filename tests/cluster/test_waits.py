"""Who waits for whom, and how stale pushes are: what a cluster says of itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.cluster.team import Team
from windlass.cluster import Cluster

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]


def status_once(worker: Cluster, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The status of this worker's store once it holds; servers report every second."""
    deadline = time.monotonic() + 20.0
    pause = threading.Event()
    while True:
        status = worker.status()
        store: dict[str, Any] = next(store for store in status["stores"] if store["job"] == worker.job)
        store["sentences"] = status["sentences"]
        if holds(store):
            return store
        assert time.monotonic() < deadline, store
        pause.wait(0.1)


def test_status_names_the_worker_that_a_step_waits_for_its_host_and_clock(team: MakeTeam) -> None:
    pair = team()
    first, second = pair.stores({"w": np.zeros(8, np.float32)})
    pair.each(lambda _, rank: (first, second)[rank].update({"w": np.ones(8, np.float32)}))
    ticket = first.push_pull({"w": np.ones(8, np.float32)})
    store = status_once(pair[0], lambda store: store["workers"][1]["awaited_s"] > 2.0)
    assert store["workers"][0]["awaited_s"] == 0.0
    assert store["workers"][1]["clock"] == 1
    said = [sentence for sentence in store["sentences"] if f"(job {pair[0].job})" in sentence]
    assert any("store model has waited" in sentence and "worker rank 1" in sentence for sentence in said), said
    second.push_pull({"w": np.ones(8, np.float32)}).result()
    ticket.result()
    store = status_once(pair[0], lambda store: store["workers"][1]["last"] > 0 and not store["workers"][1]["awaited_s"])
    assert store["workers"][1]["waited_s"] > 2.0


def test_status_shows_at_which_staleness_pushes_were_applied(team: MakeTeam) -> None:
    pair = team()
    fast, slow = pair.stores({"w": np.zeros(8, np.float32)}, consistency="asp")
    for _ in range(5):
        fast.update({"w": np.ones(8, np.float32)})
    slow.update({"w": np.ones(8, np.float32)})
    store = status_once(pair[0], lambda store: sum(bucket["pushes"] for bucket in store["staleness"]) == 6)
    assert [(bucket["lag"], bucket["pushes"]) for bucket in store["staleness"]] == [
        (0, 2), (1, 1), (2, 1), (3, 1), (4, 1),
    ]  # fmt: skip
