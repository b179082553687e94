"""The Trainer with a store: the bits of training in one process, gradients that leave early, models that change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.training.digits_model import X, Y, losses, parameters, train
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster

SPECS: dict[str, Any] = {
    "adam": wl.optim.Adam(lr=1e-2),
    "clipped": wl.optim.SGD(lr=0.3, momentum=0.9, clip_global_norm=1.0),
}


def test_one_worker_on_two_servers_has_the_bits_of_a_process_alone() -> None:
    with wl.connect(servers=2) as cluster:
        for name, spec in SPECS.items():
            for early in (False, True):
                alone, params = parameters(), parameters()
                wanted = train(alone, wl.Trainer(alone, spec), 12, early=early)
                store = cluster.store(f"{name}-{early}")
                assert train(params, wl.Trainer(params, spec, store=store), 12, early=early) == wanted
                for tensor in params:
                    np.testing.assert_array_equal(params[tensor], alone[tensor], err_msg=f"{name} {early}")


def test_it_learns_without_waiting_for_others() -> None:
    with wl.connect() as cluster:
        for mode in ("asp", "ssp:2"):
            params = parameters()
            trainer = wl.Trainer(params, wl.optim.Adam(lr=1e-2), store=cluster.store(mode, consistency=mode))
            curve = train(params, trainer, 40, early=True)
            assert curve[-1] < curve[0] / 2, mode


def steps(exe: Any, trainer: wl.Trainer, begin: int, count: int) -> list[float]:
    """Mean cross entropies of batches of 32 rows, one step each."""
    curve = []
    for i in range(begin, begin + count):
        rows = slice(i * 32 % 1700, i * 32 % 1700 + 32)
        (p,) = exe.forward(is_train=True, data=X[rows], label=Y[rows])
        curve.append(float(-np.log(p.numpy()[np.arange(32), Y[rows]] + 1e-9).mean()))
        exe.backward()
        trainer.step(32)
    return curve


def test_a_net_gains_a_layer_and_loses_another_while_it_trains_on_the_cluster() -> None:
    """Old parameters keep values and slots, what was compiled is used again, the loss goes on falling."""
    hidden = wl.sym.relu(wl.sym.fully_connected(wl.sym.Variable("data"), units=64, name="fc1"), name="act1")
    middle = wl.sym.tanh(wl.sym.fully_connected(hidden, units=64, name="fc2"), name="act2")
    scores = wl.sym.fully_connected(middle, units=10, name="fc3")
    net = wl.sym.softmax_output(scores, wl.sym.Variable("label"), name="softmax")
    exe = net.simple_bind(data=(32, 64), label=(32,), type_dict={"label": "int64"})
    random = np.random.default_rng(0)

    def parameters_of(executor: Any) -> dict[str, Any]:
        return {name: array for name, array in executor.arg_dict.items() if name.startswith("fc")}

    def fill(executor: Any) -> None:
        for name in executor.fresh:
            if name.endswith("weight"):
                executor.arg_dict[name].memory[...] = random.normal(0, 0.2, executor.arg_dict[name].shape)

    fill(exe)
    with wl.connect(servers=2) as cluster:
        store = cluster.store("grows")
        trainer = wl.Trainer(parameters_of(exe), wl.optim.Adam(lr=5e-3), store=store)
        before = steps(exe, trainer, 0, 30)

        graph = exe.graph.remove("act2").remove("fc2")
        graph = graph.add(
            lambda h: wl.sym.relu(wl.sym.fully_connected(h, units=64, name="fc4"), name="act4"), before="fc3"
        )
        kept = {name: exe.arg_dict[name].numpy() for name in ("fc1_weight", "fc3_bias")}
        edited = exe.edited(graph)
        assert set(edited.fresh) == {"fc4_weight", "fc4_bias"}
        edited.arg_dict["fc4_weight"].memory[...] = np.eye(64)  # relu of what relu gave: the net is as it was
        trainer.take(parameters_of(edited))
        assert set(store.specs()) == set(parameters_of(edited))
        for name, value in kept.items():
            np.testing.assert_array_equal(edited.arg_dict[name], value)

        after = steps(edited, trainer, 30, 60)
        told = edited.explain(is_train=True)
        assert told.reused_steps >= 8 > told.compiled_steps, told
        assert np.mean(after[-10:]) < np.mean(before[-10:]) < before[0] / 2


def test_refusals_are_said_in_words_and_the_store_goes_on(tmp_path: Any) -> None:
    params = parameters()
    extra = wl.nd.ones((3,))
    extra.attach_grad()
    with wl.connect() as cluster:
        averaged = cluster.store("averaged", consistency="avg:H=4")
        with pytest.raises(UsageError, match=r"train on their own.*avg:H=4.*store\.average"):
            wl.Trainer(params, wl.optim.SGD(lr=0.1), store=averaged)
        trainer = wl.Trainer({**params, "extra": extra}, wl.optim.SGD(lr=0.1), store=cluster.store("missing"))
        with pytest.raises(UsageError, match=r"store\.checkpoint"):
            trainer.save_states(tmp_path / "states")
        with wl.autograd.record():
            loss = losses(params, slice(0, 32))
        loss.backward()
        with pytest.raises(UsageError, match=r"no gradient.*extra"):
            trainer.step(32)
        trainer.take(params)
        assert train(params, trainer, 10, early=False)[-1] < float(loss.mean())
