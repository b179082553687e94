"""Whole models train as PyTorch's do: from the same weights and data the losses of ten steps are the same."""

from __future__ import annotations

import numpy as np
import pytest

import windlass as wl
from tests.training.torch_models import MODELS, Model, Values
from windlass_graph.cached_graph import CachedGraph
from windlass_graph.symbol import Variable

STEPS = 10
OPTIMIZERS = {"sgd": ("SGD", {"lr": 0.05, "momentum": 0.9}), "adam": ("Adam", {"lr": 0.01})}
CLOSE = {"float32": 1e-5, "float64": 1e-11}


def batches(model: Model, dtype: str) -> list[tuple[Values, Values]]:
    random = np.random.default_rng(5)
    drawn = [model.batch(random) for _ in range(STEPS)]
    return [(x.astype(dtype) if x.dtype.kind == "f" else x, y) for x, y in drawn]


def our_losses(model: Model, dtype: str, optimizer: str, *, traced: bool) -> list[float]:
    name, hyper = OPTIMIZERS[optimizer]
    params = {key: wl.nd.array(values) for key, values in model.weights(dtype).items()}
    for array in params.values():
        array.attach_grad()
    trainer = wl.Trainer(params, getattr(wl.optim, name)(**hyper))
    symbols = {key: Variable(key, shape=array.shape) for key, array in params.items()}
    graph = CachedGraph(lambda inputs: [model.ours(symbols, inputs[0])])
    losses = []
    for x, y in batches(model, dtype):
        given = wl.nd.array(x)
        with wl.autograd.record():
            scores = graph([given], params)[0][0] if traced else model.ours(params, given)
            loss = wl.nd.softmax_cross_entropy(scores, wl.nd.array(y))
        loss.backward()
        trainer.step(y.size)
        losses.append(float(loss.mean()))
    return losses


def torch_losses(model: Model, dtype: str, optimizer: str) -> list[float]:
    import torch  # type: ignore[import-not-found,unused-ignore]  # in no environment of ours

    name, hyper = OPTIMIZERS[optimizer]
    params = {key: torch.tensor(values, requires_grad=True) for key, values in model.weights(dtype).items()}
    stepper = getattr(torch.optim, name)(params.values(), **hyper)
    losses = []
    for x, y in batches(model, dtype):
        stepper.zero_grad()
        scores = model.theirs(torch, params, torch.tensor(x))
        loss = torch.nn.functional.cross_entropy(scores.flatten(0, -2), torch.tensor(y).flatten())
        loss.backward()  # type: ignore[no-untyped-call,unused-ignore]
        stepper.step()
        losses.append(loss.item())
    return losses


@pytest.mark.large
@pytest.mark.parametrize(("dtype", "traced"), [("float64", False), ("float32", True)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_the_losses_of_ten_steps_are_those_of_torch(model: Model, dtype: str, optimizer: str, traced: bool) -> None:
    found = our_losses(model, dtype, optimizer, traced=traced)
    np.testing.assert_allclose(found, torch_losses(model, dtype, optimizer), rtol=CLOSE[dtype])
