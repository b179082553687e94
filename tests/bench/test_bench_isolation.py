"""The bench neither finds, joins nor ends a cluster of the user's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks.child import Child
from benchmarks.isolation import MOVED, moved_into, own_folder

PRINT_ENVIRONMENT = "import json, os; print(json.dumps(dict(os.environ)))"


def environment_of_child(log: Path, env: dict[str, str]) -> dict[str, str]:
    with Child("environment", [sys.executable, "-c", PRINT_ENVIRONMENT], log, env) as child:
        seen: dict[str, str] = json.loads(child.line(30.0))
        return seen


def test_a_child_does_not_inherit_the_job_of_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_SCHEDULER", "127.0.0.1:1")
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", "/nowhere")
    seen = environment_of_child(tmp_path / "log", {"WINDLASS_LINK": "tcp"})
    assert {name for name in seen if name.startswith("WINDLASS_")} == {"WINDLASS_LINK"}


def test_record_and_sockets_are_looked_for_in_the_bench_s_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in MOVED:
        monkeypatch.setenv(name, "/of/the/user")
    with own_folder() as folder:
        seen = environment_of_child(tmp_path / "log", moved_into(folder))
        assert [seen[name] for name in MOVED] == [str(folder)] * len(MOVED)
    assert not folder.exists()


def test_a_cluster_recorded_for_the_user_is_not_seen_from_the_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded_cluster = pytest.importorskip("windlass.recorded_cluster")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    users = recorded_cluster.Claim("default")
    try:
        with own_folder() as folder:
            for name, value in moved_into(folder).items():
                monkeypatch.setenv(name, value)
            benchs = recorded_cluster.Claim("default")  # refused while the two share a record
            benchs.release()
    finally:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
        users.release()
