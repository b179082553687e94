"""Arrays, tapes and traced functions on another device do what they do on the first one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph import functions as F  # noqa: N812 - as it is called in the field
from windlass_graph.array import Array
from windlass_graph.cached_graph import CachedGraph
from windlass_graph.device import Device
from windlass_graph.symbol import Variable

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_arrays_are_made_and_read_there(device: Device) -> None:
    for made, wanted in (
        (wl.nd.array(VALUES, device=device), VALUES),
        (wl.nd.zeros((2, 3), device=device), np.zeros((2, 3))),
        (wl.nd.ones((2, 3), device=device), np.ones((2, 3))),
        (wl.nd.full((2, 3), 4.0, device=device), np.full((2, 3), 4.0)),
        (wl.nd.arange(2, 5, device=device), np.arange(2, 5)),
        (wl.nd.array(VALUES).to(device), VALUES),
        (wl.nd.array(VALUES, device=device).to("cpu:0").to(device), VALUES),
    ):
        assert made.device == device
        assert made.numpy().tolist() == wanted.tolist()
        assert np.asarray(made).tolist() == wanted.tolist()
        assert str(device) in repr(made)
    assert wl.nd.random_normal(shape=(3,), device=device).shape == (3,)
    wl.nd.waitall(device)


def test_elements_are_written_and_taken_there(device: Device) -> None:
    x = wl.nd.array(VALUES, device=device)
    x[0, 1] = 9
    x[1] = np.array([7, 8, 9], np.float32)
    x[:, 2] = wl.nd.array([1.0, 2.0], device=device)
    assert x.numpy().tolist() == [[0, 9, 1], [7, 8, 2]]
    x[np.array([1]), 1:] = [[4, 2]]
    assert x.numpy().tolist() == [[0, 9, 1], [7, 4, 2]]
    x[wl.nd.array(np.array([1]), device=device), 1] = 8
    assert x[1, :2].numpy().tolist() == [7, 8]
    assert x[np.array([1, 0, 1])].shape == (3, 3)
    assert [float(x.sum()), int(x[0, 1]), bool(x[0, 0] == 0), len(x)] == [27, 9, True, 2]


def test_gradients_are_written_and_added_there(device: Device) -> None:
    x, y = (wl.nd.array(VALUES, device=device) for _ in range(2))
    x.attach_grad()
    y.attach_grad("add")
    for _ in range(2):
        with wl.autograd.record():
            loss = (x * x * 0.5 + 2 * y).sum()
        loss.backward()
    assert x.grad is not None
    assert y.grad is not None
    assert x.grad.device == device
    assert x.grad.numpy().tolist() == VALUES.tolist()
    assert y.grad.numpy().tolist() == [[4, 4, 4]] * 2


def test_a_traced_net_with_dropout_trains_there_as_at_once(device: Device) -> None:
    weight = wl.nd.array(np.array([[0.5, -1, 2], [1, 1, 0]], np.float32), device=device)
    weight.attach_grad()

    def net(x: Any, w: Any) -> Any:
        return F.softmax(F.dropout(F.tanh(F.matmul(x, w, transpose_y=True)), p=0.0))

    graph = CachedGraph(lambda inputs: [net(inputs[0], Variable("w"))])
    x, found = wl.nd.array(VALUES, device=device), []
    for traced in (True, False):
        with wl.autograd.record():
            out: Array = graph([x], {"w": weight})[0][0] if traced else net(x, weight)
            loss = F.log(out[:, 0]).sum()
        loss.backward()
        assert weight.grad is not None
        found.append((out.numpy(), weight.grad.numpy()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_a_gpu_is_the_current_one_when_it_works_and_one_that_is_not_there_is_refused(device: Device) -> None:
    x = wl.nd.array(VALUES, device=device)
    assert (x + x).device == device
    if device.kind == "cpu":
        assert device.xp is np
        return
    assert device.xp.cuda.Device().id == device.index
    with pytest.raises(wl.UnavailableError, match=r"no such GPU.*asked=99"):
        wl.nd.zeros((2,), device="gpu:99")
