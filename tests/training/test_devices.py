"""Data parallel over the devices of one worker: parts of a batch, one gradient a parameter, and when it leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.training.digits_model import Replicated, parameters, replicated, train, train_over
from windlass_proto.errors import UsageError

PAIR = ["cpu:0", "cpu:1"]


def test_parts_in_order_are_the_batch_and_lie_on_their_devices() -> None:
    batch = np.arange(24, dtype=np.float32).reshape(6, 4)
    parts = wl.split_and_load(batch, ["cpu:0", wl.cpu(1), "cpu:2"])
    assert [str(part.device) for part in parts] == ["cpu:0", "cpu:1", "cpu:2"]
    np.testing.assert_array_equal(np.concatenate([part.numpy() for part in parts]), batch)
    assert all(np.shares_memory(part.memory, batch) for part in parts), "the first axis parts into views"


def test_another_axis_is_copied_in_one_piece() -> None:
    batch = np.arange(24, dtype=np.float32).reshape(6, 4)
    for axis in (1, -1):
        left, right = wl.split_and_load(batch, PAIR, batch_axis=axis)
        np.testing.assert_array_equal(right, batch[:, 2:])
        assert left.memory.flags.c_contiguous
        assert not np.shares_memory(left.memory, batch)


def test_an_array_of_the_engine_and_a_list_are_taken_too() -> None:
    whole = wl.nd.array([1.0, 2.0, 3.0, 4.0])
    parts = wl.split_and_load(whole, PAIR)
    assert np.shares_memory(parts[1].memory, whole.memory)
    assert [part.numpy().tolist() for part in wl.split_and_load([1, 2], "cpu:1")] == [[1, 2]]


def test_parts_of_an_uneven_batch_differ_by_one_sample() -> None:
    parts = wl.split_and_load(np.arange(11), ["cpu:0", "cpu:1", "cpu:2"], even_split=False)
    assert [part.numpy().tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize(
    ("batch", "options", "said"),
    [
        (np.zeros((1, 2)), {}, "fewer samples than there are devices"),
        (np.zeros((0, 2)), {"even_split": False}, "fewer samples than there are devices"),
        (np.zeros((5, 2)), {}, "multiple of 2, or pass even_split=False"),
        (np.zeros((4, 2)), {"batch_axis": 2}, "no such axis"),
        (np.zeros(()), {}, "no such axis"),
        (np.zeros(4), {"devices": []}, "no device"),
        (np.zeros(4), {"devices": ["tpu:0"]}, "this is no device"),
    ],
)
def test_what_cannot_be_split_is_refused(batch: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        wl.split_and_load(batch, **{"devices": PAIR, **options})


@pytest.mark.parametrize("rows", [32, 33])
def test_devices_learn_as_one_does(rows: int) -> None:
    devices = ["cpu:0", "cpu:1", "cpu:2"]
    copies, alone = replicated(devices), replicated(devices[:1])
    spec = wl.optim.SGD(lr=0.3, momentum=0.9)
    curve = train_over(copies, wl.Trainer(copies, spec), 12, devices, rows)
    np.testing.assert_allclose(curve, train_over(alone, wl.Trainer(alone, spec), 12, devices[:1], rows), rtol=1e-4)
    for name, each in copies.items():
        first, second, third = each.list_data()
        np.testing.assert_allclose(first, alone[name].list_data()[0], rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first, third)


def test_one_device_has_the_bits_of_a_model_without_devices() -> None:
    params, copies = parameters(), replicated(PAIR[:1])
    spec = wl.optim.Adam(lr=1e-2)
    wanted = train(params, wl.Trainer(params, spec), 6, early=True)
    np.testing.assert_allclose(train_over(copies, wl.Trainer(copies, spec), 6, PAIR[:1]), wanted, rtol=1e-6)
    for name, array in params.items():
        np.testing.assert_array_equal(copies[name].list_data()[0], array)


def deep(layers: int, units: int, devices: list[str]) -> dict[str, Replicated]:
    random = np.random.default_rng(0)
    weights = [random.normal(0, 0.05, (units, units)).astype(np.float32) for _ in range(layers)]
    return {f"layer{i:02}": Replicated(wl.nd.array(weight), devices) for i, weight in enumerate(weights)}


def deep_losses(copies: dict[str, Replicated], batch: Any, devices: list[str]) -> list[Any]:
    found = []
    for device, x in zip(devices, wl.split_and_load(batch, devices), strict=True):
        hidden = x
        for each in copies.values():
            hidden = wl.nd.tanh(wl.nd.matmul(hidden, each.copies[device]))
        found.append((hidden * hidden).sum(axis=1))
    return found


def test_devices_complete_a_layer_before_any_begins_the_one_below() -> None:
    copies = deep(5, 4, PAIR)
    names = {id(copy): (name, device) for name, each in copies.items() for device, copy in each.copies.items()}
    with wl.autograd.record():
        heads = deep_losses(copies, np.ones((4, 4), np.float32), PAIR)
    told: list[tuple[str, str]] = []
    wl.autograd.backward(heads, final=lambda array: told.append(names[id(array)]))
    layers = [layer for layer, _ in told]
    assert layers == sorted([*copies, *copies], reverse=True)
    assert set(told) == {(name, device) for name in copies for device in PAIR}


@pytest.mark.cluster
def test_a_trace_shows_each_gradient_leave_once_and_long_before_the_backward_pass_ends(tmp_path: Path) -> None:
    with wl.connect() as cluster:
        copies = deep(8, 192, PAIR)
        trainer = wl.Trainer(copies, wl.optim.SGD(lr=0.01), store=cluster.store("deep"))
        batch = np.random.default_rng(1).normal(0, 1, (256, 192)).astype(np.float32)
        early: list[int] = []
        for _ in range(6):
            with wl.autograd.record():
                heads = deep_losses(copies, batch, PAIR)
            with wl.profiler.profile() as profile:
                trainer.backward(heads)
                trainer.step()
            profile.save(tmp_path / "trace.json")
            events = json.loads((tmp_path / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
            pushes = [event for event in events if event["name"].startswith("push ")]
            assert [event["name"] for event in pushes] == [f"push {name}" for name in sorted(copies, reverse=True)]
            assert [event["name"] for event in events if event.get("cat") == "store"][-1] == "wait for values"
            ops = [event for event in events if event.get("cat") == "op"]
            began, ended = ops[0]["ts"], ops[-1]["ts"] + ops[-1]["dur"]
            early.append(sum(event["ts"] + event["dur"] < began + 0.75 * (ended - began) for event in pushes))
        assert max(early) >= 4, f"half of eight leave in three quarters of the backward pass: {early}"


@pytest.mark.cluster
def test_devices_on_a_store_learn_as_one_device_alone() -> None:
    spec = wl.optim.Adam(lr=1e-2)
    alone = replicated(PAIR[:1])
    wanted = train_over(alone, wl.Trainer(alone, spec), 12, PAIR[:1], 33)
    with wl.connect(servers=2) as cluster:
        for mode in ("bsp", "asp"):
            copies = replicated(PAIR)
            store = cluster.store(mode, consistency=mode)
            curve = train_over(copies, wl.Trainer(copies, spec, store=store), 12, PAIR, 33)
            np.testing.assert_allclose(curve, wanted, rtol=1e-3)
            for each in copies.values():
                first, second = each.list_data()
                np.testing.assert_array_equal(first, second)
