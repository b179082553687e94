"""Buffers: whose an array is, from push until its ticket is done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.cluster.team import Team
from windlass.optim import SGD
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]


def test_an_own_array_may_be_overwritten_as_soon_as_push_returns(team: MakeTeam) -> None:
    pair = team()
    first, second = pair.stores({"w": np.zeros(100_000, np.float32)})
    gradient = np.ones(100_000, np.float32)
    ticket = first.push_pull({"w": gradient})
    gradient[:] = 77.0
    second.update({"w": np.ones(100_000, np.float32)})
    assert (ticket.result()["w"] == -1.0).all()


@pytest.mark.parametrize("link", ["tcp", "shm"])
@pytest.mark.parametrize("lending", ["empty", "borrow"])
def test_writing_to_a_lent_array_is_found_out(
    team: MakeTeam, link: str, lending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_LINK", link)
    pair = team()
    first, second = pair.stores({"w": np.zeros(1000, np.float32)})
    gradient = first.empty(1000) if lending == "empty" else np.empty(1000, np.float32)
    gradient[:] = 1.0
    ticket = first.push_pull({"w": gradient}, borrow=lending == "borrow")
    gradient[5] = 2.0
    second.update({"w": np.ones(1000, np.float32)})
    with pytest.raises(UsageError, match=r"written to while it was lent.*ticket"):
        ticket.result()
    gradient[5] = 3.0
    waiting = second.push_pull({"w": np.ones(1000, np.float32)})
    first.update({"w": gradient})
    waiting.result()


def test_arrays_of_the_store_are_aligned_and_of_the_asked_shape(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": np.zeros((3, 5), np.float64)})
    gradient = alone.empty((3, 5), np.float64)
    assert gradient.shape == (3, 5)
    assert gradient.dtype == np.float64
    assert gradient.ctypes.data % 64 == 0
    gradient[:] = 2.0
    assert alone.update({"w": gradient})["w"][2, 4] == -2.0


def test_results_are_written_into_the_arrays_that_init_returned(team: MakeTeam) -> None:
    alone = team(1)[0]
    store = alone.store("model")
    params = store.init({"w": np.zeros(1000, np.float32)}, SGD(lr=1.0))
    address = params["w"].ctypes.data
    for step in range(1, 6):
        assert store.update({"w": np.ones(1000, np.float32)}, out=params)["w"] is params["w"]
        assert params["w"][0] == -step
    assert params["w"].ctypes.data == address


def test_pushes_that_nobody_waits_for_give_their_memory_back(team: MakeTeam) -> None:
    (alone,) = team(1).stores({"w": np.zeros(1_000_000, np.float32)}, consistency="asp")
    gradient = {"w": np.ones(1_000_000, np.float32)}
    for _ in range(40):
        alone.push(gradient)
        alone.pull().result()
    heap = alone.member.heap
    assert heap is not None
    assert sum(segment.size_bytes for segment in heap.segments) < 80 << 20, "40 copies are 160 MB"
    assert alone.pull().result()["w"][0] == -40.0


def test_torch_tensors_come_back_as_torch_tensors(team: MakeTeam) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed: pip install torch")
    alone = team(1)[0]
    store = alone.store("model")
    params = store.init({"w": torch.zeros(4)}, SGD(lr=1.0))
    assert isinstance(params["w"], torch.Tensor)
    weight = torch.ones(4, requires_grad=True)
    (weight * 2).sum().backward()
    out = {"w": torch.empty(4)}
    returned = store.update({"w": weight.grad}, out=out)
    assert returned["w"] is out["w"]
    assert out["w"].tolist() == [-2.0] * 4
