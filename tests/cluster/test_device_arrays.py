"""Gradients and values on a device: they go in, and come out of the same family, with the values of NumPy's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests import host_cupy
from tests.cluster.team import Team
from windlass.optim import SGD, Adam
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]


@pytest.fixture(params=["stand-in", "cuda"])
def cupy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    if request.param == "stand-in":
        module = host_cupy.module()
        monkeypatch.setitem(sys.modules, "cupy", module)
        yield module
        return
    try:
        with host_cupy.real() as module:
            yield module
    except (ImportError, RuntimeError) as missing:
        pytest.skip(f"needs a GPU: {missing}")


def arrays(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in (("w", (30, 7)), ("b", ()))}


def on_device(cupy: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {name: cupy.array(array) for name, array in values.items()}


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return all(found[name].get().tobytes() == expected[name].tobytes() for name in expected)


@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_updates_with_arrays_of_a_device_are_those_with_arrays_of_the_host(
    team: MakeTeam, cupy: Any, link: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_LINK", link)
    worker = team(1)[0]
    host, there = worker.store("host"), worker.store("device")
    expected = host.init(arrays(0), Adam(lr=0.1))
    params = there.init(on_device(cupy, arrays(0)), Adam(lr=0.1))
    assert type(params["w"]) is cupy.ndarray
    assert same(params, expected)
    for step in range(1, 4):
        expected = host.update(arrays(step), out=expected)
        found = there.update(on_device(cupy, arrays(step)), out=params)
        assert found["w"] is params["w"]
        assert same(found, expected)
    fresh = there.update(on_device(cupy, arrays(9)))
    assert type(fresh["b"]) is cupy.ndarray
    assert same(fresh, host.update(arrays(9)))
    assert same(there.pull().result(), host.pull().result())
    there.assign(on_device(cupy, arrays(5)))
    assert same(there.pull(out=params).result(), arrays(5))


def test_a_gradient_is_read_when_it_is_pushed(team: MakeTeam, cupy: Any) -> None:
    (store,) = team(1).stores(on_device(cupy, arrays(0)), SGD(lr=1.0), consistency="asp")
    gradient = on_device(cupy, arrays(1))
    tickets = []
    for seed in (1, 2):
        gradient["w"][...] = cupy.asarray(arrays(seed)["w"])
        tickets.append(store.push(gradient))
    for ticket in tickets:
        ticket.result()
    found = store.pull().result()
    w = arrays(0)["w"] - arrays(1)["w"] - arrays(2)["w"]
    assert found["w"].get().tobytes() == w.tobytes()


def test_parts_of_arrays_and_rows_of_tables(team: MakeTeam, cupy: Any) -> None:
    worker = team(1)[0]
    store = worker.store("model")
    wide = np.arange(40, dtype=np.float32).reshape(4, 10)
    store.init({"w": np.zeros((4, 5), np.float32)}, SGD(lr=1.0))
    found = store.update({"w": cupy.array(wide)[:, ::2]})
    assert np.array_equal(found["w"], -wide[:, ::2])
    table = store.table("user", 4, SGD(lr=1.0))
    ids = cupy.array(np.array([3, 7]))
    rows = table.push_pull(ids, cupy.array(np.ones((2, 4), np.float32))).result()
    assert type(rows) is cupy.ndarray
    assert rows.get().tobytes() == table.pull([3, 7]).result().tobytes()
    with pytest.raises(UsageError, match="Leave out= away"):
        store.pull({"user": [3, 7]}, out={"user": rows})


def test_another_shape_or_dtype_is_refused_in_words(team: MakeTeam, cupy: Any) -> None:
    (store,) = team(1).stores({"w": np.zeros(3, np.float32)})
    for wrong, said in ((np.zeros(4, np.float32), "another shape"), (np.zeros(3), "another dtype")):
        with pytest.raises(UsageError, match=said):
            store.update({"w": cupy.array(wrong)})


class Elsewhere:
    """An array of no known family that says it lies on a CUDA device."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


def test_what_lies_on_a_device_is_refused_in_words_without_cupy(
    team: MakeTeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store,) = team(1).stores({"w": np.zeros(3, np.float32)})
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(UsageError, match=r"needs CuPy .*type=Elsewhere.*copy the array to the CPU"):
        store.update({"w": Elsewhere()})
