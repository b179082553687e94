"""The network of the accuracy case: 64-128-10, ReLU, cross entropy, in plain NumPy.

One definition for the process without a cluster and for the workers of one, so that the curve compares
clusters and not networks. PyTorch gets the same layers, batch and Adam.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Parameters = dict[str, Array]

HIDDEN = 128
BATCH = 32  # rows a worker a step
EPOCHS = 20
LEARNING_RATE = 3e-3
ACCURACY_GOAL = 0.97


def split_digits(x: Array, y: NDArray[np.int64]) -> tuple[Array, NDArray[np.int64], Array, NDArray[np.int64]]:
    """Train and test rows: every fifth is a test row."""
    test = np.arange(len(x)) % 5 == 0
    return x[~test], y[~test], x[test], y[test]


def initial(seed: int) -> Parameters:
    """He's initial values."""
    random = np.random.default_rng(seed)

    def layer(rows: int, columns: int) -> Array:
        spread = float(np.sqrt(2 / rows))
        return random.normal(0.0, spread, (rows, columns)).astype(np.float32)

    return {
        "w1": layer(64, HIDDEN),
        "b1": np.zeros(HIDDEN, np.float32),
        "w2": layer(HIDDEN, 10),
        "b2": np.zeros(10, np.float32),
    }


def gradients(params: Parameters, x: Array, y: NDArray[np.int64]) -> Parameters:
    """Of the mean cross entropy over the batch."""
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    scores = hidden @ params["w2"] + params["b2"]
    errors = np.exp(scores - scores.max(axis=1, keepdims=True))
    errors /= errors.sum(axis=1, keepdims=True)
    errors[np.arange(len(y)), y] -= 1
    errors /= len(y)
    back = (errors @ params["w2"].T) * (hidden > 0)
    return {"w1": x.T @ back, "b1": back.sum(axis=0), "w2": hidden.T @ errors, "b2": errors.sum(axis=0)}


def accuracy(params: Parameters, x: Array, y: NDArray[np.int64]) -> float:
    hidden = np.maximum(x @ params["w1"] + params["b1"], 0)
    return float(((hidden @ params["w2"] + params["b2"]).argmax(axis=1) == y).mean())
