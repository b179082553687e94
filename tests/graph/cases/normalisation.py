"""Normalisations, in training and in prediction, and their gradients in one piece."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.graph.op_case import OpCase, Values, drawn

X, ROWS = drawn(3, 4, 5), drawn(2, 3, 6)
GAMMA, BETA = drawn(4, low=0.5, high=2), drawn(4, seed=1)
MEAN, VARIANCE = drawn(4, seed=2), drawn(4, low=0.5, high=2, seed=3)
EPSILON = 1e-3


def _hat(x: Values, axes: tuple[int, ...]) -> tuple[Values, Values, Values]:
    mean = x.mean(axis=axes, keepdims=True)
    inverse: Values = 1 / np.sqrt(x.var(axis=axes, keepdims=True) + EPSILON)
    return (x - mean) * inverse, mean, inverse


def _batch(x: Values, gamma: Values, beta: Values, mean: Values, variance: Values, **given: Any) -> Values:
    hat = _hat(x, (0, 2))[0]
    if not given["training"]:
        hat = (x - mean[:, None]) / np.sqrt(variance + EPSILON)[:, None]
    return hat * gamma[:, None] + beta[:, None]


def _groups(x: Values, gamma: Values, beta: Values, groups: int, epsilon: float) -> Values:
    hat = _hat(x.reshape(len(x), groups, -1), (2,))[0].reshape(x.shape)
    return hat * gamma[:, None] + beta[:, None]


def _gradient(g: Values, hat: Values, gamma: Values, inverse: Values, axes: tuple[int, ...]) -> Values:
    """By the data: the gradient through the mean and the deviation taken out."""
    by_hat = g * gamma
    centred = by_hat - by_hat.mean(axis=axes, keepdims=True)
    found: Values = inverse * (centred - hat * (by_hat * hat).mean(axis=axes, keepdims=True))
    return found


def _batch_gradient(g: Values, x: Values, gamma: Values, mean: Values, inverse: Values, training: bool) -> Any:
    hat = (x - mean[:, None]) * inverse[:, None]
    sums = (np.sum(g * hat, axis=(0, 2)), np.sum(g, axis=(0, 2)))
    if not training:
        return g * (gamma * inverse)[:, None], *sums
    return _gradient(g, hat, gamma[:, None], inverse[:, None], (0, 2)), *sums


def _layer_gradient(g: Values, x: Values, gamma: Values, mean: Values, inverse: Values) -> Any:
    hat = (x - mean[..., None]) * inverse[..., None]
    by_x = _gradient(g, hat, gamma, inverse[..., None], (-1,))
    return by_x, np.sum(g * hat, axis=(0, 1)), np.sum(g, axis=(0, 1))


def _group_gradient(g: Values, x: Values, gamma: Values, mean: Values, inverse: Values) -> Any:
    grouped = (len(x), mean.shape[1], -1)
    hat = (x.reshape(grouped) - mean[..., None]) * inverse[..., None]
    wide = np.broadcast_to(gamma[:, None], x.shape).reshape(grouped)
    by_x = _gradient(g.reshape(grouped), hat, wide, inverse[..., None], (2,)).reshape(x.shape)
    return by_x, np.sum(g * hat.reshape(x.shape), axis=(0, 2)), np.sum(g, axis=(0, 2))


def _statistics(x: Values, axes: tuple[int, ...], shape: tuple[int, ...]) -> tuple[Values, Values]:
    _, mean, inverse = _hat(x, axes)
    return mean.reshape(shape), inverse.reshape(shape)


BATCH = {"epsilon": EPSILON}
G = drawn(3, 4, 5, seed=7)
ROW_GAMMA = drawn(6, low=0.5, high=2)

CASES = [
    *(
        OpCase("batch_norm", (X, GAMMA, BETA, MEAN, VARIANCE), _batch, {**BATCH, "training": training}, by=(0, 1, 2),
               second=False)
        for training in (True, False)
    ),
    OpCase("layer_norm", (ROWS, ROW_GAMMA, drawn(6, seed=1)),
           lambda x, gamma, beta, epsilon: _hat(x, (-1,))[0] * gamma + beta, BATCH, by=(0, 1, 2), second=False),
    *(
        OpCase("group_norm", (X, GAMMA, BETA), _groups, {**BATCH, "groups": groups}, by=(0, 1, 2), second=False)
        for groups in (1, 2, 4)
    ),
    *(
        OpCase("batch_norm_gradient", (G, X, GAMMA, *_statistics(X, (0, 2), (4,))), _batch_gradient,
               {"training": training})
        for training in (True, False)
    ),
    OpCase("layer_norm_gradient", (drawn(2, 3, 6, seed=8), ROWS, ROW_GAMMA, *_statistics(ROWS, (-1,), (2, 3))),
           _layer_gradient),
    OpCase("group_norm_gradient", (G, X, GAMMA, *_statistics(X.reshape(3, 2, 10), (2,), (3, 2))), _group_gradient),
]  # fmt: skip
