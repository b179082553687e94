"""Rules of installed packages: run where they are allowed, compared over all servers, never sent."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.local_cluster import LocalCluster
from windlass_proto.errors import UnavailableError, UsageError

pytestmark = pytest.mark.cluster
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_rule"
DIM = 4


def install(folder: Path, version: str | None = None) -> Path:
    """What an installer leaves of the example, in `folder`."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    shutil.copy(EXAMPLE / "heavy_ball_rule.py", folder)
    info = folder / f"heavy_ball_rule-{version or project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {info.name[16:-10]}\n")
    (points,) = project["entry-points"].items()
    (info / "entry_points.txt").write_text(f"[{points[0]}]\n" + "\n".join(f"{k} = {v}" for k, v in points[1].items()))
    return folder


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two servers that have the example; this process, the workers', has not."""
    folder = install(tmp_path_factory.mktemp("site"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        run_dir = tmp_path_factory.mktemp("run")
        with LocalCluster.start(servers=2, run_dir=run_dir, allowed_rules=["heavy_ball==1.2.0"]) as started:
            patch.setenv("WINDLASS_TOKEN_FILE", str(started.token_file))
            yield started


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    found = importlib.util.spec_from_file_location("the_example", EXAMPLE / "heavy_ball_rule.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "the_example", module)
    found.loader.exec_module(module)
    spec, step = module.Spec, module.oracle
    return lambda w, slots, g, number, **hyper: step(spec(**hyper), w, slots, g, number)


def test_servers_train_dense_tensors_and_tables_with_a_rule_of_a_package(
    cluster: LocalCluster, oracle: Callable[..., Any]
) -> None:
    random = np.random.default_rng(0)
    hyper: dict[str, Any] = {"lr": 0.1, "beta": 0.5, "step_max": 0.05, "clip_value": 1.5}
    with Team(cluster, "train", workers=1) as team:
        (worker,) = team.workers
        store = worker.store("model", consistency="asp")
        rule = wl.optim.own("heavy_ball", **hyper)
        w, rows = random.standard_normal(600_000).astype(np.float32), np.zeros((40, DIM), np.float32)
        store.init({"w": w}, rule)
        table = store.table("user", DIM, rule, init=wl.init.Zeros())
        buf, row_buf = np.zeros_like(w), np.zeros_like(rows)
        for step in (1, 2, 3):
            g, row_g = random.standard_normal(w.size).astype(np.float32), rows + np.float32(step)
            found = store.update({"w": g})["w"]
            w, (buf,) = oracle(w, (buf,), g, step, **hyper)
            np.testing.assert_allclose(found, w, rtol=1e-5, atol=1e-6)
            got = table.push_pull(np.arange(40), row_g).result()
            rows, (row_buf,) = oracle(rows, (row_buf,), row_g, step, **hyper)
            np.testing.assert_allclose(got, rows, rtol=1e-5, atol=1e-6)
        store.set(lr=0.0)
        assert np.array_equal(store.update({"w": g})["w"], found)
        with pytest.raises(UsageError, match=r"heavy_ball has no such hyper-parameter \(given=beta\)"):
            store.set(beta=0.1)


@pytest.mark.parametrize(
    ("name", "asked", "words"),
    [
        ("heavy_bell", {}, r"does not have an update rule .*rule=heavy_bell.*server 0.*Did you mean heavy_ball"),
        ("heavy_ball", {"version": "1.3"}, r"another version .*rule=heavy_ball, server=server 0.*1\.2\.0.*1\.3"),
        ("heavy_ball", {"betta": 0.5}, r"heavy_ball has no such hyper-parameter \(given=betta\). Did you mean beta"),
        ("heavy_ball", {"beta": True}, r"of another kind \(beta=True, given=flag, declared=number\)"),
    ],
)
def test_what_the_servers_cannot_run_is_refused_before_anything_is_declared(
    cluster: LocalCluster, name: str, asked: dict[str, Any], words: str
) -> None:
    with Team(cluster, f"refused {name} {asked}".replace(" ", "-"), workers=1) as team:
        store = team[0].store("model", consistency="asp")
        with pytest.raises(UsageError, match=words):
            store.init({"w": np.zeros(8, np.float32)}, wl.optim.own(name, **asked))
        store.init({"w": np.zeros(16, np.float32)}, wl.optim.SGD(lr=0.1))  # the name is still free


def test_a_value_that_the_rule_itself_refuses_is_said_by_the_servers(cluster: LocalCluster) -> None:
    with Team(cluster, "range", workers=1) as team:
        store = team[0].store("model", consistency="asp")
        with pytest.raises(UsageError, match=r"refuses its hyper-parameters .*beta is in \[0, 1\), not 1.5"):
            store.init({"w": np.zeros(8, np.float32)}, wl.optim.own("heavy_ball", beta=1.5))
        with pytest.raises(UsageError, match="refuses its hyper-parameters"):
            store.table("user", DIM, wl.optim.own("heavy_ball", beta=-1.0))
        assert store.specs() == {}
        params = store.init({"w": np.zeros(16, np.float32)}, wl.optim.own("heavy_ball", beta=0.5))  # it is free
        assert params["w"].shape == (16,)
        store.table("user", DIM + 1, wl.optim.SGD(lr=1.0))


def test_a_worker_that_has_the_package_is_told_of_bad_values_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(install(tmp_path)))
    assert wl.optim.own("heavy_ball", lr=0.5).version == "1.2.0"
    with pytest.raises(UsageError, match=r"refuses its hyper-parameters .*beta is in"):
        wl.optim.own("heavy_ball", beta=2.0)
    with pytest.raises(UsageError, match=r"installed in another version .*asked=2.0, installed=1.2.0"):
        wl.optim.own("heavy_ball", version="2.0")
    sys.modules.pop("heavy_ball_rule", None)


@pytest.mark.parametrize(
    ("allowed", "words"),
    [
        ("light_ball", r"an allowed update rule is not installed \(rule=light_ball"),
        ("adam", "has the name of a rule of windlass"),
    ],
)
def test_a_server_that_is_to_allow_what_it_cannot_run_does_not_start(tmp_path: Path, allowed: str, words: str) -> None:
    with pytest.raises(UnavailableError, match=words):
        LocalCluster.start(servers=1, run_dir=tmp_path, allowed_rules=[allowed])


def test_a_cluster_that_allows_nothing_runs_no_rule_of_a_package(team: Callable[..., Team]) -> None:
    (worker,) = team(1).workers
    store = worker.store("model", consistency="asp")
    with pytest.raises(UsageError, match=r"does not have an update rule .*allowed_there=none.*--allow-rule heavy_ball"):
        store.init({"w": np.zeros(8, np.float32)}, wl.optim.own("heavy_ball"))
