"""Tensors that are never cut: saved and brought back on any number of servers, cut or not."""

from __future__ import annotations

from pathlib import Path

import pytest

import windlass as wl
from tests.cluster.test_checkpoints import MakeTeam, model, pulled, same, steps
from windlass.local_cluster import LocalCluster
from windlass.optim import Adam

pytestmark = pytest.mark.cluster


def test_tensors_that_are_never_cut_come_back_on_another_number_of_servers_and_cut_or_not(
    team: MakeTeam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = Adam(lr=0.1)
    (store,) = team(1).stores(model(), rule, layout="whole")
    saved = steps(store, 2, first=10)[-1]
    folder = store.checkpoint(tmp_path / "saved").result()
    after = steps(store, 2, first=20)[-1]
    with LocalCluster.start(servers=3, run_dir=tmp_path / "other") as other:
        monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(other.token_file))
        for layout in ("whole", "blocks"):
            with wl.connect(other.address, job=layout, workers=1) as worker:
                restored = worker.store("model")
                restored.init(model(99), rule, layout=layout)
                restored.restore(folder)
                assert same(pulled(restored), saved)
                assert same(steps(restored, 2, first=20)[-1], after)
