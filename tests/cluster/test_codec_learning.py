"""Learning through codecs on a real cluster, 2 servers and 2 workers: as good as without, for tensors and for rows."""

from __future__ import annotations

import functools
import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from tests.cluster.workers import Workers
from tests.codecs.test_convergence import CODECS
from windlass.datasets import load_digits
from windlass.local_cluster import LocalCluster
from windlass_proto.codec_specs import CodecSpec

pytestmark = pytest.mark.cluster

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
EPOCHS = 10
BATCH = 32


@functools.cache
def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def accuracy(team: Team, codec: CodecSpec | None) -> float:
    """On the digits' test rows."""
    x, y = load_digits()
    test = np.arange(len(x)) % 5 == 0
    digits = example("digits.py")

    def work(worker: wl.Cluster, _: int) -> dict[str, np.ndarray]:
        store = worker.store("digits", consistency="bsp")
        params = store.init(digits["initial"](0), wl.optim.SGD(lr=0.2), codec=codec)
        for batch_x, batch_y in worker.batches(x[~test], y[~test], size=BATCH, epochs=EPOCHS):
            store.update(digits["loss_and_grads"](params, batch_x, batch_y)[1], out=params, weight=len(batch_x))
        worker.barrier("trained")
        found: dict[str, np.ndarray] = store.pull().result()
        return found

    found = team.each(work)
    assert all(np.array_equal(found[0][name], found[1][name]) for name in found[0])
    return float((digits["forward"](found[0], x[test])[1].argmax(axis=1) == y[test]).mean())


@pytest.fixture(scope="module")
def uncompressed(local: LocalCluster) -> Callable[[], float]:
    def learn() -> float:
        with Team(local, "digits-plain") as team:
            return accuracy(team, None)

    return functools.cache(learn)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_digits_are_learned_to_two_percent_as_well_as_without_a_codec(
    codec: CodecSpec, local: LocalCluster, token: None, job: str, uncompressed: Callable[[], float]
) -> None:
    baseline = uncompressed()
    with Team(local, job) as team:
        found = accuracy(team, codec)
    assert baseline >= 0.94
    assert found >= baseline - 0.02


def test_clicks_are_predicted_as_well_from_rows_that_travel_encoded(
    local: LocalCluster, job: str, tmp_path: Path
) -> None:
    found = {}
    for codec in example("ctr.py")["CODECS"]:
        arguments = f"--rows 3000 --size 64 --epochs 4 --codec {codec}".split()
        with Workers(
            local, EXAMPLES / "ctr.py", count=2, run_dir=tmp_path / codec, arguments=arguments, job=f"{job}-{codec}"
        ) as workers:
            printed = workers.finish()[0].out
        found[codec] = float(re.findall(r"test AUC ([\d.]+)", printed)[0])
    assert found["none"] > 0.75, found
    assert all(abs(auc - found["none"]) < 0.002 for auc in found.values()), found
