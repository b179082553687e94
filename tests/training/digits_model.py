"""A small model of the digits as plain arrays, for tests of training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

import windlass as wl
from windlass.datasets import load_digits
from windlass_graph.array import Array
from windlass_worker.trainer import Trainer

X, Y = load_digits()


def parameters(seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    shapes = {"w1": (64, 64), "b1": (64,), "w2": (10, 64), "b2": (10,)}
    found = {}
    for name, shape in shapes.items():
        values = random.normal(0, 0.2, shape) if name.startswith("w") else np.zeros(shape)
        found[name] = wl.nd.array(values.astype(np.float32))
        found[name].attach_grad()
    return found


def losses(params: Mapping[str, Array], rows: slice) -> Array:
    """One cross entropy a row."""
    hidden = wl.nd.relu(wl.nd.fully_connected(wl.nd.array(X[rows]), params["w1"], params["b1"], units=64))
    scores = wl.nd.fully_connected(hidden, params["w2"], params["b2"], units=10)
    found: Array = wl.nd.softmax_cross_entropy(scores, wl.nd.array(Y[rows]))
    return found


def train(params: Mapping[str, Array], trainer: Trainer, steps: int, *, early: bool, begin: int = 0) -> list[float]:
    """Mean losses of `steps` batches of 32; `early` lets gradients leave while others are computed."""
    curve = []
    for i in range(begin, begin + steps):
        with wl.autograd.record():
            loss = losses(params, slice(i * 32 % 1700, i * 32 % 1700 + 32))
        curve.append(float(loss.mean()))
        if early:
            trainer.backward(loss)
            trainer.step()
        else:
            loss.backward()
            trainer.step(32)
    return curve
