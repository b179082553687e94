"""What commands say about a cluster that is up, and about none: tables, variables, checks, refusals, help."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tomllib

import pytest

from tests.cli.shell import ROOT, Shell
from windlass.cli.doctor import PACKAGES

HEAVY = ("numpy", "numba", "rich.console", "windlass_rules", "matplotlib")


@pytest.mark.cluster
def test_status_prints_tables_without_colour_into_a_pipe(shell_with_cluster: Shell) -> None:
    done = shell_with_cluster.windlass("status")
    assert done.status == 0
    assert "HEALTHY" in done.out
    assert "0..255" in done.out
    assert "windlass run --workers 2" in done.out
    assert "\x1b" not in done.out


@pytest.mark.cluster
def test_status_imports_nothing_heavy(shell_with_cluster: Shell) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "windlass", "status"],
        env=shell_with_cluster.environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "grpc" in imported, "the list of imports was not read"
    assert not imported & set(HEAVY)


@pytest.mark.cluster
def test_env_prints_what_a_shell_can_evaluate(shell_with_cluster: Shell) -> None:
    plain = shell_with_cluster.windlass("env", "--workers", "3", "--rank", "2", "--job", "j'ob")
    assert plain.status == 0, plain.err
    words = [shlex.split(line) for line in plain.out.splitlines()]
    assert {word[0] for word in words} == {"export"}
    read = dict(word[1].split("=", 1) for word in words)
    fields = json.loads(shell_with_cluster.windlass("env", "--json", "--job", "j'ob").out)
    assert read["WINDLASS_JOB"] == fields["WINDLASS_JOB"] == "j'ob"
    assert (read["WINDLASS_WORKERS"], read["WINDLASS_RANK"]) == ("3", "2")
    assert fields["WINDLASS_SCHEDULER"] == read["WINDLASS_SCHEDULER"]
    refused = shell_with_cluster.windlass("env", "--workers", "3", "--rank", "3")
    assert refused.status == 2
    assert "rank 3 of 3" in refused.err


@pytest.mark.cluster
def test_a_second_up_of_one_name_says_where_the_first_is(shell_with_cluster: Shell) -> None:
    address = json.loads(shell_with_cluster.windlass("env", "--json").out)["WINDLASS_SCHEDULER"]
    second = shell_with_cluster.windlass("up")
    assert second.status == 1
    assert address in second.err
    assert "windlass down" in second.err
    assert len(second.err.splitlines()) == 3


@pytest.mark.cluster
def test_a_taken_port_is_refused_with_the_process_that_has_it(shell_with_cluster: Shell) -> None:
    address = json.loads(shell_with_cluster.windlass("env", "--json").out)["WINDLASS_SCHEDULER"]
    refused = shell_with_cluster.windlass("up", "--name", "other", "--listen", address)
    assert refused.status == 1
    assert address in refused.err
    assert "windlass_scheduler" in refused.err


@pytest.mark.cluster
def test_doctor_finds_the_cluster_and_nothing_to_mend(shell_with_cluster: Shell) -> None:
    done = shell_with_cluster.windlass("doctor", "--json", https_proxy="http://127.0.0.1:9")
    findings = {finding["check"]: finding for finding in json.loads(done.out)}
    assert done.status == 0, findings
    assert "healthy" in findings["cluster"]["found"]
    assert "https_proxy" in findings["proxies"]["found"]


def test_doctor_says_how_to_mend_what_it_finds_and_fails(shell: Shell) -> None:
    command = f"ulimit -n 200; exec {shlex.quote(sys.executable)} -m windlass doctor"
    done = subprocess.run(
        ["/bin/sh", "-c", command], env=shell.environment(), capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 1
    assert "ulimit -n 1024" in done.stdout
    assert "1 to mend" in done.stdout


def test_doctors_floors_are_those_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for name, (floor, ceiling) in PACKAGES.items():
        wanted = f"{name}>={floor}" + (f",<{ceiling}" if ceiling else "")
        assert wanted in project["dependencies"]


def test_help_lists_every_command_and_the_exit_statuses(shell: Shell) -> None:
    done = shell.windlass("--help")
    assert done.status == 0
    for command in ("up", "down", "run", "status", "doctor", "env", "version", "server", "scheduler"):
        assert f"\n  {command} " in done.out
    assert "Exit status: 0 done; 1 " in done.out
    assert shell.windlass("bogus").status == 2


def test_a_traceback_is_shown_with_debug_alone(shell: Shell) -> None:
    assert "Traceback" not in shell.windlass("status").err
    assert "Traceback" in shell.windlass("--debug", "status").err
