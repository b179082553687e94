"""Half tensors: halves in the model and on the wire, float32 masters on the servers; skipped steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD, Adam
from windlass.store import Store
from windlass_proto.codecs import halves
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]

SHAPE = (300, 1001)  # three blocks


def rounded(dtype: str, values: Any) -> np.ndarray:
    """float32 as halves: float16, or the bits of bfloat16."""
    array = np.ascontiguousarray(values, np.float32)
    found = np.zeros(array.size, np.uint16)
    halves.build(dtype).to_half(array.reshape(-1), found)
    return found.reshape(array.shape).view(np.float16 if dtype == "float16" else np.uint16)


def widened(dtype: str, values: np.ndarray) -> np.ndarray:
    found = np.zeros(values.size, np.float32)
    halves.build(dtype).to_single(np.ascontiguousarray(values).reshape(-1).view(np.uint16), found)
    return found.reshape(values.shape)


def normal(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_updates_add_up_in_the_master_weights(
    dtype: str, link: str, team: MakeTeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_LINK", link)
    pair = team()
    first = rounded(dtype, normal(0))
    grads = [rounded(dtype, normal(1 + rank) * 1e-4) for rank in range(2)]
    stores = pair.stores({"w": first}, SGD(lr=1.0), dtype=dtype)
    master = widened(dtype, first)
    mean = (widened(dtype, grads[0]) + widened(dtype, grads[1])) * np.float32(0.5)
    for _ in range(8):
        results = pair.each(lambda _, rank: stores[rank].update({"w": grads[rank]}))
        master = master - mean
    for result in results:
        assert result["w"].dtype == first.dtype
        assert np.array_equal(result["w"], rounded(dtype, master))
    assert not np.array_equal(results[0]["w"], first), "eight updates below half a last bit moved some weights"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_masters_are_in_a_checkpoint(dtype: str, local: LocalCluster, token: None, job: str, tmp_path: Path) -> None:
    def begun(team: Team) -> Store:
        (store,) = team.stores({"w": rounded(dtype, normal(0))}, Adam(lr=1e-4), dtype=dtype)
        return store

    def step(store: Store, n: int) -> np.ndarray:
        found: np.ndarray = store.update({"w": rounded(dtype, normal(n))})["w"].copy()
        return found

    with Team(local, f"{job}-a", workers=1) as alone:
        store = begun(alone)
        step(store, 1)
        store.checkpoint(tmp_path).result()
        undisturbed = [step(store, n) for n in (2, 3, 4)]
    with Team(local, f"{job}-b", workers=1) as alone:
        store = begun(alone)
        assert store.resume(tmp_path) == wl.Resume(1, 0, {})
        resumed = [step(store, n) for n in (2, 3, 4)]
        store.export(tmp_path / "w.safetensors")
    assert all(np.array_equal(a, b) for a, b in zip(undisturbed, resumed, strict=True))
    exported = wl.load_tensors(tmp_path / "w.safetensors")["w"]
    assert np.array_equal(exported.astype(np.float32), widened(dtype, resumed[-1]))


def test_torch_s_bfloat16_goes_in_and_comes_out(team: MakeTeam) -> None:
    torch = pytest.importorskip("torch")
    alone = team(workers=1)
    store = alone[0].store("model")
    first = torch.linspace(-2, 2, 64, dtype=torch.bfloat16)
    params = store.init({"w": first}, SGD(lr=1.0))
    assert params["w"].dtype == torch.bfloat16
    assert torch.equal(params["w"], first)
    store.update({"w": torch.full((64,), 0.5, dtype=torch.bfloat16)}, out=params)
    assert torch.equal(params["w"], first - 0.5)
    assert store.specs()["w"]["dtype"] == "bfloat16"


def test_float32_first_values_are_rounded_to_the_declared_half(team: MakeTeam) -> None:
    alone = team(workers=1)
    store = alone[0].store("model")
    params = store.init({"w": normal(0)}, SGD(lr=1.0), dtype="float16")
    assert np.array_equal(params["w"], rounded("float16", normal(0)))
    store.assign({"w": rounded("float16", normal(1))})
    assert np.array_equal(store.pull().result()["w"], rounded("float16", normal(1)))


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        ({"w": np.zeros(4, np.uint16)}, {}, "unsupported dtype"),
        ({"w": np.zeros(4, np.float32)}, {"dtype": "float8"}, "half types"),
        ({"w": np.zeros(4, np.float64)}, {"dtype": "float16"}, "neither float32"),
        ({"w": np.zeros(4, np.float16)}, {"codec": wl.codec.Int8()}, "halves already"),
        ({"w": np.zeros(4, np.float16)}, {"codec_down": wl.codec.Float16()}, "halves already"),
    ],
)
def test_what_a_half_tensor_cannot_be_is_refused(
    arrays: dict[str, np.ndarray], options: dict[str, Any], said: str, team: MakeTeam
) -> None:
    store = team(workers=1)[0].store("model")
    with pytest.raises(UsageError, match=said):
        store.init(arrays, SGD(lr=1.0), **options)
    with pytest.raises(UsageError, match="unsupported dtype"):
        store.table("t", 4, SGD(lr=1.0), dtype="float8")


@pytest.mark.parametrize("consistency", ["bsp", "ssp:2", "asp"])
def test_a_worker_that_skips_leaves_the_mean_and_holds_up_nobody(consistency: str, team: MakeTeam) -> None:
    pair = team()
    stores = pair.stores({"w": np.zeros(4, np.float32)}, SGD(lr=1.0), consistency)
    out = {"w": np.empty(4, np.float32)}

    def work(_: object, rank: int) -> float:
        if rank:
            return float(stores[1].skip(out=out)["w"][0])
        return float(stores[0].update({"w": np.full(4, 3, np.float32)}, weight=7)["w"][0])

    first = pair.each(work)
    assert first[0] == -3.0, "the mean is over who pushed"
    assert [store.clock for store in stores] == [1, 1]
    if consistency == "bsp":
        assert first[1] == -3.0
        assert pair.each(lambda _, rank: float(stores[rank].skip()["w"][0])) == [-3.0, -3.0]
    with pytest.raises(UsageError, match="skip was called inside a step"), stores[0].step():
        stores[0].skip()


@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize("codec", [wl.codec.Float16(), wl.codec.BFloat16()], ids=repr)
def test_weights_come_down_as_halves_of_float32_masters(
    codec: Any, link: str, team: MakeTeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_LINK", link)
    pair = team()
    first = {"w": normal(0), "b": normal(9)[0, :37].copy()}
    stores = pair.stores(first, SGD(lr=1.0), codec_down=codec)
    dtype = type(codec).__name__.lower()
    grads = {name: np.full(array.shape, 1e-4, np.float32) for name, array in first.items()}
    into = {name: np.empty_like(array) for name, array in first.items()}
    results = pair.each(lambda _, rank: stores[rank].update(grads, out=None if rank else into))
    for name, array in first.items():
        expected = widened(dtype, rounded(dtype, array - np.float32(1e-4)))
        assert np.array_equal(into[name], expected)
        assert np.array_equal(results[1][name], expected)
        assert np.array_equal(stores[0].pull([name]).result()[name], expected)


def test_rows_of_tensors_under_a_codec_travel_as_they_are(team: MakeTeam) -> None:
    store = team(workers=1)[0].store("model")
    store.init({"w": np.zeros((4, 3), np.float32)}, SGD(lr=1.0), codec=wl.codec.OneBit(), codec_down=wl.codec.Float16())
    store.push({"w": wl.Rows([1, 3], np.full((2, 3), 0.1, np.float32))})
    assert store.pull({"w": [3, 0]}).result()["w"].tolist() == [[np.float32(-0.1)] * 3, [0.0] * 3]
    assert store.pull("w").result()["w"][1].tolist() == [float(np.float16(-0.1))] * 3
