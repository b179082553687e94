"""The engine's case: its fronts train alike, peers train the same layers, and one that is absent costs its row."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.case import Extent
from benchmarks.cases.engine import FRONTS, engine, planned
from benchmarks.engine_models import MODELS, values_of
from benchmarks.engine_worker import FRONTS as STEPS
from benchmarks.engine_worker import Trained
from benchmarks.peers import environments, torch_models
from benchmarks.rounds import Pace


@pytest.mark.parametrize("name", ["mlp", "transformer", "fm"])  # the others differ in ops, which have tests
def test_the_fronts_train_alike(name: str) -> None:
    after = {}
    for front, prepared in STEPS.items():
        trained = Trained(MODELS[name])
        step = prepared(trained)
        for _ in range(3):
            step()
        after[front] = {key: array.numpy() for key, array in trained.parameters.items()}
    for key, value in values_of(MODELS[name]).items():
        assert not np.array_equal(after["imperative"][key], value), f"{key} was not trained"
        for front in ("hybridized", "symbolic"):
            np.testing.assert_allclose(after[front][key], after["imperative"][key], rtol=1e-4, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_pytorch_trains_as_many_parameters(name: str) -> None:
    torch = pytest.importorskip("torch")
    modules, _ = torch_models.BUILT[name](torch)
    counted = sum(parameter.numel() for module in modules for parameter in module.parameters())
    assert counted == sum(math.prod(shape) for shape in MODELS[name].shapes.values())


def test_the_plan_saves_two_fifths_of_lenet() -> None:
    arena_bytes, unplanned_bytes = planned(MODELS["lenet"])
    assert 0 < arena_bytes <= 0.6 * unplanned_bytes


def test_without_peers_the_fronts_are_measured_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "FOLDER", tmp_path)
    rows = list(engine(Extent(quick=True, pace=Pace(rounds=1, round_s=0.01))))
    measured = [row for row in rows if row.not_measured is None]
    assert [row.contender for row in measured] == [f"windlass {front}" for front in FRONTS] * len(MODELS)
    assert all(row.figures["samples_per_s"] > 0 for row in measured)
    assert all(row.ratios["imperative"] > 0 for row in measured if row.contender != "windlass imperative")
    refused = [row for row in rows if row.not_measured is not None]
    assert len(refused) == 2 * len(MODELS)
    assert all("makes it" in (row.not_measured or "") for row in refused)
