"""The classic program: one worker, four workers and two devices learn along the same curve."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from tests.cluster.workers import Workers
from windlass.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

MNIST_CNN = Path(__file__).resolve().parents[2] / "examples" / "mnist_cnn.py"
EPOCHS = 2  # of 23 steps


def learn(cluster: LocalCluster, run_dir: Path, workers: int, *arguments: str) -> tuple[str, list[float]]:
    """What worker 0 printed, and the loss of each step over all workers."""
    run_dir.mkdir()
    given = ["--epochs", str(EPOCHS), *arguments]
    with Workers(cluster, MNIST_CNN, count=workers, run_dir=run_dir, arguments=given, job=run_dir.name) as started:
        printed, *others = (worker.out for worker in started.finish())
    assert others == [""] * (workers - 1)
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    losses = {record["step"]: record["loss"] for record in map(json.loads, lines) if "loss" in record}
    assert sorted(losses) == list(range(1, len(losses) + 1)), "steps are missing"
    return printed, [losses[step] for step in sorted(losses)]


def test_workers_and_devices_learn_along_the_curve_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # more of them wait for each other where tests run side by side
    with LocalCluster.start(servers=2, run_dir=tmp_path) as cluster:
        printed, alone = learn(cluster, tmp_path / "alone", 1)
        _, four = learn(cluster, tmp_path / "four", 4)
        _, two_devices = learn(cluster, tmp_path / "devices", 1, "--devices", "cpu:0,cpu:1")
    accuracies = [float(found) for found in re.findall(r"epoch \d: test accuracy ([\d.]+)%", printed)]
    assert len(accuracies) == EPOCHS
    assert accuracies[-1] > 80
    assert alone[-1] < alone[0] / 4
    # Sums in another order: 1e-7 at first, which grows with the steps and stays small against what a step changes.
    for other in (four, two_devices):
        np.testing.assert_allclose(other[:10], alone[:10], rtol=1e-5)
        np.testing.assert_allclose(other, alone, rtol=1e-2, atol=1e-4)
