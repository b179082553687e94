"""The examples run as they stand, and show what they say they show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.cluster.workers import Workers
from windlass.local_cluster import LocalCluster

pytestmark = pytest.mark.cluster

ASYNC_SGD = Path(__file__).resolve().parents[2] / "examples" / "async_sgd.py"
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
