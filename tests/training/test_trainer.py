"""The Trainer without a cluster: the rules' own results, errors in words, states that come back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.training.digits_model import losses, parameters, train
from windlass_proto.errors import UsageError
from windlass_rules.registry import RULE_MODULES


def oracle_of(spec: Any, params: dict[str, Any], steps: int) -> dict[str, Any]:
    """The parameters after `steps` batches by the rule's float64 oracle."""
    module = RULE_MODULES[type(spec)]
    variant = module.variant(spec)
    values = {name: np.asarray(array, np.float64) for name, array in params.items()}
    slots = {name: [np.full(v.size, s.fill) for s in variant.slots] for name, v in values.items()}
    for i in range(steps):
        arrays = {name: wl.nd.array(v.astype(np.float32)) for name, v in values.items()}
        for array in arrays.values():
            array.attach_grad()
        with wl.autograd.record():
            total = losses(arrays, slice(i * 32, i * 32 + 32)).mean()
        total.backward()
        for name, v in values.items():
            flat = v.reshape(-1).copy()
            grad = np.asarray(arrays[name].grad, np.float64).reshape(-1)
            flat, slots[name] = module.oracle(spec, flat, slots[name], grad, i + 1)
            values[name] = flat.reshape(v.shape)
    return values


@pytest.mark.parametrize("spec", [wl.optim.SGD(lr=0.1, momentum=0.9), wl.optim.Adam(lr=1e-2)], ids=["momentum", "adam"])
def test_it_steps_as_the_rule_says(spec: Any) -> None:
    params = parameters()
    train(params, wl.Trainer(params, spec), 8, early=False)
    for name, wanted in oracle_of(spec, parameters(), 8).items():
        np.testing.assert_allclose(params[name], wanted, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(
    "spec",
    [wl.optim.SGD(lr=0.3, clip_global_norm=0.5), wl.optim.SGD(lr=0.3, clip_norm=0.5), wl.optim.LAMB(lr=1e-2)],
    ids=["global norm", "norm", "lamb"],
)
def test_both_ways_through_a_step_give_the_same_bits(spec: Any) -> None:
    found = []
    for early in (False, True):
        params = parameters()
        curve = train(params, wl.Trainer(params, spec), 20, early=early)
        assert curve[-1] < curve[0]
        found.append({name: array.numpy() for name, array in params.items()})
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_a_clipped_step_is_no_longer_than_its_bound() -> None:
    params = parameters()
    before = {name: array.numpy() for name, array in params.items()}
    train(params, wl.Trainer(params, wl.optim.SGD(lr=1.0, clip_global_norm=0.25)), 1, early=False)
    moved = sum(float(np.sum((array.numpy() - before[name]) ** 2)) for name, array in params.items())
    np.testing.assert_allclose(np.sqrt(moved), 0.25, rtol=1e-4)


def test_a_parameter_without_a_new_gradient_is_refused_or_left_as_it_is() -> None:
    params = parameters()
    extra = wl.nd.ones((3,))
    extra.attach_grad()
    trainer = wl.Trainer({**params, "extra": extra}, wl.optim.SGD(lr=0.1, weight_decay=0.5))
    with wl.autograd.record():
        loss = losses(params, slice(0, 32))
    loss.backward()
    with pytest.raises(UsageError, match=r"no gradient since the last step.*extra"):
        trainer.step(32)
    before = params["w1"].numpy()
    trainer.step(32, ignore_stale_grad=True)
    np.testing.assert_array_equal(extra, np.ones(3))
    assert not np.array_equal(params["w1"], before)


def test_a_step_without_a_batch_size_is_refused() -> None:
    params = parameters()
    trainer = wl.Trainer(params, wl.optim.SGD(lr=0.1))
    with pytest.raises(UsageError, match="no batch size"):
        trainer.step()


def test_states_come_back_and_training_goes_on_bit_for_bit(tmp_path: Path) -> None:
    spec = wl.optim.Adam(lr=wl.schedule.Polynomial(1e-2, steps=30))
    whole = parameters()
    train(whole, wl.Trainer(whole, spec), 12, early=False)

    first = parameters()
    trainer = wl.Trainer(first, spec)
    train(first, trainer, 5, early=False)
    trainer.save_states(tmp_path / "states.safetensors")
    second = parameters(seed=1)
    for name, array in second.items():
        array.memory[...] = first[name].memory
    resumed = wl.Trainer(second, spec)
    resumed.load_states(tmp_path / "states.safetensors")
    train(second, resumed, 7, early=False, begin=5)
    for name in whole:
        np.testing.assert_array_equal(whole[name], second[name])


def test_states_of_another_model_are_refused_and_change_nothing(tmp_path: Path) -> None:
    params = parameters()
    trainer = wl.Trainer(params, wl.optim.Adam(lr=1e-2))
    train(params, trainer, 2, early=False)
    other = {name: array for name, array in parameters().items() if name != "b1"}
    wl.Trainer(other, wl.optim.Adam(lr=1e-2)).save_states(tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match=r"b1\.m"):
        trainer.load_states(tmp_path / "other.safetensors")
    assert train(params, trainer, 1, early=False, begin=2)[0] < 3


def test_a_rate_is_changed_and_a_wrong_number_is_refused() -> None:
    params = parameters()
    trainer = wl.Trainer(params, wl.optim.SGD(lr=0.1))
    trainer.set_learning_rate(0.0)
    before = params["w1"].numpy()
    train(params, trainer, 1, early=False)
    np.testing.assert_array_equal(params["w1"], before)


def test_rules_that_need_other_workers_are_refused() -> None:
    with pytest.raises(UsageError, match="delays between workers"):
        wl.Trainer(parameters(), wl.optim.DCASGD(lr=0.1))
