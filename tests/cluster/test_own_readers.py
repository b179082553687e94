"""Readers of installed packages: run where they are allowed, on copies of what servers hold, never sent."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.local_cluster import LocalCluster
from windlass.store import Store
from windlass_proto.errors import UnavailableError, UsageError

pytestmark = pytest.mark.cluster
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_reader"
ODD = """
import time
import numpy as np

def total(part, request):
    if request == b"fail":
        raise KeyError("no such thing")
    if request == b"text":
        return "text"
    found = sum(float(values.sum()) for _, values in part.chunks())
    return np.array([found, sum(first for first, _ in part.chunks())]).tobytes()
"""


def install(folder: Path, module: str, text: str, version: str, points: dict[str, str]) -> None:
    """What an installer leaves of a package with one module."""
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\n")
    lines = "\n".join(f"{name} = {value}" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[windlass.readers]\n{lines}\n")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Two servers that have the example and another reader."""
    folder = tmp_path_factory.mktemp("site")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    (points,) = project["entry-points"].values()
    install(folder, "nearest_rows", (EXAMPLE / "nearest_rows.py").read_text(), project["version"], points)
    install(folder, "odd", ODD, "1.0", {"total": "odd:total", "unused": "odd:total"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        run_dir = tmp_path_factory.mktemp("run")
        allowed = [f"nearest=={project['version']}", "total"]
        with LocalCluster.start(servers=2, run_dir=run_dir, allowed_readers=allowed) as started:
            patch.setenv("WINDLASS_TOKEN_FILE", str(started.token_file))
            yield started


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    found = importlib.util.spec_from_file_location("the_reader", EXAMPLE / "nearest_rows.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    monkeypatch.setitem(sys.modules, "the_reader", module)
    found.loader.exec_module(module)
    return module


@contextlib.contextmanager
def one_store(cluster: LocalCluster, job: str) -> Iterator[Store]:
    with Team(cluster, job, workers=1) as team:
        found = team.workers[0].store("model", consistency="asp")
        found.init({"w": np.arange(300_000, dtype=np.float32), "b": np.full(3, 2.0, np.float32)}, wl.optim.SGD(lr=1.0))
        yield found


def test_the_nearest_rows_are_found_where_they_lie(cluster: LocalCluster, example: ModuleType) -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(5000, 8)).astype(np.float32)
    query = random.normal(size=8).astype(np.float32)
    scores = rows.astype(np.float64) @ query
    scores[17] = -np.inf
    expected = np.argsort(-scores)[:10]
    with one_store(cluster, "nearest") as store:
        table = store.table("item", 8, wl.optim.SGD(lr=1.0), init=wl.init.Constant(0.0))
        table.push(np.arange(5000), -rows)
        table.erase([17])
        ids, found = example.nearest(store, "item", query, k=10)
    assert ids.tolist() == expected.tolist()
    assert np.allclose(found, scores[expected], rtol=1e-5)


def test_a_dense_tensor_is_read_in_its_parts(cluster: LocalCluster) -> None:
    with one_store(cluster, "dense") as store:
        parts = [np.frombuffer(answer) for answer in store.read("total", "w")]
        assert len(parts) > 1
        assert sum(part[0] for part in parts) == pytest.approx(300_000 * 299_999 / 2)
        store.update({"w": np.ones(300_000, np.float32), "b": np.zeros(3, np.float32)})
        after = sum(np.frombuffer(answer)[0] for answer in store.read("total", "w"))
        assert after == pytest.approx(300_000 * 299_999 / 2 - 300_000)
        assert [np.frombuffer(answer).tolist() for answer in store.read("total", "b")] == [[6.0, 0.0]]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({"reader": "nearset"}, "does not have a reader.*Did you mean nearest"),
        ({"reader": "unused"}, "does not have a reader.*allowed_there="),
        ({"reader": "total", "version": "2.0"}, "another version.*version_there=1.0.*version_asked=2.0"),
        ({"reader": "total", "request": b"fail"}, "a reader failed.*no such thing"),
        ({"reader": "total", "request": b"text"}, "not bytes.*type=str"),
        ({"reader": "total", "answer_bytes": 15}, "longer than it may be.*bytes=16.*answer_bytes=15"),
        ({"reader": "total", "answer_bytes": 0}, "answer_bytes is out of range"),
        ({"reader": "total", "request": "text"}, "not bytes"),
        ({"reader": "To tal"}, "not lower case"),
        ({"reader": "total", "name": "v"}, "v"),
    ],
)
def test_what_cannot_be_read_is_said_and_training_goes_on(
    cluster: LocalCluster, call: dict[str, object], said: str
) -> None:
    with one_store(cluster, f"said {call}") as store:
        with pytest.raises(UsageError, match=said):
            store.read(**{"name": "b", **call})  # type: ignore[arg-type]
        store.update({"w": np.zeros(300_000, np.float32), "b": np.ones(3, np.float32)})
        assert np.frombuffer(store.read("total", "b")[0])[0] == 3.0


def test_a_server_that_is_to_allow_what_is_not_installed_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"an allowed reader is not installed.*nowhere"):
        LocalCluster.start(servers=1, run_dir=tmp_path, allowed_readers=["nowhere"])
