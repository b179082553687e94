"""`windlass up`: what it starts, who finds it, and that nothing outlives it, however it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
from pathlib import Path

import pytest

from tests.cli.shell import Shell, answers, line_with, wait_until

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_foreground_cluster_in_order(shell: Shell, number: signal.Signals) -> None:
    up = shell.start("up", "--servers", "1", "--json")
    record = json.loads(line_with(up, "address"))
    assert answers(record["address"])
    up.send_signal(number)
    assert up.wait(10) == 0
    shell.await_nothing_left(record["address"])
    assert not list((shell.home / "state").rglob("*.json"))


def test_a_detached_cluster_is_found_used_and_ended_by_down(shell: Shell) -> None:
    record = shell.up()
    assert stat.S_IMODE(Path(record["token_file"]).stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(record["token_file"]).parent.stat().st_mode) == 0o700
    assert os.getsid(record["pid"]) == record["pid"], "the supervisor is in the caller's session"

    reply = json.loads(shell.windlass("status", "--json").out)
    assert reply["cluster_id"] == record["cluster_id"]
    assert [member["role"] for member in reply["members"]] == ["server"]

    other = shell.up("--name", "other")
    assert other["address"] != record["address"]
    assert "stopped cluster other" in shell.windlass("down", "--name", "other").out
    assert answers(record["address"]), "ending one cluster ended the other"

    assert record["address"] in shell.windlass("down").out
    shell.await_nothing_left(record["address"])
    nothing = shell.windlass("down")
    assert (nothing.status, nothing.out) == (0, "no cluster called default is up\n")


def test_nothing_is_left_when_the_supervisor_is_killed(shell: Shell) -> None:
    record = shell.up()
    os.kill(record["pid"], signal.SIGKILL)
    shell.await_nothing_left(record["address"])
    status = shell.windlass("status")
    assert status.status == 1
    assert [line.strip().split(":")[0] for line in status.err.splitlines()] == ["windlass", "why", "try"]


def test_up_says_which_process_of_the_cluster_ended(shell: Shell) -> None:
    up = shell.start("up", "--servers", "1", "--json")
    line_with(up, "address")
    reply = json.loads(shell.windlass("status", "--json").out)
    os.kill(reply["members"][0]["pid"], signal.SIGKILL)
    _, err = up.communicate(timeout=15)
    assert up.returncode == 1
    assert "server-0 ended" in err
    shell.await_nothing_left()


def test_a_detached_start_that_fails_says_why_and_leaves_nothing(shell: Shell) -> None:
    refused = shell.windlass("up", "--detach", "--listen", "0.0.0.0:0")
    assert refused.status == 1
    assert "--insecure" in refused.err
    assert len(refused.err.splitlines()) == 3
    shell.await_nothing_left()


@pytest.mark.large
def test_down_ends_a_supervisor_that_does_not_answer_signals(shell: Shell) -> None:
    record = shell.up()
    os.kill(record["pid"], signal.SIGSTOP)
    down = shell.start("down")
    wait_until(lambda: down.poll() is not None, "down ends", 20)
    assert down.returncode == 0
    shell.await_nothing_left(record["address"])


def test_roles_started_one_by_one_make_a_cluster_and_leave_nothing(shell: Shell) -> None:
    state = shell.home / "scheduler"
    scheduler = shell.start("scheduler", "--listen", "127.0.0.1:0", "--state", str(state), "--servers", "1")
    address = said_in(scheduler, r"scheduler_started address=(\S+)")
    variables = {"WINDLASS_SCHEDULER": address, "WINDLASS_TOKEN_FILE": str(state / "token")}
    server = shell.start("server", "--join", address, "--name", "server-0", **variables)
    wait_until(lambda: "HEALTHY" in shell.windlass("status", **variables).out, "the server has joined")
    assert shell.private_folders(), "the server's socket lies elsewhere"
    for role in (server, scheduler):
        role.send_signal(signal.SIGTERM)
        assert role.wait(10) >= 0, "it did not end by itself"
    shell.await_nothing_left(address)


def said_in(process: subprocess.Popen[str], pattern: str) -> str:
    """What the first line of standard error that matches `pattern` has in its group."""
    assert process.stderr is not None
    for line in process.stderr:
        if match := re.search(pattern, line):
            return match[1]
    raise AssertionError(f"ended with {process.wait()} before it said {pattern}")
