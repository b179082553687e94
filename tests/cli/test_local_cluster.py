"""Clusters started by a program, and the record of one: their errors, their folders, their claims."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.shell import Shell, answers, line_with, wait_until
from windlass import local_cluster, recorded_cluster
from windlass.local_cluster import LocalCluster
from windlass_proto.errors import UnavailableError, UsageError
from windlass_proto.limits import UNIX_PATH_BYTES_MAX


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    return tmp_path


def record_of(name: str) -> recorded_cluster.RecordedCluster:
    return recorded_cluster.RecordedCluster(name, "127.0.0.1:1", "id", Path("token"), os.getpid(), Path("run"), 2)


@pytest.mark.cluster
def test_stop_ends_every_process_and_removes_the_private_folder(tmp_path: Path) -> None:
    with LocalCluster.start(servers=2, run_dir=tmp_path) as cluster:
        assert sorted(cluster.pids) == ["scheduler-0", "server-0", "server-1"]
        assert {path.name for path in (tmp_path / "logs").iterdir()} == {f"{name}.log" for name in cluster.pids}
        assert cluster.failure() is None
    assert not cluster.folder.exists()
    cluster.stop()


def test_a_child_that_cannot_start_is_reported_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="beyond this host") as caught:
        LocalCluster.start(run_dir=tmp_path, listen="0.0.0.0:0")
    assert caught.value.fact == "scheduler-0 ended"
    assert caught.value.values["status"] == 2


def test_a_cluster_without_servers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="servers=0"):
        LocalCluster.start(servers=0, run_dir=tmp_path)


def test_the_private_folder_is_short_enough_for_sockets_whatever_the_temporary_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    folder = local_cluster.private_folder()
    folder.rmdir()
    assert len(f"{folder}/sockets/server-1023.sock".encode()) <= UNIX_PATH_BYTES_MAX


@pytest.mark.cluster
def test_a_program_beside_a_module_called_like_one_of_pythons_still_starts_a_cluster(shell: Shell) -> None:
    shell.script("raise RuntimeError('the wrong queue')", "queue.py")
    shell.script(
        "import sys; here = sys.path.pop(0)\n"
        "import queue, pathlib\n"
        "from windlass.local_cluster import LocalCluster\n"
        "sys.path.insert(0, here)\n"
        "LocalCluster.start(servers=1, run_dir=pathlib.Path('run')).stop(); print('stopped')\n"
    )
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=shell.cwd,
        env=shell.environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "stopped\n", done.stderr
    shell.await_nothing_left()


FORKS = """
import os, pathlib, signal
from windlass.local_cluster import LocalCluster
cluster = LocalCluster.start(servers=1, run_dir=pathlib.Path("run"))
child = os.fork()
if child == 0:
    signal.pause()
print(cluster.address, child, flush=True)
signal.pause()
"""


@pytest.mark.cluster
def test_a_forked_child_does_not_keep_a_cluster_alive_after_its_owner_was_killed(shell: Shell) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", shell.script(FORKS)],
        cwd=shell.cwd,
        env=shell.environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        address, child = line_with(owner, ":").split()
        assert answers(address)
        owner.kill()
        wait_until(lambda: shell.processes() == [int(child)], "all but the forked child end")
        wait_until(lambda: not shell.private_folders(), "the private folder goes")
        assert not answers(address)
        os.kill(int(child), signal.SIGKILL)


def test_one_name_has_one_claim(state: Path) -> None:
    claim = recorded_cluster.Claim("mine")
    try:
        claim.record(record_of("mine"))
        with pytest.raises(UnavailableError, match="is running"):
            recorded_cluster.Claim("mine")
        assert recorded_cluster.read("mine") == record_of("mine")
    finally:
        claim.release()
    assert recorded_cluster.read("mine") is None
    recorded_cluster.Claim("mine").release()


def test_a_record_whose_owner_is_gone_is_not_believed_and_removed(state: Path) -> None:
    path = recorded_cluster.folder() / "cluster-default.json"
    path.write_text(record_of("default").to_json(), encoding="utf-8")
    assert recorded_cluster.find() is None
    recorded_cluster.Claim("default").release()
    path.write_text(record_of("default").to_json(), encoding="utf-8")
    assert recorded_cluster.read() is None
    assert not path.exists()


def test_a_record_of_a_living_owner_whose_scheduler_is_away_is_not_found(state: Path) -> None:
    claim = recorded_cluster.Claim("default")
    try:
        claim.record(record_of("default"))
        assert recorded_cluster.read() is not None
        assert recorded_cluster.find() is None
    finally:
        claim.release()


@pytest.mark.parametrize("name", ["", "../up", "a b", "x" * 65])
def test_a_name_that_would_leave_the_folder_is_refused(state: Path, name: str) -> None:
    with pytest.raises(UsageError, match="no name for a cluster"):
        recorded_cluster.read(name)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"name": "x"}', b'{"pid": "x"}', b"0" * 70_000])
def test_a_record_that_is_none_is_nothing(raw: bytes) -> None:
    assert recorded_cluster.from_json_untrusted(raw) is None
