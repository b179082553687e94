"""The softmax family and losses."""

from __future__ import annotations

import numpy as np

from tests.graph.op_case import OpCase, Values, drawn

SCORES, LABELS = drawn(4, 3, low=-2, high=2), np.array([2, 0, 1, 2])
HOT = np.eye(3)[LABELS]


def _softmax(x: Values, axis: int = -1) -> Values:
    e: Values = np.exp(x)
    found: Values = e / e.sum(axis=axis, keepdims=True)
    return found


CASES = [
    OpCase("softmax", (SCORES,), _softmax, by=(0,)),
    OpCase("softmax", (SCORES,), _softmax, {"axis": 0}, by=(0,)),
    OpCase("log_softmax", (SCORES,), lambda x: np.log(_softmax(x)), by=(0,)),
    OpCase(
        "softmax_cross_entropy",
        (SCORES, LABELS),
        lambda x, labels: -np.log(_softmax(x)[np.arange(4), labels]),
        by=(0,),
    ),
    OpCase(
        "cross_entropy_gradient",
        (drawn(4), SCORES, LABELS),
        lambda g, log_p, labels: g[:, None] * (np.exp(log_p) - HOT),
        by=(0, 1),
    ),
    OpCase("one_hot_like", (LABELS, SCORES), lambda labels, like: HOT),
    OpCase("softmax_output", (SCORES, LABELS), lambda x, labels: _softmax(x), own_gradient=True),
    OpCase("softmax_output_gradient", (SCORES, LABELS), lambda p, labels: p - HOT),
    OpCase("make_loss", (SCORES,), lambda x: x, own_gradient=True),
]
