"""Workers and servers as processes with broken links between them: the ledger balances all the same.

The servers advertise another loopback address than they listen on; there a proxy sits and breaks links. So routing and
the workers' own reconnecting are what users have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.slow_cluster import ADVERTISED, AdvertisedCluster, listening_ports
from tests.cluster.fault_proxy import FaultProxy, Faults
from tests.cluster.workers import Worker, Workers
from windlass.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

STEPS = 120
ELEMENTS = 300_000

# Lane 2r counts worker r's pushes, lane 2r + 1 sums their numbers, every other lane sums a small integer of each push.
LEDGER = f"""
import sys
import numpy as np
import windlass as wl

mode, steps, elements = sys.argv[1], {STEPS}, {ELEMENTS}
with wl.connect(wait_s=60) as cluster:
    store = cluster.store("ledger", consistency=mode)
    params = store.init({{"w": np.zeros(elements, np.float32)}}, optimizer=wl.optim.SGD(lr=1.0), reduce="sum")
    for number in range(1, steps + 1):
        values = np.full(elements, number % 5 + 1, np.float32)
        values[:4] = 0
        values[2 * cluster.rank] = 1
        values[2 * cluster.rank + 1] = number
        store.update({{"w": values}}, out=params)
    cluster.barrier("all pushed")
    held = -store.pull().result()["w"]
    assert (held[4:] == held[4]).all(), "parts of one push were applied unequally often"
    print(mode, *held[:5].astype(int))
    cluster.barrier("all read")
"""
SMALL = sum(number % 5 + 1 for number in range(1, STEPS + 1))
BALANCED = [STEPS, STEPS * (STEPS + 1) // 2] * 2 + [2 * SMALL]


class Broken:
    """The cluster and a proxy before each server."""

    def __init__(self, cluster: LocalCluster, run_dir: Path) -> None:
        self.cluster = cluster
        self.run_dir = run_dir
        self.proxies: list[FaultProxy] = []
        for port in listening_ports(cluster):
            self.proxies.append(FaultProxy(("127.0.0.1", port), listen=(ADVERTISED, port), seed=port))

    def train(self, mode: str, job: str, *faults: Faults, script: str = LEDGER, count: int = 2) -> list[Worker]:
        """Workers through `faults`: of each server's links, or of all."""
        for at, proxy in enumerate(self.proxies):
            proxy.faults, proxy.struck = faults[at % len(faults)], 0
        environ = {"WINDLASS_LINK": "tcp"}
        with Workers(
            self.cluster, script, count=count, run_dir=self.run_dir, job=job, arguments=[mode], environ=environ
        ) as workers:
            return workers.finish()

    def struck(self) -> int:
        return sum(proxy.struck for proxy in self.proxies)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broken]:
    run_dir = tmp_path_factory.mktemp("broken")
    with AdvertisedCluster.start(servers=2, run_dir=run_dir) as cluster:
        found = Broken(cluster, run_dir)
        yield found
        for proxy in found.proxies:
            proxy.close()
        assert cluster.failure() is None


def assert_balanced(workers: list[Worker], mode: str) -> None:
    expected = " ".join([mode, *map(str, BALANCED)]) + "\n"
    assert [worker.out for worker in workers] == [expected, expected]


@pytest.mark.parametrize("mode", ["bsp", "asp", "ssp:2"])
def test_the_ledger_balances_while_every_50th_frame_is_cut(broken: Broken, mode: str) -> None:
    workers = broken.train(mode, f"cut-{mode}", Faults(cut_every=50))
    assert_balanced(workers, mode)
    assert broken.struck() >= STEPS * 8 // 50


def test_the_ledger_balances_while_bytes_are_corrupted(broken: Broken) -> None:
    """The checksum of plain TCP finds them before anything is applied."""
    workers = broken.train("bsp", "corrupt", Faults(corrupt_every=50))
    assert_balanced(workers, "bsp")
    assert broken.struck() >= STEPS * 8 // 50


def test_the_ledger_balances_while_links_end_in_the_middle_of_frames(broken: Broken) -> None:
    workers = broken.train("asp", "truncate", Faults(truncate_every=50, delay_s=0.001))
    assert_balanced(workers, "asp")
    assert broken.struck() >= STEPS * 8 // 50


REPRODUCED = """
import hashlib, sys, time
import numpy as np
import windlass as wl

slow = int(sys.argv[1])  # the worker that computes for longer than the others
with wl.connect(wait_s=60) as cluster:
    store = cluster.store("model", consistency="bsp")
    params = store.init({"w": np.zeros(200_000, np.float32), "b": np.ones(7, np.float32)}, wl.optim.Adam(lr=0.01))
    table = store.table("user", 16, wl.optim.Adagrad(lr=0.1))
    for step in range(25):
        random = np.random.default_rng([cluster.rank, step])
        ids = random.integers(0, 500, 64)
        rows = table.pull(ids).result()
        grads = {name: random.standard_normal(value.shape, np.float32) + value for name, value in params.items()}
        if cluster.rank == slow:
            time.sleep(0.002 * (step % 3))
        with store.step():
            store.push(grads, weight=1.0 + cluster.rank)
            table.push(ids, 0.1 * rows + random.standard_normal(rows.shape, np.float32), weight=1.0 + cluster.rank)
        params = store.pull(out=params).result()
    held = [params["w"], params["b"], table.pull(np.arange(500)).result()]
    print(hashlib.sha256(b"".join(array.tobytes() for array in held)).hexdigest())
"""


def test_two_bsp_runs_end_with_identical_bits_whatever_is_slow_or_breaks(broken: Broken) -> None:
    """Dense tensors and rows; a contribution's place in its step's sum is its rank, not when it came."""
    first = broken.train("0", "bits-1", Faults(), Faults(delay_s=0.003), script=REPRODUCED, count=3)
    second = broken.train("2", "bits-2", Faults(cut_every=40), Faults(), script=REPRODUCED, count=3)
    assert broken.struck() > 0
    assert len({worker.out for worker in (*first, *second)}) == 1, [worker.out for worker in (*first, *second)]
    assert len(first[0].out) == 65
