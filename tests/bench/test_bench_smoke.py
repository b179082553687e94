"""The benchmarks at smoke size: they run, they end, and what they write can be read."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.processor_time import tree
from benchmarks.shapes import resnet50_shapes

REPOSITORY = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "benchmarks"]
RUN_S = 60.0


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=REPOSITORY, capture_output=True, text=True, timeout=RUN_S, check=False
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_list_names_every_case_with_a_sentence() -> None:
    done = bench("--list")
    assert done.returncode == 0, done.stderr
    named = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert {"floors", "roundtrip", "pushpull", "model", "aggregate", "kernels"} <= set(named)
    assert {"codecs", "sparse", "overlap", "start", "digits", "engine", "engine-memory"} <= set(named)
    assert {"curve-workers", "curve-servers", "curve-bytes", "curve-tensors"} <= set(named)


def test_an_unknown_case_is_refused_with_the_known_ones() -> None:
    done = bench("--only", "flors")
    assert done.returncode == 2
    assert "'flors'" in done.stderr
    assert "floors" in done.stderr


def test_floors_are_measured_and_written_with_machine_versions_and_command(tmp_path: Path) -> None:
    out = tmp_path / "bench.jsonl"
    done = bench("--quick", "--only", "floors", "--rounds", "2", "--round-seconds", "0.01", "--out", str(out))
    assert done.returncode == 0, done.stderr
    run, *rows = lines(out)
    assert run["kind"] == "run"
    assert run["cores"] == os.cpu_count()
    assert run["versions"]["numpy"]
    assert run["command"][-1] == str(out)
    contenders = {row["contender"] for row in rows}
    assert contenders == {"floor: framed echo tcp", "floor: framed echo unix", "floor: memcpy"}
    assert all(row["not_measured"] is None for row in rows)
    assert all(0 < row["figures"]["p50_s"] <= row["figures"]["p99_s"] for row in rows)
    assert all(row["figures"]["gb_per_s"] > 0 for row in rows if row["setting"] == "1 MiB")


def test_an_interrupted_run_keeps_its_rows_and_leaves_no_process(tmp_path: Path) -> None:
    out = tmp_path / "bench.jsonl"
    argv = [*COMMAND, "--only", "floors", "--round-seconds", "0.01", "--rounds", "50", "--out", str(out)]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert any("memcpy" in line for line in run.stdout), "no row was printed"
        below = tree([run.pid])
        run.send_signal(signal.SIGTERM)
        assert run.wait(RUN_S) == 130
    assert len(below) == 3, "two echo servers run below the bench"
    assert not [pid for pid in below if Path(f"/proc/{pid}").exists()]
    assert len(lines(out)) >= 4


def test_children_end_when_the_bench_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "bench.jsonl"
    argv = [*COMMAND, "--only", "floors", "--round-seconds", "0.01", "--rounds", "50", "--out", str(out)]
    with subprocess.Popen(argv, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert any("memcpy" in line for line in run.stdout), "no row was printed"
        echoes = [pid for pid in tree([run.pid]) if pid != run.pid]
        run.kill()
        run.wait(RUN_S)
    deadline = time.monotonic() + RUN_S
    while any(_is_running(pid) for pid in echoes):
        assert time.monotonic() < deadline, "an echo server outlived the bench"


@pytest.mark.parametrize("quantity", ["tensors", "parameters"])
def test_resnet50_has_its_published_size(quantity: str) -> None:
    shapes = resnet50_shapes()
    counted = {"tensors": len(shapes), "parameters": sum(map(math.prod, shapes))}
    assert counted[quantity] == {"tensors": 161, "parameters": 25_557_032}[quantity]


def _is_running(pid: int) -> bool:
    """Whether it exists and is more than an entry that waits for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
