"""Workers that leave in order."""

from __future__ import annotations

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


def test_a_worker_that_leaves_in_order_complains_of_nothing(tmp_path: Path) -> None:
    with LocalCluster.start(servers=1, run_dir=tmp_path) as cluster:
        with Workers(cluster, TRAINS, count=2, run_dir=tmp_path) as workers:
            first, second = workers.finish()
    assert (first.out, second.out) == ("-15.0\n", "-15.0\n")
    assert first.err.count("\n") == 1, first.err  # which cluster
    assert second.err == ""
