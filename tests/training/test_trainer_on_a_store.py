"""The Trainer with a store: the bits of training in one process, gradients that leave early, models that change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.training.digits_model import losses, parameters, train
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


def test_a_layer_comes_and_another_goes_while_training() -> None:
    """Old parameters keep values and slots; the loss goes on falling."""
    with wl.connect(servers=2) as cluster:
        params = parameters()
        store = cluster.store("grows")
        trainer = wl.Trainer(params, wl.optim.Adam(lr=1e-2), store=store)
        before = train(params, trainer, 30, early=True)
        kept = params["w1"].numpy()

        middle = wl.nd.array(np.eye(64, dtype=np.float32))
        middle.attach_grad()
        changed = {name: array for name, array in params.items() if name != "b1"} | {"middle": middle}
        trainer.take(changed)
        np.testing.assert_array_equal(params["w1"], kept)
        assert set(store.specs()) == {"w1", "w2", "b2", "middle"}

        after = []
        for i in range(30, 60):
            rows = slice(i * 32 % 1700, i * 32 % 1700 + 32)
            from tests.training.digits_model import X, Y

            with wl.autograd.record():
                first = wl.nd.relu(wl.nd.matmul(wl.nd.array(X[rows]), params["w1"], transpose_y=True))
                second = wl.nd.relu(wl.nd.matmul(first, middle))
                scores = wl.nd.fully_connected(second, params["w2"], params["b2"], units=10)
                loss = wl.nd.softmax_cross_entropy(scores, wl.nd.array(Y[rows]))
            after.append(float(loss.mean()))
            trainer.backward(loss)
            trainer.step()
        assert np.mean(after[-5:]) < np.mean(before[-5:])
        assert after[0] < before[0] / 2, "the layers that stayed kept what they had learned"


def test_refusals_are_said_in_words_and_the_store_goes_on(tmp_path: Any) -> None:
    params = parameters()
    extra = wl.nd.ones((3,))
    extra.attach_grad()
    with wl.connect() as cluster:
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
