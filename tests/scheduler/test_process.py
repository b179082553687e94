"""The scheduler as a process: says when it is ready, refuses in one line, never outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from windlass_proto.control_link import ControlLink

ROOT = Path(__file__).parents[2]
TOKEN = b"process-token"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_bytes(TOKEN + b"\n")
    path.chmod(0o600)
    return path


def command(tmp_path: Path, token_file: Path, *more: str) -> list[str]:
    state = str(tmp_path / "state")
    return [sys.executable, "-m", "windlass_scheduler", "--state", state, "--token-file", str(token_file), *more]


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "proto"), str(ROOT / "scheduler")])
    return {**os.environ, "PYTHONPATH": path, "http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}


class Started:
    def __init__(self, process: subprocess.Popen[bytes], ready: dict[str, str], parent_fd: int) -> None:
        self.process = process
        self.ready = ready
        self.parent_fd = parent_fd


@contextmanager
def started(tmp_path: Path, token_file: Path, *more: str) -> Iterator[Started]:
    ready_read, ready_write = os.pipe()
    parent_read, parent_write = os.pipe()
    process = subprocess.Popen(
        [
            *command(tmp_path, token_file, "--listen", "127.0.0.1:0", *more),
            *("--ready-fd", str(ready_write), "--parent-fd", str(parent_read)),
        ],
        pass_fds=(ready_write, parent_read),
        env=environment(),
        stderr=subprocess.PIPE,
    )
    os.close(ready_write)
    os.close(parent_read)
    with os.fdopen(ready_read) as ready:
        line = ready.readline()
    try:
        yield Started(process, json.loads(line), parent_write)
    finally:
        os.close(parent_write)
        _, said = process.communicate(timeout=10)
        assert b"Traceback" not in said, said.decode()


def refused(tmp_path: Path, token_file: Path, *more: str) -> str:
    """The one line a scheduler that cannot start leaves, with exit status 2."""
    done = subprocess.run(
        command(tmp_path, token_file, *more), env=environment(), capture_output=True, timeout=20, check=False
    )
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, len(lines)) == (2, 1), done.stderr.decode()
    return lines[0]


@pytest.mark.cluster
def test_a_scheduler_serves_behind_a_proxy_variable_and_stops_on_sigterm(tmp_path: Path, token_file: Path) -> None:
    with started(tmp_path, token_file) as scheduler:
        with ControlLink(scheduler.ready["address"], TOKEN) as link:
            assert link.status().cluster_id == scheduler.ready["cluster_id"]
        address = scheduler.ready["address"]
        assert f"port {address.rpartition(':')[2]} on 127.0.0.1 cannot be bound" in refused(
            tmp_path / "other", token_file, "--listen", address
        )
        assert "another scheduler runs on this state folder" in refused(tmp_path, token_file)
        scheduler.process.send_signal(signal.SIGTERM)
        assert scheduler.process.wait(10) == 0


@pytest.mark.cluster
def test_a_scheduler_ends_with_its_parents_pipe(tmp_path: Path, token_file: Path) -> None:
    with started(tmp_path, token_file) as scheduler:
        assert scheduler.process.poll() is None
    assert scheduler.process.returncode == 0


@pytest.mark.cluster
def test_a_scheduler_that_cannot_start_says_why_in_one_line(tmp_path: Path, token_file: Path) -> None:
    assert "--insecure" in refused(tmp_path, token_file, "--listen", "0.0.0.0:0")
    assert "power of two" in refused(tmp_path, token_file, "--vshards", "100")
    token_file.chmod(0o640)
    line = refused(tmp_path, token_file)
    assert "mode=0640" in line
    assert "chmod 600" in line
