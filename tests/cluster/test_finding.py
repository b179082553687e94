"""Finding the cluster: in which order, what is refused, what an unreachable one says, and that private ones end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import windlass as wl
from windlass.finding import find, patience, place
from windlass.local_cluster import LocalCluster, child_environment
from windlass_proto.control_link import ControlLink
from windlass_proto.errors import UnavailableError, UsageError
from windlass_proto.gen import control_pb2 as pb

pytestmark = pytest.mark.cluster
LAUNCHERS = (
    "WINDLASS_RANK",
    "WINDLASS_JOB",
    "WINDLASS_WORKERS",
    "KUBERNETES_SERVICE_HOST",
    "SLURM_PROCID",
    "OMPI_COMM_WORLD_RANK",
)


@pytest.fixture(autouse=True)
def nobody_launched_us(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("WINDLASS_", "SLURM_", "OMPI_", "KUBERNETES_")) and name != "WINDLASS_CHECK_BUFFERS":
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state-home"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_private_cluster_is_refused_where_a_launcher_left_its_traces(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "1")
    for servers in (None, 2):
        with pytest.raises(UsageError, match=rf"variable={name}.*value=1.*WINDLASS_SCHEDULER"):
            wl.connect(servers=servers)


def test_the_argument_comes_before_the_environment(local: LocalCluster, tmp_path: Path) -> None:
    environ = {"WINDLASS_SCHEDULER": "127.0.0.1:2", "WINDLASS_TOKEN_FILE": str(local.token_file)}
    argued = find("127.0.0.1:1", None, tmp_path, environ)
    assert (argued.address, argued.found_by) == ("127.0.0.1:1", "the argument of connect()")
    found = find(None, None, tmp_path, environ)
    assert (found.address, found.found_by) == ("127.0.0.1:2", "$WINDLASS_SCHEDULER")


def test_an_address_without_a_token_says_which_variable_to_set(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no token.*WINDLASS_TOKEN_FILE"):
        find("127.0.0.1:1", None, tmp_path, {})


@pytest.mark.parametrize(
    ("environ", "rank", "workers"),
    [
        ({"WINDLASS_RANK": "3", "WINDLASS_WORKERS": "8"}, 3, 8),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4"}, 2, 4),
        ({"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, 1, 2),
        ({"JOB_COMPLETION_INDEX": "5", "WINDLASS_WORKERS": "6"}, 5, 6),
        ({}, None, 1),
    ],
)
def test_ranks_of_launchers_are_understood(environ: dict[str, str], rank: int | None, workers: int) -> None:
    found = place(None, None, environ)
    assert (found.rank, found.workers) == (rank, workers)


def test_environment_values_that_are_no_numbers_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"variable=WINDLASS_RANK.*value=first"):
        place(None, None, {"WINDLASS_RANK": "first"})
    with pytest.raises(UsageError, match="WINDLASS_RPC_S is not a number of seconds"):
        patience(10.0, {"WINDLASS_RPC_S": "soon"})
    with pytest.raises(UsageError, match="wait_s"):
        patience(-1.0, {})


def test_an_unreachable_scheduler_is_named_in_time_with_the_setting_that_named_it(
    local: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(local.token_file))
    monkeypatch.setenv("WINDLASS_RPC_S", "0.7")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        monkeypatch.setenv("WINDLASS_SCHEDULER", address)
        began = time.monotonic()
        with pytest.raises(UnavailableError, match=rf"address={address}.*address_from=\$WINDLASS_SCHEDULER"):
            wl.connect()
    assert time.monotonic() - began < 5.0


def test_a_stranger_on_the_schedulers_port_is_no_cluster(local: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(local.token_file))
    monkeypatch.setenv("WINDLASS_RPC_S", "0.7")
    silent = socket.create_server(("127.0.0.1", 0))
    with silent, pytest.raises(UnavailableError, match="argument of connect"):
        wl.connect(f"127.0.0.1:{silent.getsockname()[1]}")


def test_another_token_is_refused_in_words(
    local: LocalCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = tmp_path / "token"
    other.write_text("another secret of another cluster")
    other.chmod(0o600)
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(other))
    with pytest.raises(UsageError, match="token is another one"):
        wl.connect(local.address)


def test_another_protocol_version_is_refused_with_both_ranges(local: LocalCluster) -> None:
    with ControlLink(local.address, local.token_file.read_bytes()) as control, pytest.raises(UsageError) as refused:
        control.join(pb.JoinRequest(role=pb.ROLE_WORKER, protocol_min=98, protocol_max=99, job="future"))
    assert "98" in str(refused.value)
    assert "1" in str(refused.value)


def test_a_taken_rank_is_refused(local: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(local.token_file))
    monkeypatch.setenv("WINDLASS_RANK", "0")
    with wl.connect(local.address, job="ranked", workers=2), pytest.raises(UsageError, match=r"rank 0.*taken"):
        wl.connect(local.address, job="ranked", workers=2)


def test_a_port_in_use_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UnavailableError, match=rf"(?s)scheduler-0 ended.*{port}"):
            LocalCluster.start(servers=1, run_dir=tmp_path, listen=f"127.0.0.1:{port}")


def test_a_second_cluster_on_the_machine_is_apart(local: LocalCluster, capfd: pytest.CaptureFixture[str]) -> None:
    with wl.connect(servers=2) as private:
        assert private.num_servers == 2
        store = private.store()
        store.init({"w": np.zeros(2, np.float32)}, wl.optim.SGD(lr=1.0))
        assert store.update({"w": np.ones(2, np.float32)})["w"][0] == -1.0
        assert [entry["store"] for entry in private.status()["stores"]] == ["default"]
    assert "a private cluster of 2 server(s)" in capfd.readouterr().err


ALONE = """
import time, sys
import windlass as wl
cluster = wl.connect(servers=1)
print(" ".join(str(pid) for pid in cluster._private.pids.values()), flush=True)
time.sleep(600)
"""


def test_a_private_cluster_ends_with_its_parent_even_when_that_is_killed(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ALONE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=child_environment()
    )
    with parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        with watching(pids) as ends:
            parent.send_signal(signal.SIGKILL)
            parent.wait()
            assert len(pids) == 2
            assert ends(15.0)


@contextmanager
def watching(pids: list[int]) -> Iterator[Callable[[float], bool]]:
    """A function that waits until all of `pids` have ended."""
    import select

    descriptors = [os.pidfd_open(pid) for pid in pids]

    def ends(timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        return all(select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0] for fd in descriptors)

    try:
        yield ends
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
