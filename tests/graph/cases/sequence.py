"""The loss of connectionist temporal classification, against the sum over all paths."""

from __future__ import annotations

import itertools

import numpy as np

from tests.graph.op_case import OpCase, Values, drawn


def spelled(path: tuple[int, ...], blank: int) -> list[int]:
    """What is left of a path after its repetitions and then its blanks are taken out."""
    return [label for label, _ in itertools.groupby(path) if label != blank]


def every_path(x: Values, labels: Values, input_lengths: Values, label_lengths: Values, blank: int = 0) -> Values:
    losses = []
    for one in range(x.shape[1]):
        p = np.exp(x[: input_lengths[one], one])
        p /= p.sum(axis=-1, keepdims=True)
        wanted = labels[one, : label_lengths[one]].tolist()
        total = sum(
            np.prod(p[range(len(p)), path]) if path else 1.0
            for path in itertools.product(range(x.shape[2]), repeat=len(p))
            if spelled(path, blank) == wanted
        )
        losses.append(-np.log(total) if total else np.inf)
    return np.array(losses)


X = drawn(5, 4, 3, low=-2, high=2)
LABELS = np.array([[1, 2, 0], [1, 1, 0], [2, 0, 0], [2, 1, 2]])

CASES = [
    OpCase("ctc_loss", (X, LABELS, np.array([5, 4, 2, 5]), np.array([2, 2, 1, 3])), every_path, by=(0,), second=False),
    OpCase("ctc_loss", (X, LABELS % 2, np.array([5, 3, 1, 4]), np.array([1, 1, 0, 1])), every_path, {"blank": 2},
           by=(0,), second=False),
    OpCase("ctc_loss_gradient", (drawn(4), X), lambda g, by_x: g[:, None] * by_x, by=(0,)),
]  # fmt: skip
