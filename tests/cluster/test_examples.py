"""The examples run as they stand, and show what they say they show."""

from __future__ import annotations

import argparse
import re
import runpy
from pathlib import Path

import pytest

from tests.cluster.workers import Workers
from windlass.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ASYNC_SGD = EXAMPLES / "async_sgd.py"
CTR = EXAMPLES / "ctr.py"
RESUME = EXAMPLES / "resume.py"
ENDED = re.compile(r"test accuracy .*")
ROW = re.compile(r"(bsp|ssp:4|asp) +([\d.]+) ms +(\d+), (\d+) +([\d.]+)")


def test_one_slow_worker_holds_up_bsp_and_not_asp_which_pays_in_staleness(tmp_path: Path) -> None:
    with (
        LocalCluster.start(servers=2, run_dir=tmp_path) as cluster,
        Workers(cluster, ASYNC_SGD, count=3, run_dir=tmp_path, arguments=["--steps", "40"]) as workers,
    ):
        printed = workers.finish()[0].out
    rows = {mode: tuple(map(float, figures)) for mode, *figures in ROW.findall(printed)}
    assert list(rows) == ["bsp", "ssp:4", "asp"], printed
    (bsp_ms, bsp_median, bsp_most, _), (_, _, ssp_most, _), (asp_ms, _, asp_most, _) = rows.values()
    assert bsp_ms > 1.5 * asp_ms
    assert (bsp_median, bsp_most) == (0, 0)
    assert 0 < ssp_most <= 2 * 2 * 5  # two others, each within 4 steps ahead or behind and one under way
    assert asp_most > 0


def test_alone_it_says_how_to_start_it(tmp_path: Path) -> None:
    with (
        LocalCluster.start(servers=1, run_dir=tmp_path) as cluster,
        Workers(cluster, ASYNC_SGD, count=1, run_dir=tmp_path) as workers,
    ):
        (alone,) = workers.finish(check=False)
    assert alone.status == 1
    assert "windlass run --workers 3" in alone.err


def test_a_run_killed_and_started_again_ends_with_the_weights_of_one_left_alone(tmp_path: Path) -> None:
    arguments = ["--epochs", "4", "--every", "10", "--folder"]

    def end(folder: Path) -> str:
        with (
            LocalCluster.start(servers=2, run_dir=tmp_path) as cluster,
            Workers(cluster, RESUME, count=2, run_dir=tmp_path, arguments=[*arguments, str(folder)]) as workers,
        ):
            return workers.finish()[0].out

    def kill_after_a_checkpoint(folder: Path) -> None:
        with (
            LocalCluster.start(servers=1, run_dir=tmp_path) as cluster,
            Workers(cluster, RESUME, count=2, run_dir=tmp_path, arguments=[*arguments, str(folder)]) as workers,
        ):
            workers.await_text(0, "saving step 20")  # which waits until step 10 is saved
            for rank in range(2):
                workers[rank].process.kill()

    kill_after_a_checkpoint(tmp_path / "killed")
    resumed, alone = end(tmp_path / "killed"), end(tmp_path / "alone")
    assert re.search(r"resumed at step [1-9]\d*", resumed), resumed
    assert "began anew" in alone
    assert ENDED.findall(resumed) == ENDED.findall(alone) != [], (resumed, alone)


def test_clicks_are_predicted_as_well_by_four_workers_as_by_one_process(tmp_path: Path) -> None:
    rows, size, epochs = 4000, 32, 4
    arguments = f"--rows {rows} --model deepfm --size {size} --epochs {epochs}".split()
    with (
        LocalCluster.start(servers=2, run_dir=tmp_path) as cluster,
        Workers(cluster, CTR, count=4, run_dir=tmp_path, arguments=arguments) as workers,
    ):
        printed, *others = (worker.out for worker in workers.finish())
    assert others == ["", "", ""]
    found, best = map(float, re.findall(r"AUC ([\d.]+)", printed))
    plain = []
    for seed in range(5):  # first values and batches move it by some thousandths
        ctr = runpy.run_path(str(CTR))
        train, test, _ = ctr["generated"](rows)
        options = argparse.Namespace(model="deepfm", size=size, epochs=epochs, k=16, seed=seed, features=180)
        plain.append(ctr["auc"](ctr["train_plain"](options, train, 4)(*test[:2]), test[2]))
    assert min(plain) - 0.002 <= found < best, plain
