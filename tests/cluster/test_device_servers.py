"""Servers with a device beside servers without: one cluster, the same weights bit for bit, the same checkpoints."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cli.shell import wait_until
from tests.cluster.team import Team
from tests.cluster.test_digits import learn, losses
from tests.host_device import COMPILER
from windlass.cluster import Cluster
from windlass.local_cluster import LocalCluster
from windlass.optim import DCASGD, LAMB, SGD, Adam
from windlass.store import Store
from windlass_proto import limits
from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import RuleSpec

pytestmark = [pytest.mark.cluster, pytest.mark.needs_debian("g++", COMPILER)]

ROOT = Path(__file__).resolve().parents[2]
DEVICE = "host:0"
Values = dict[str, bytes]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A server with its tensors in memory, and one with a device."""
    spawn = LocalCluster._spawn

    def with_device(
        self: LocalCluster, module: str, name: str, arguments: Sequence[str], environment: Mapping[str, str]
    ) -> Any:
        if DEVICE not in arguments:
            return spawn(self, module, name, arguments, environment)
        path = f"{ROOT}:{environment.get('PYTHONPATH', '')}"
        return spawn(self, "tests.device_server", name, arguments, {**environment, "PYTHONPATH": path})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalCluster, "_spawn", with_device)
        started = LocalCluster.start(
            servers=2, run_dir=tmp_path_factory.mktemp("mixed"), server_devices=f"memory, {DEVICE}"
        )
    with started:
        yield started


@pytest.fixture
def both(
    mixed: LocalCluster, local: LocalCluster, job: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[Callable[[Team], Any]], list[Any]]:
    """`both(act)`: what act(team of two) returns on the cluster with a device, and on one without."""
    monkeypatch.chdir(tmp_path)

    def run(act: Callable[[Team], Any]) -> list[Any]:
        found = []
        for cluster in (mixed, local):
            monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(cluster.token_file))
            with Team(cluster, job) as team:
                found.append(act(team))
        return found

    return run


def model(seed: int) -> dict[str, Any]:
    """Tensors of several blocks, so that both servers have some."""
    random = np.random.default_rng(seed)
    shapes = {"w": (3, limits.BLOCK_ELEMENTS_MIN - 11), "b": (7,), "scale": ()}
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def steps(store: Store, rank: int, first: int, count: int) -> Values:
    """Some updates with gradients of a rank's own, and the weights after them."""
    values: dict[str, Any] = {}
    for step in range(first, first + count):
        values = store.update(model(100 * rank + step), weight=1.0 + rank)
    return {name: array.tobytes() for name, array in values.items()}


def test_two_workers_learn_the_digits_along_the_same_curve(
    mixed: LocalCluster, local: LocalCluster, tmp_path: Path
) -> None:
    printed = [
        learn(cluster, tmp_path / name, "--epochs", "3") for name, cluster in (("device", mixed), ("memory", local))
    ]
    assert printed[0].split(",")[0] == printed[1].split(",")[0]
    assert losses(tmp_path / "device") == losses(tmp_path / "memory")


@pytest.mark.parametrize(
    "optimizer",
    [
        SGD(lr=0.1, momentum=0.9, clip_value=0.5),
        Adam(lr=0.1, amsgrad=True, clip_norm=3.0),
        SGD(lr=0.1, clip_global_norm=3.0),
        LAMB(lr=0.1, weight_decay=0.05, clip_norm=3.0),
    ],
    ids=str,
)
def test_weighted_updates_with_multipliers_and_live_changes_have_the_same_bits(
    both: Callable[..., list[Any]], optimizer: RuleSpec
) -> None:
    def train(team: Team) -> list[Values]:
        stores = team.stores(model(0), optimizer, groups={"b": {"lr_mult": 0.5, "decay_mult": 0.0}})

        def act(_: Cluster, rank: int) -> Values:
            steps(stores[rank], rank, 0, 2)
            stores[rank].set(lr=0.01, names="w")
            stores[rank].assign({"b": np.full(7, 3.0, np.float32)}) if rank == 0 else None
            return steps(stores[rank], rank, 2, 2)

        return team.each(act)

    device, memory = both(train)
    assert device == memory
    assert device[0] == device[1]


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("float32", {"codec": wl.codec.TopK(0.1), "codec_down": wl.codec.BFloat16()}),
        ("float32", {"codec": wl.codec.Int8(), "nonfinite": "zero", "codec_down": wl.codec.OneBit()}),
        ("float16", {}),
    ],
    ids=str,
)
def test_values_that_travel_encoded_have_the_same_bits(
    both: Callable[..., list[Any]], dtype: str, options: dict[str, Any]
) -> None:
    def cast(seed: int) -> dict[str, Any]:
        return {name: np.asarray(array, dtype) for name, array in model(seed).items()}

    def train(team: Team) -> list[Values]:
        stores = team.stores(cast(0), SGD(lr=0.1, momentum=0.9), **options)

        def act(_: Cluster, rank: int) -> Values:
            values: dict[str, Any] = {}
            for step in range(3):
                gradients = cast(100 * rank + step)
                if "nonfinite" in options and step == 1:
                    gradients["b"][3] = np.nan
                values = stores[rank].update(gradients)
            return {name: array.tobytes() for name, array in values.items()}

        return team.each(act)

    device, memory = both(train)
    assert device == memory


def test_rows_of_dense_tensors_have_the_same_bits(both: Callable[..., list[Any]]) -> None:
    def train(team: Team) -> list[list[bytes]]:
        stores = team.stores({"rows": np.ones((700, 613), np.float32)}, Adam(lr=0.1))

        def act(_: Cluster, rank: int) -> list[bytes]:
            random, found = np.random.default_rng(rank), []
            for _step in range(3):
                rows = wl.Rows(random.integers(0, 700, 30), random.normal(size=(30, 613)).astype(np.float32))
                found.append(stores[rank].update({"rows": rows})["rows"].tobytes())
            return [*found, stores[rank].pull().result()["rows"].tobytes()]

        return team.each(act)

    device, memory = both(train)
    assert device == memory


@pytest.mark.parametrize("optimizer", [Adam(lr=0.1), DCASGD(lr=0.1)], ids=str)
def test_updates_on_arrival_have_the_same_bits(both: Callable[..., list[Any]], optimizer: RuleSpec) -> None:
    def train(team: Team) -> Values:
        store, other = team.stores(model(0), optimizer, consistency="asp")
        steps(other, 1, 9, 1)
        return steps(store, 0, 0, 4)

    device, memory = both(train)
    assert device == memory


@pytest.mark.parametrize("lazy", [True, False])
def test_rows_and_rates_that_heed_staleness_have_the_same_bits(both: Callable[..., list[Any]], *, lazy: bool) -> None:
    def train(team: Team) -> Values:
        rate = wl.schedule.StalenessAware(0.1)
        store, other = team.stores(model(0), Adam(lr=rate, weight_decay=0.1), consistency="asp", lazy=lazy)
        steps(other, 1, 9, 3)
        for step in range(3):
            rows = wl.Rows([step, 1], model(step)["w"][[2, 0]])
            store.push({"w": rows}).result()
        return steps(store, 0, 0, 1)

    device, memory = both(train)
    assert device == memory


def test_values_that_are_not_finite_are_refused_by_name(both: Callable[..., list[Any]]) -> None:
    def push(team: Team) -> str:
        store, _ = team.stores(model(0), consistency="asp")
        bad = model(1)
        bad["w"][1, 77] = np.nan
        with pytest.raises(UsageError) as refused:
            store.update(bad)
        return str(refused.value)

    device, memory = both(push)
    assert device == memory
    assert "w" in device


def test_a_checkpoint_of_either_is_resumed_by_the_other(
    mixed: LocalCluster, local: LocalCluster, job: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders: list[Path] = []
    after: list[Values] = []
    for cluster in (mixed, local):
        monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(cluster.token_file))
        with wl.connect(cluster.address, job=job, workers=1) as worker:
            store = worker.store("model")
            store.init(model(0), Adam(lr=0.1))
            steps(store, 0, 0, 3)
            folders.append(store.checkpoint(tmp_path / str(len(folders))).result())
            after.append(steps(store, 0, 3, 2))
    assert after[0] == after[1]
    for cluster, folder in zip((local, mixed), folders, strict=True):
        monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(cluster.token_file))
        with wl.connect(cluster.address, job=f"{job} resumed", workers=1) as worker:
            store = worker.store("model")
            store.init(model(9), Adam(lr=0.1))
            store.restore(folder)
            assert steps(store, 0, 3, 2) == after[0]


def test_status_says_where_tensors_lie(mixed: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(mixed.token_file))
    with wl.connect(mixed.address, observe=True) as observer:

        def said() -> dict[int, str]:
            servers = [member for member in observer.status()["members"] if member["role"] == "server"]
            return {member["rank"]: member["device"] for member in servers}

        wait_until(lambda: all(said().values()), "the servers' first reports")
        assert said() == {0: "memory", 1: f"{DEVICE} a C++ compiler"}


def test_a_server_without_its_device_says_so_and_ends(tmp_path: Path) -> None:
    flags = ["--scheduler", "127.0.0.1:1", "--token-file", str(tmp_path / "none"), "--device", "gpu:99"]
    ended = subprocess.run(
        [sys.executable, "-m", "windlass_server", *flags], capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 2
    assert re.search(
        r"windlass_server: .*(needs CuPy|CUDA does not work on this machine|there is no such device) \(device=gpu:99",
        ended.stderr,
    )
    assert len(ended.stderr.splitlines()) == 1
