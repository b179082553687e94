"""What workers keep back under a codec with feedback, in checkpoints: with them, nothing is lost and no bit differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from tests.cluster.test_codecs import gradients, kept, zeros
from windlass import residuals
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD
from windlass.store import Store
from windlass_proto import checkpoint_folders, checkpoint_format
from windlass_proto.errors import CorruptionError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]
CODEC = wl.codec.OneBit()


def trained(team: Team, folder: Path, consistency: str = "bsp") -> list[Store]:
    """Stores that have made two steps, and a checkpoint after the first."""
    stores = team.stores(zeros(), SGD(lr=0.1), consistency, codec=CODEC)

    def work(_: object, rank: int) -> None:
        stores[rank].update(gradients(0, rank))
        saving = stores[rank].checkpoint(folder)
        stores[rank].update(gradients(1, rank))
        saving.result()

    team.each(work)
    return stores


def owed(stores: list[Store]) -> dict[str, np.ndarray]:
    """What all workers together keep back."""
    return {name: np.sum([kept(store)[name] for store in stores], axis=0) for name in zeros()}


def resumed(local: LocalCluster, job: str, workers: int, folder: Path) -> dict[str, np.ndarray]:
    """What `workers` workers together keep back when they resume; the first pull after a step likewise."""
    with Team(local, job, workers=workers) as other:
        stores = other.stores(zeros(), SGD(lr=0.1), codec=CODEC)
        other.each(lambda _, rank: stores[rank].resume(folder))
        return owed(stores)


def test_a_step_after_a_restore_has_the_bits_of_the_step_after_the_checkpoint(team: MakeTeam, tmp_path: Path) -> None:
    pair = team()
    stores = trained(pair, tmp_path)
    after = stores[0].pull().result()
    owes = [{name: array.copy() for name, array in kept(store).items()} for store in stores]
    pair.each(lambda _, rank: stores[rank].restore(tmp_path))
    assert any((kept(stores[0])[name] != owes[0][name]).any() for name in owes[0])
    again = pair.each(lambda _, rank: stores[rank].update(gradients(1, rank)))
    for name in zeros():
        assert again[0][name].tobytes() == after[name].tobytes()
        assert all(
            kept(store)[name].tobytes() == before[name].tobytes() for store, before in zip(stores, owes, strict=True)
        )


@pytest.mark.parametrize("workers", [1, 3])
def test_what_is_kept_is_handed_on_to_another_number_of_workers(
    workers: int, local: LocalCluster, token: None, job: str, tmp_path: Path
) -> None:
    with Team(local, job) as pair:
        stores = pair.stores(zeros(), SGD(lr=0.1), codec=CODEC)
        pair.each(lambda _, rank: stores[rank].update(gradients(0, rank)))
        pair.each(lambda _, rank: stores[rank].checkpoint(tmp_path).result())
        before = owed(stores)
    found = resumed(local, f"{job}-resumed", workers, tmp_path)
    assert {name: array.tobytes() for name, array in found.items()} == {
        name: array.tobytes() for name, array in before.items()
    }


def test_a_worker_that_joins_after_a_step_keeps_nothing(team: MakeTeam, tmp_path: Path) -> None:
    """What the checkpoint's worker of its rank kept went on with whoever had that rank at the resumption."""
    pair = team()
    stores = trained(pair, tmp_path, "asp")
    pair.each(lambda _, rank: stores[rank].restore(tmp_path))
    pair.each(lambda _, rank: stores[rank].update(gradients(1, rank)))
    manifest = checkpoint_format.read_manifest_untrusted(tmp_path / "step-000001")
    residuals.bring_back(stores[1], tmp_path / "step-000001", manifest, clock=stores[1].clock - 1)
    assert not any(kept(stores[1])[name].any() for name in zeros())


def test_a_checkpoint_that_one_worker_calls_says_whose_residuals_it_lacks(
    team: MakeTeam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pair = team()
    stores = pair.stores(zeros(), SGD(lr=0.1), codec=CODEC)
    pair.each(lambda _, rank: stores[rank].update(gradients(0, rank)))
    with monkeypatch.context() as patch:
        patch.setattr(residuals, "GATHER_S", 0.2)
        folder = stores[0].checkpoint(tmp_path).result()
    assert [residual.rank for residual in checkpoint_format.read_manifest_untrusted(folder).residuals] == [0]
    assert "lacks what workers 1 keep back" in capfd.readouterr().err
    pair.each(lambda _, rank: stores[rank].update(gradients(1, rank)))
    pair.each(lambda _, rank: stores[rank].checkpoint(tmp_path, keep_last=1).result())
    (newest,) = checkpoint_folders.folders(tmp_path)
    found = [residual.rank for residual in checkpoint_format.read_manifest_untrusted(newest).residuals]
    assert found == [0, 1], "who came too late for one takes part in the next"


def test_a_residual_that_was_altered_or_is_missing_is_refused_by_name(team: MakeTeam, tmp_path: Path) -> None:
    pair = team()
    stores = trained(pair, tmp_path)
    folder = tmp_path / "step-000001"
    (residual,) = folder.glob("residual-1-*")
    raw = residual.read_bytes()
    residual.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    errors = pair.errors(lambda _, rank: stores[rank].restore(folder))
    assert errors[0] is None
    assert isinstance(errors[1], CorruptionError)
    assert residual.name in str(errors[1])
    residual.unlink()
    with pytest.raises(CorruptionError, match=residual.name):
        stores[0].restore(folder)


def rows_of(store: Store) -> np.ndarray:
    (table,) = store.exchange.sparse.values()
    assert table.encoder is not None
    assert table.encoder.residuals is not None
    return table.encoder.residuals.packed()


def test_what_is_kept_of_rows_comes_back_with_its_order(team: MakeTeam, tmp_path: Path) -> None:
    pair = team()
    stores = pair.stores(zeros(), SGD(lr=0.1))
    tables = pair.each(lambda _, rank: stores[rank].table("user", 8, SGD(lr=0.1), codec=CODEC))

    def push(step: int, rank: int) -> np.ndarray:
        random = np.random.default_rng((step, rank))
        tables[rank].push(random.integers(0, 500, 100), random.normal(size=(100, 8)).astype(np.float32))
        rows: np.ndarray = tables[rank].pull(np.arange(500)).result()
        return rows.copy()

    pair.each(lambda _, rank: push(0, rank))
    folders = pair.each(lambda _, rank: stores[rank].checkpoint(tmp_path).result())
    owes = [rows_of(store) for store in stores]
    after = pair.each(lambda _, rank: push(1, rank))
    assert any((rows_of(store).size,) != (before.size,) for store, before in zip(stores, owes, strict=True))
    pair.each(lambda _, rank: stores[rank].restore(folders[0]))
    assert [rows_of(store).tobytes() for store in stores] == [before.tobytes() for before in owes]
    again = pair.each(lambda _, rank: push(1, rank))
    assert [rows.tobytes() for rows in again] == [rows.tobytes() for rows in after]


def test_a_manifest_without_residuals_is_as_before(team: MakeTeam, tmp_path: Path) -> None:
    """Of tensors that no encoder keeps anything of, so that earlier releases read it to the letter."""
    pair = team()
    stores = pair.stores(zeros(), SGD(lr=0.1), codec=wl.codec.Dithering())
    pair.each(lambda _, rank: stores[rank].checkpoint(tmp_path).result())
    folder = tmp_path / "step-000000"
    assert "residuals" not in json.loads((folder / checkpoint_format.MANIFEST).read_text(encoding="utf-8"))
    assert not list(folder.glob("residual-*"))
