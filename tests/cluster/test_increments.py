"""Checkpoints that hold what changed since the one before: smaller, and as good."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD, Adam
from windlass.store import Store
from windlass_proto import checkpoint_format
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]
Values = dict[str, np.ndarray]
IDS = np.arange(3000)


def model() -> Values:
    """Three groups by their rule and dtype; "frozen" is never pushed to, and has some blocks."""
    return {"w": np.ones((40, 7), np.float32), "frozen": np.full((700, 700), 0.5)}


def train(stores: list[Store], count: int) -> None:
    """`count` steps of all workers, on the dense tensor "w" and on 50 rows of the table."""
    for _ in range(count):
        for store in stores:
            random = np.random.default_rng(store.steps_done)
            rows = wl.Rows(random.integers(0, 60, 50), random.normal(size=(50, 4)).astype(np.float32))
            store.push({"w": random.normal(size=(40, 7)).astype(np.float32), "user": rows})
        close(stores)


def close(stores: list[Store]) -> None:
    """Close the step of all workers."""
    wl.wait([store.pull(["w"]) for store in stores])


def held(store: Store) -> Values:
    values: Values = store.pull({"w": None, "frozen": None, "user": IDS}).result()
    return {name: np.array(array) for name, array in values.items()}


def same(one: Values, other: Values) -> bool:
    return one.keys() == other.keys() and all(one[name].tobytes() == other[name].tobytes() for name in one)


def filled(team: Team) -> list[Store]:
    stores = team.stores(model(), Adam(lr=0.1))
    for store in stores:
        table = store.table("user", 4, SGD(lr=0.1, momentum=0.9))
        table.push(IDS, np.ones((IDS.size, 4), np.float32))
    close(stores)
    return stores


def test_increments_are_small_and_come_back_bit_for_bit(
    team: MakeTeam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = filled(team(1))
    (store,) = stores
    sizes, folders = [], []
    for _ in range(5):
        train(stores, 2)
        folders.append(store.checkpoint(tmp_path / "saved", full_every=4, keep_last=1).result())
        sizes.append(sum(path.stat().st_size for path in folders[-1].iterdir()))
        if len(folders) == 4:
            expected = held(store)
            store.table("user", 4, SGD(lr=0.1, momentum=0.9)).erase([3, 2999])
            missing = held(store)
    assert max(sizes[1:4]) < sizes[0] / 20, "neither the frozen tensor nor rows that nobody pushed to"
    assert sizes[4] > sizes[0] / 2, "the fifth is full"
    assert not same(expected, missing)
    assert [folder.exists() for folder in folders] == [False, False, False, False, True]
    with LocalCluster.start(servers=3, run_dir=tmp_path / "other") as other:
        monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(other.token_file))
        with wl.connect(other.address, job="other", workers=1) as worker:
            again = worker.store("model")
            again.init(model(), Adam(lr=0.1))
            again.table("user", 4, SGD(lr=0.1, momentum=0.9))
            again.restore(tmp_path / "saved")
            assert same(held(again), held(store))
            for one in (store, again):
                train([one], 3)
            assert same(held(again), held(store))


def test_an_increment_is_restored_with_what_it_builds_on(team: MakeTeam, tmp_path: Path) -> None:
    stores = filled(team(2))
    saved = []
    for number in range(3):
        train(stores, 1)
        if number == 1:
            stores[0].table("user", 4, SGD(lr=0.1, momentum=0.9)).erase([7])
        savings = [store.checkpoint(tmp_path, full_every=9) for store in stores]
        folders = [saving.result() for saving in savings]
        assert folders[0] == folders[1]
        saved.append((folders[0], held(stores[0])))
    manifest = checkpoint_format.read_manifest_untrusted(saved[2][0])
    assert manifest.format == 3
    assert {part.folder for part in manifest.parts} == {"step-000002", "step-000003", ""}
    for folder, expected in saved:
        stores[0].restore(folder)
        assert same(held(stores[0]), expected)


def test_after_a_restoration_the_next_one_is_full(team: MakeTeam, tmp_path: Path) -> None:
    stores = filled(team(1))
    (store,) = stores
    store.checkpoint(tmp_path, full_every=9).result()
    train(stores, 1)
    store.restore(tmp_path)
    train(stores, 1)
    expected = held(store)
    folder = store.checkpoint(tmp_path, full_every=9).result()
    assert all(part.whole for part in checkpoint_format.read_manifest_untrusted(folder).parts)
    train(stores, 1)
    store.restore(folder)
    assert same(held(store), expected)


def test_full_every_zero_is_refused(team: MakeTeam, tmp_path: Path) -> None:
    (store,) = team(1).stores({"w": np.ones(3)}, SGD(lr=0.1))
    with pytest.raises(UsageError, match="full_every"):
        store.checkpoint(tmp_path, full_every=0)
    assert not list(tmp_path.iterdir())
