"""Several jobs on one cluster: beside each other, and what is left of them when nobody comes back."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from tests.cluster.workers import Workers
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD, Adam
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
ELEMENTS = 300_000


@pytest.fixture
def forgetful(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster that keeps nothing of a job without workers."""
    with LocalCluster.start(servers=2, run_dir=tmp_path, keep_job_s=0.0) as started:
        monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(started.token_file))
        yield started


def held_bytes(worker: wl.Cluster) -> float:
    """What all servers hold, by their latest reports."""
    return float(sum(member["figures"].get("parameter_bytes", 0.0) for member in worker.status()["members"]))


def await_held(worker: wl.Cluster, wanted: Callable[[float], bool]) -> None:
    deadline = time.monotonic() + 30.0
    while not wanted(held_bytes(worker)):
        assert time.monotonic() < deadline, f"servers hold {held_bytes(worker)} bytes"
        worker.barrier("a look")


def test_two_jobs_train_at_once_and_neither_waits_for_the_other(local: LocalCluster, token: None) -> None:
    def train(name: str, steps: int, rate: float) -> list[float]:
        with Team(local, f"beside {name}".replace(" ", "-")) as team:
            stores = team.stores({"w": np.zeros(ELEMENTS, np.float32)}, SGD(lr=rate))

            def act(_: wl.Cluster, rank: int) -> float:
                for _step in range(steps):
                    found = stores[rank].update({"w": np.ones(ELEMENTS, np.float32)})["w"]
                return float(found[0])

            return team.each(act)

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(train, "one", 20, 1.0), pool.submit(train, "two", 7, 0.5)
        assert first.result(60) == [-20.0] * 2
        assert second.result(60) == [-3.5] * 2


def test_a_job_that_nobody_comes_back_to_gives_its_memory_back_and_its_name(forgetful: LocalCluster) -> None:
    with Team(forgetful, "watcher", workers=1) as team:
        watcher = team[0]
        with Team(forgetful, "gone") as gone:
            stores = gone.stores({"w": np.full(ELEMENTS, 5.0, np.float32)}, Adam())
            for store in stores:
                store.table("user", 4, SGD(lr=1.0), init=wl.init.Zeros())
            gone.each(lambda _, rank: stores[rank].update({"w": np.ones(ELEMENTS, np.float32)}))
            await_held(watcher, lambda held: held >= 3 * 4 * ELEMENTS)
        await_held(watcher, lambda held: held == 0)
        assert [event["kind"] for event in watcher.status()["events"]].count("job_freed") == 1
        assert "gone" not in [store["job"] for store in watcher.status()["stores"]]
        with Team(forgetful, "gone", workers=1) as anew:  # with another number of workers, tensors and rule
            (store,) = anew.stores({"w": np.zeros(8, np.float32)}, SGD(lr=1.0), "asp")
            assert store.pull().result()["w"].tolist() == [0.0] * 8


def await_freed(worker: wl.Cluster) -> None:
    """Until a job's stores were given back, once."""
    deadline = time.monotonic() + 30.0
    while not (freed := [event for event in worker.status()["events"] if event["kind"] == "job_freed"]):
        assert time.monotonic() < deadline, "nothing was given back"
        worker.barrier("a look")
    assert len(freed) == 1


CRASHES = """
import os
import numpy as np
import windlass as wl

cluster = wl.connect()
store = cluster.store("model")
params = store.init({"w": np.ones(600_000, np.float32)}, wl.optim.Adam())
store.update({"w": params["w"]})
os._exit(9)
"""


def test_what_a_crashed_job_held_is_given_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quotas = ["8MiB"]
    with LocalCluster.start(servers=2, run_dir=tmp_path, keep_job_s=0.0, job_quotas=quotas) as cluster:
        monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(cluster.token_file))
        with Team(cluster, "first", workers=1) as team:
            (store,) = team.stores({"w": np.zeros(8, np.float32)}, SGD(lr=1.0))
            with Workers(cluster, CRASHES, count=2, run_dir=tmp_path, job="second") as workers:
                assert [worker.status for worker in workers.finish(check=False)] == [9, 9]
                await_freed(team[0])
                await_held(team[0], lambda held: held < 1 << 20)
            with Team(cluster, "third", workers=1) as third:
                (other,) = third.stores({"w": np.zeros(600_000, np.float32)}, Adam())
                assert other.update({"w": np.zeros(600_000, np.float32)})["w"].shape == (600_000,)
            assert store.update({"w": np.ones(8, np.float32)})["w"].tolist() == [-1.0] * 8


def test_what_a_job_left_is_there_for_who_comes_back_in_time(local: LocalCluster, token: None) -> None:
    for step, found in enumerate([-1.0, -2.0]):
        with Team(local, "a-notebook", workers=1) as team:
            (store,) = team.stores({"w": np.zeros(8, np.float32)}, SGD(lr=1.0))
            assert store.update({"w": np.ones(8, np.float32)})["w"][0] == found, step


def test_an_observer_of_a_job_that_is_over_is_told_so(forgetful: LocalCluster) -> None:
    with Team(forgetful, "watcher", workers=1) as team:
        with Team(forgetful, "over", workers=1) as over:
            over.stores({"w": np.zeros(ELEMENTS, np.float32)}, SGD(lr=1.0), "asp")
            await_held(team[0], lambda held: held > 0)
            observer = wl.connect(forgetful.address, job="over", observe=True)
            seen = observer.store("model", consistency="asp")
            assert seen.pull().result()["w"].shape == (ELEMENTS,)
        await_held(team[0], lambda held: held == 0)
        with pytest.raises(UsageError, match="deleted"):
            seen.pull().result()
        observer.close()


@pytest.fixture
def narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A cluster on which a job may hold 4 MiB, and the job "wide" any number."""
    quotas = ["4MiB", "wide=0"]
    with LocalCluster.start(servers=2, run_dir=tmp_path, keep_job_s=0.0, job_quotas=quotas) as started:
        monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(started.token_file))
        yield started


def test_a_declaration_over_quota_is_refused_with_both_values_and_changes_nothing(narrow: LocalCluster) -> None:
    half_mib = np.zeros(1 << 17, np.float32)
    with Team(narrow, "narrow", workers=1) as team:
        (store,) = team.stores({"w": half_mib}, Adam(), "asp")  # with its moments 1.5 MiB
        words = r"more than its quota \(job=narrow, bytes_held=1572864, bytes_asked=3145728, quota_bytes=4194304\)"
        with pytest.raises(UsageError, match=words):
            store.init({"more": np.zeros(1 << 18, np.float32)}, Adam())
        other = team[0].store("other", consistency="asp")
        with pytest.raises(UsageError, match="more than its quota"):  # stores of one job count together
            other.init({"more": np.zeros(1 << 18, np.float32)}, Adam())
        store.init({"more": np.zeros(1 << 18, np.float32)}, SGD(lr=1.0))  # 1 MiB: the name is still free
        with Team(narrow, "wide", workers=1) as wide:
            wide.stores({"w": np.zeros(1 << 21, np.float32)}, Adam(), "asp")
            await_held(wide[0], lambda held: held >= 24 << 20)
            jobs = {job["job"]: job for job in wide[0].status()["jobs"]}
            assert (jobs["wide"]["quota_bytes"], jobs["narrow"]["quota_bytes"]) == (0, 4 << 20)
            assert jobs["wide"]["bytes"] >= 24 << 20
            assert 2 << 20 <= jobs["narrow"]["bytes"] < 4 << 20
        await_held(team[0], lambda held: held < 4 << 20)
        store.delete(["more"])
        store.init({"again": np.zeros(1 << 18, np.float32)}, SGD(lr=1.0))


def test_rows_that_would_take_a_job_over_its_quota_are_refused_and_earlier_ones_stay(narrow: LocalCluster) -> None:
    with Team(narrow, "narrow", workers=1) as team:
        store = team[0].store("model", consistency="asp")
        table = store.table("user", 16, SGD(lr=1.0), init=wl.init.Zeros())

        def make(begin: int) -> None:
            table.push(np.arange(begin, begin + 10_000), np.ones((10_000, 16), np.float32)).result()

        made = 20_000  # of 80 B or so each
        for begin in range(0, made, 10_000):
            make(begin)

        def make_many() -> None:
            for begin in range(made, 200_000, 10_000):
                make(begin)

        with pytest.raises(UsageError, match=r"this server's part of their job's quota \(job=narrow, bytes_held="):
            make_many()
        assert (table.pull(np.arange(made)).result() == -1.0).all()
        table.push(np.arange(100), np.ones((100, 16), np.float32)).result()  # rows that are there
