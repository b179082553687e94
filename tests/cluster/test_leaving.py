"""Workers that leave in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.workers import Workers
from windlass.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

TRAINS = """
import numpy as np
import windlass as wl

with wl.connect() as cluster:
    store = cluster.store("model")
    params = store.init({"w": np.zeros(8, np.float32)}, optimizer=wl.optim.SGD(lr=0.5))
    for step in range(1, 31):
        store.update({"w": np.ones(8, np.float32)}, out=params)
        cluster.log(loss=float(step + 2 * cluster.rank))
    print(float(params["w"][0]))
"""


# Worker 0 ends while worker 1 has most of its steps before it.
LEAVES_FIRST = """
import numpy as np
import windlass as wl

with wl.connect() as cluster:
    store = cluster.store("model", consistency="asp")
    store.init({"w": np.zeros(8, np.float32)}, optimizer=wl.optim.SGD(lr=0.5))
    if cluster.rank == 1:
        cluster.barrier("worker 0 is done")
    for step in range(1, 31):
        store.update({"w": np.ones(8, np.float32)})
        cluster.log(loss=float(step + 2 * cluster.rank))
    if cluster.rank == 0:
        cluster.barrier("worker 0 is done")
"""


def logged_losses(run_dir: Path) -> dict[int, float]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = [(record["step"], record["loss"]) for record in map(json.loads, lines)]
    assert len(dict(found)) == len(found), "a step was written twice"
    return dict(found)


def test_a_worker_that_leaves_in_order_complains_of_nothing_and_its_last_steps_count(tmp_path: Path) -> None:
    with (
        LocalCluster.start(servers=1, run_dir=tmp_path) as cluster,
        Workers(cluster, TRAINS, count=2, run_dir=tmp_path) as workers,
    ):
        first, second = workers.finish()
    assert (first.out, second.out) == ("-15.0\n", "-15.0\n")
    assert first.err.count("\n") == 1, first.err  # which cluster
    assert second.err == ""
    assert logged_losses(tmp_path) == {step: step + 1.0 for step in range(1, 31)}


def test_worker_0_leaves_no_hole_where_the_others_are_far_behind(tmp_path: Path) -> None:
    with (
        LocalCluster.start(servers=1, run_dir=tmp_path) as cluster,
        Workers(cluster, LEAVES_FIRST, count=2, run_dir=tmp_path) as workers,
    ):
        workers.finish()
    found = logged_losses(tmp_path)
    assert list(found) == list(range(1, 31))
    assert all(step <= loss <= step + 1 for step, loss in found.items())  # its own, or the mean of both
