"""The demo: 2 workers and 2 servers as processes learn the digits, and learn them the same way each time."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.workers import Workers
from windlass.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits.py"
ACCURACY_MIN = 97.0

# Uneven thirds of every batch, so that the order of three sums and their weights both matter.
THREE_WORKERS = f"""
import hashlib
import runpy

import windlass as wl
from windlass.datasets import load_digits

digits = runpy.run_path({str(DIGITS)!r})
with wl.connect() as cluster:
    store = cluster.store("digits", consistency="bsp")
    params = store.init(digits["initial"](0), optimizer=wl.optim.Adam(lr=1e-2))
    for x, y in cluster.batches(*load_digits(), size=17, epochs=2):
        loss, grads = digits["loss_and_grads"](params, x, y)
        store.update(grads, out=params, weight=len(x))
    cluster.barrier("trained")
    values = store.pull().result()
    print(hashlib.sha256(b"".join(values[name].tobytes() for name in sorted(values))).hexdigest())
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster.start(servers=2, run_dir=tmp_path_factory.mktemp("cluster")) as started:
        yield started


def learn(cluster: LocalCluster, run_dir: Path, *arguments: str) -> str:
    """What worker 0 of two printed."""
    run_dir.mkdir(exist_ok=True)
    with Workers(cluster, DIGITS, count=2, run_dir=run_dir, arguments=arguments, job=run_dir.name) as workers:
        first, second = workers.finish()
    assert second.out == ""
    return first.out


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found = {record["step"]: record["loss"] for record in map(json.loads, lines) if "loss" in record}
    assert sorted(found) == list(range(1, len(found) + 1)), "steps are missing"
    return [found[step] for step in sorted(found)]


@pytest.mark.parametrize("seed", range(5))
def test_two_workers_learn_the_digits_from_any_first_weights(seed: int, cluster: LocalCluster, tmp_path: Path) -> None:
    printed = learn(cluster, tmp_path / f"seed-{seed}", "--seed", str(seed))
    accuracy, samples_s, moved_mb = re.fullmatch(
        r"test accuracy ([\d.]+)%, ([\d,]+) samples/s, ([\d,]+) MB moved by each worker\n", printed
    ).groups()  # type: ignore[union-attr]
    assert float(accuracy) >= ACCURACY_MIN
    assert int(samples_s.replace(",", "")) > 0
    assert int(moved_mb) == 71  # 920 steps of 38 KB up and down
    assert (tmp_path / f"seed-{seed}" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_two_bsp_runs_have_the_same_losses_bit_for_bit(cluster: LocalCluster, tmp_path: Path) -> None:
    printed = [learn(cluster, tmp_path / name, "--epochs", "4") for name in ("once", "again")]
    assert printed[0].split(",")[0] == printed[1].split(",")[0]
    assert losses(tmp_path / "once") == losses(tmp_path / "again")
    assert len(losses(tmp_path / "once")) == 4 * 23


def test_three_workers_end_with_the_same_weights_bit_for_bit(cluster: LocalCluster, tmp_path: Path) -> None:
    digests = set[str]()
    for job in ("once", "again"):
        with Workers(cluster, THREE_WORKERS, count=3, run_dir=tmp_path, job=f"three-{job}") as workers:
            digests.update(worker.out for worker in workers.finish())
    assert len(digests) == 1
