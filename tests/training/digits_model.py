"""A small model of the digits as plain arrays, for tests of training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

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
    return scored(params, wl.nd.array(X[rows]), wl.nd.array(Y[rows]))


def scored(params: Mapping[str, Array], x: Array, y: Array) -> Array:
    hidden = wl.nd.relu(wl.nd.fully_connected(x, params["w1"], params["b1"], units=64))
    scores = wl.nd.fully_connected(hidden, params["w2"], params["b2"], units=10)
    found: Array = wl.nd.softmax_cross_entropy(scores, y)
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


class Replicated:
    """A parameter with a copy on each of several devices, as a block's are."""

    grad_req, is_deferred, lr_mult, decay_mult = "write", False, 1.0, 1.0

    def __init__(self, array: Array, devices: Sequence[str]) -> None:
        self.copies = {device: wl.nd.array(array, device=device) for device in devices}
        for copy in self.copies.values():
            copy.attach_grad()

    def list_data(self) -> list[Array]:
        return list(self.copies.values())

    def host_values(self) -> Any:
        return self.list_data()[0].numpy()


def replicated(devices: Sequence[str], seed: int = 0) -> dict[str, Replicated]:
    return {name: Replicated(array, devices) for name, array in parameters(seed).items()}


def train_over(
    copies: Mapping[str, Replicated], trainer: Trainer, steps: int, devices: Sequence[str], rows: int = 32
) -> list[float]:
    """As `train` with gradients that leave early, each batch over the devices."""
    curve = []
    for i in range(steps):
        part = slice(i * rows % 1700, i * rows % 1700 + rows)
        xs = wl.split_and_load(X[part], devices, even_split=False)
        ys = wl.split_and_load(Y[part], devices, even_split=False)
        with wl.autograd.record():
            listed = [
                scored({name: each.copies[device] for name, each in copies.items()}, x, y)
                for device, x, y in zip(devices, xs, ys, strict=True)
            ]
        curve.append(sum(float(loss.sum()) for loss in listed) / rows)
        trainer.backward(listed)
        trainer.step()
    return curve


class DigitsNet:
    """The same model with the two things of a block that training needs."""

    def __init__(self, devices: Sequence[str] = ("cpu:0",), units: int = 64, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        shapes = {"w1": (units, 64), "b1": (units,), "w2": (10, units), "b2": (10,)}
        values = {name: random.normal(0, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
        self.units = units
        self.copies = {name: Replicated(wl.nd.array(each), devices) for name, each in values.items()}

    @property
    def params(self) -> dict[str, Array]:
        return {name: each.list_data()[0] for name, each in self.copies.items()}

    def collect_params(self) -> dict[str, Replicated]:
        return self.copies

    def __call__(self, x: Array) -> Array:
        own = {name: each.copies[str(x.device)] for name, each in self.copies.items()}
        hidden = wl.nd.relu(wl.nd.fully_connected(x, own["w1"], own["b1"], units=self.units))
        found: Array = wl.nd.fully_connected(hidden, own["w2"], own["b2"], units=10)
        return found


class MakersRows(wl.data.Dataset):
    """Rows of the number of the process that made them."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> Any:
        return np.full(64, os.getpid(), np.float32), 0


def normalised(seed: int = 0) -> wl.nn.HybridSequential:
    """A net whose shapes are not known yet, and whose moving averages no gradient reaches."""
    net = wl.nn.HybridSequential(wl.nn.Dense(16), wl.nn.BatchNorm(), wl.nn.Activation("relu"), wl.nn.Dense(10))
    net.initialize(seed=seed)
    net.hybridize()
    return net
