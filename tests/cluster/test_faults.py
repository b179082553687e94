"""What dies, stops or comes late: the others go on, and nobody waits for ever."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.workers import Workers
from windlass.local_cluster import LocalCluster, child_environment

pytestmark = pytest.mark.cluster

PREAMBLE = """
import os, signal, sys
import numpy as np
import windlass as wl

def ones(value=1.0, size=8):
    return np.full(size, value, np.float32)

def say(*words):
    print(*words, flush=True)
"""

DIES_INSIDE = (
    PREAMBLE
    + """
with wl.connect() as cluster:
    store = cluster.store("model")
    params = store.init({"w": ones(0)}, optimizer=wl.optim.SGD(lr=1.0))
    store.update({"w": ones(2)}, out=params)
    if cluster.rank == 2:
        store.push({"w": ones(90)})
        store.push({"w": ones(90)})
        os.kill(os.getpid(), signal.SIGKILL)
    for _ in range(3):
        store.update({"w": ones(1 + cluster.rank)}, out=params)
    say(params["w"][0], store.clock)
"""
)


def test_a_worker_that_dies_inside_a_step_leaves_it_to_those_that_were_done(
    local: LocalCluster, job: str, tmp_path: Path
) -> None:
    with Workers(local, DIES_INSIDE, count=3, run_dir=tmp_path, job=job, finish_s=40.0) as workers:
        first, second, third = workers.finish(check=False)
    assert third.status == -signal.SIGKILL
    assert (first.out, second.out) == ("-6.5 4\n",) * 2, first.story() + second.story()


LEAVES_EARLY = (
    PREAMBLE
    + """
with wl.connect() as cluster:
    store = cluster.store("model")
    params = store.init({"w": ones(0)}, optimizer=wl.optim.SGD(lr=1.0))
    for step in range(3 if cluster.rank else 9):
        store.update({"w": ones(1)}, out=params)
    say(params["w"][0])
"""
)


def test_a_worker_that_runs_out_of_data_blocks_nobody(local: LocalCluster, job: str, tmp_path: Path) -> None:
    with Workers(local, LEAVES_EARLY, count=3, run_dir=tmp_path, job=job, finish_s=40.0) as workers:
        assert [worker.out for worker in workers.finish()] == ["-9.0\n", "-3.0\n", "-3.0\n"]


LATE = (
    PREAMBLE
    + """
with wl.connect() as cluster:
    store = cluster.store("model")
    params = store.init({"w": ones(0)}, optimizer=wl.optim.Adam(lr=0.01))
    entered = store.clock
    say("entered", entered)
    last = entered + 30 if cluster.rank == 2 else 1 << 40
    while store.clock < last:
        store.update({"w": ones(1 + store.clock % 3 + cluster.rank)}, out=params)
        roster = cluster._member.rosters[store.store_id].members
        late = [member.join_clock for member in roster if member.rank == 2]
        if late:
            last = late[0] + 30
    say("weights", params["w"].tobytes().hex())
"""
)


def test_a_worker_that_joins_late_enters_at_a_later_step_and_ends_with_the_same_weights(
    local: LocalCluster, job: str, tmp_path: Path
) -> None:
    with Workers(local, LATE, count=2, run_dir=tmp_path, job=job, finish_s=40.0) as workers:
        workers.await_text(0, "entered 0")
        workers.start(2, environ={"WINDLASS_WORKERS": "2"})
        ended = workers.finish()
    entered = int(re.findall(r"entered (\d+)", ended[2].out)[0])
    weights = {re.findall(r"weights (\w+)", worker.out)[0] for worker in ended}
    assert entered > 0
    assert len(weights) == 1, "all workers stop at the same step and see the same bits"


STOPS = (
    PREAMBLE
    + """
with wl.connect() as cluster:
    store = cluster.store("model", consistency="asp")
    params = store.init({"w": np.zeros(1_000_000, np.float32)}, optimizer=wl.optim.SGD(lr=1.0))
    gradient = {"w": np.ones(1_000_000, np.float32)}
    steps = steps_beside_a_stopped_one = 0
    while not os.path.exists(os.environ["END"]):
        store.update(gradient, out=params)
        steps += 1
        if steps == 5:
            say("under way")
        steps_beside_a_stopped_one += os.path.exists(os.environ["STOPPED"])
        if steps_beside_a_stopped_one == 50:
            say("not delayed")
    say("ends")
"""
)


@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_a_worker_stopped_in_mid_pull_delays_nobody_and_resumes(
    local: LocalCluster, job: str, tmp_path: Path, link: str
) -> None:
    environ = {"WINDLASS_LINK": link, "END": str(tmp_path / "end"), "STOPPED": str(tmp_path / "stopped")}
    with Workers(local, STOPS, count=2, run_dir=tmp_path, job=job, environ=environ, finish_s=40.0) as workers:
        workers.await_text(1, "under way")
        os.kill(workers[1].process.pid, signal.SIGSTOP)
        (tmp_path / "stopped").touch()
        workers.await_text(0, "not delayed", timeout_s=30.0)
        os.kill(workers[1].process.pid, signal.SIGCONT)
        (tmp_path / "end").touch()
        workers.finish()


# ---- servers and the scheduler -------------------------------------------------------------------------------------


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[LocalCluster]:
    """A cluster of the test's own, to be harmed."""
    with LocalCluster.start(servers=2, run_dir=tmp_path, state_dir=tmp_path / "state") as cluster:
        yield cluster


STEPS_ON = (
    PREAMBLE
    + """
with wl.connect() as cluster:
    store = cluster.store("model")
    params = store.init({f"w{i}": ones(0, 70_000) for i in range(6)}, optimizer=wl.optim.SGD(lr=1.0))
    gradient = {name: np.ones_like(value) for name, value in params.items()}
    done = 0
    while not os.path.exists(os.environ["END"]):
        try:
            store.update(gradient)
        except wl.UnavailableError as error:
            say("unavailable:", error)
            break
        done += 1
        if done == 20:
            say("under way")
    say("ends")
"""
)


def test_a_killed_server_is_named_within_the_deadline_and_nothing_hangs(fragile: LocalCluster, tmp_path: Path) -> None:
    environ = {"WINDLASS_RPC_S": "1.0", "WINDLASS_WAIT_SAID_AFTER_S": "1.0", "END": str(tmp_path / "end")}
    with Workers(fragile, STEPS_ON, count=2, run_dir=tmp_path, environ=environ, finish_s=20.0) as workers:
        workers.await_text(0, "under way")
        os.kill(fragile.pids["server-1"], signal.SIGKILL)
        for worker in workers.finish(check=False):
            assert re.search(
                r"unavailable: a server (has not been reachable|does not answer).*server\w*=.*1", worker.out
            ), worker.story()
            assert "ends" in worker.out


def test_a_server_that_stands_still_for_two_seconds_costs_nothing_but_time(
    fragile: LocalCluster, tmp_path: Path
) -> None:
    environ = {"END": str(tmp_path / "end"), "WINDLASS_WAIT_SAID_AFTER_S": "1.0"}
    with Workers(fragile, STEPS_ON, count=2, run_dir=tmp_path, environ=environ, finish_s=20.0) as workers:
        workers.await_text(0, "under way")
        os.kill(fragile.pids["server-0"], signal.SIGSTOP)
        workers.await_text(0, "has waited 1 s", timeout_s=10.0)
        os.kill(fragile.pids["server-0"], signal.SIGCONT)
        (tmp_path / "end").touch()
        for worker in workers.finish(check=False):
            assert "unavailable" not in worker.out or worker.rank, worker.story()


RESTARTED = (
    PREAMBLE
    + """
with wl.connect() as cluster:
    store = cluster.store("model")
    params = store.init({"w": ones(0)}, optimizer=wl.optim.SGD(lr=1.0))
    for step in range(1, 100_001):
        store.update({"w": ones(1)}, out=params)
        assert params["w"][0] == -step, (params["w"][0], step)
        if step == 50:
            say("under way")
        if step % 100 == 0 and cluster.broadcast(os.path.exists(os.environ["END"])):
            break
    say("ends at", step)
"""
)


def test_the_scheduler_may_be_killed_and_restarted_under_load(fragile: LocalCluster, tmp_path: Path) -> None:
    environ = {"END": str(tmp_path / "end")}
    with Workers(fragile, RESTARTED, count=2, run_dir=tmp_path, environ=environ, finish_s=30.0) as workers:
        workers.await_text(0, "under way")
        os.kill(fragile.pids["scheduler-0"], signal.SIGKILL)
        command = [sys.executable, "-P", "-m", "windlass_scheduler", "--listen", fragile.address]
        command += ["--state", str(tmp_path / "state"), "--servers", "2", "--token-file", str(fragile.token_file)]
        log = (tmp_path / "restarted.log").open("wb")
        read_fd, ready_fd = os.pipe()
        restarted = subprocess.Popen(
            [*command, "--ready-fd", str(ready_fd)],
            stdout=log,
            stderr=log,
            env=child_environment(),
            pass_fds=(ready_fd,),
        )
        os.close(ready_fd)
        try:
            with os.fdopen(read_fd) as ready:
                assert json.loads(ready.readline())["address"] == fragile.address
            (tmp_path / "end").touch()
            first, second = workers.finish()
            assert first.out == second.out
            assert "ends at" in first.out
        finally:
            restarted.kill()
            restarted.wait()
            log.close()


# ---- waits that are said -------------------------------------------------------------------------------------------

WAITS = (
    PREAMBLE
    + """
with wl.connect(wait_s=4.0) as cluster:
    store = cluster.store("model")
    params = store.init({"w": ones(0)}, optimizer=wl.optim.SGD(lr=1.0))
    if cluster.rank == 0:
        store.push_pull({"w": ones(1)}).result()
        say("never")
    signal.pause()
"""
)


def test_a_long_wait_says_for_whom_and_ends_with_an_error_that_names_it(
    local: LocalCluster, job: str, tmp_path: Path
) -> None:
    environ = {"WINDLASS_WAIT_SAID_AFTER_S": "1.0"}
    with Workers(local, WAITS, count=2, run_dir=tmp_path, job=job, environ=environ) as workers:
        workers.await_text(0, "has waited 1 s for", timeout_s=20.0)
        workers.await_text(0, "waited too long", timeout_s=20.0)
        said = workers[0].err
    assert re.search(r"push_pull of model has waited 1 s for .*worker 1 on \S+ at clock 0", said), said
    assert re.search(r"UnavailableError: push_pull of model waited too long.*awaited=worker 1", said), said


def test_a_worker_alone_at_init_says_who_is_missing(local: LocalCluster, job: str, tmp_path: Path) -> None:
    environ = {"WINDLASS_WAIT_SAID_AFTER_S": "0.5", "WINDLASS_WORKERS": "2"}
    with Workers(local, WAITS, count=1, run_dir=tmp_path, job=job, environ=environ) as workers:
        workers.await_text(0, "init of store model has waited", timeout_s=20.0)
        workers.await_text(0, "waited too long", timeout_s=20.0)
        said = workers[0].err
    assert re.search(r"has waited \d s: waiting for worker rank 1 of 2", said), said
    assert re.search(r"UnavailableError: init of store model waited too long.*rank 1 of 2", said), said
