"""Activations, trigonometric ops and tests of numbers."""

from __future__ import annotations

import math

import numpy as np

from tests.graph.op_case import OpCase, Values, drawn

A, B, INSIDE = drawn(2, 3, low=-2, high=2), drawn(2, 3, low=0.3, high=2, seed=1), drawn(2, 3, low=-0.9, high=0.9)
ODD = np.array([[0.0, np.inf, -np.inf], [np.nan, 1.5, -2.5]])
TRUTH = np.array([[True, False, True], [False, True, False]])


def erf(x: Values) -> Values:
    return np.vectorize(math.erf, otypes=[np.float64])(x)  # type: ignore[no-any-return]


def sigmoid(x: Values) -> Values:
    return np.asarray(1 / (1 + np.exp(-x)))


def gelu_tanh(x: Values) -> Values:
    return np.asarray(0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))))


def elu(x: Values, alpha: float) -> Values:
    return np.where(x > 0, x, alpha * np.expm1(x))


CASES = [
    *(OpCase(op, (A,), getattr(np, op), by=(0,)) for op in ("tan", "arctan", "sinh", "cosh")),
    *(OpCase(op, (INSIDE,), getattr(np, op), by=(0,)) for op in ("arcsin", "arccos")),
    *(OpCase(op, (A, B), getattr(np, op), by=(0, 1)) for op in ("arctan2", "hypot")),
    OpCase("erf", (A,), erf, by=(0,)),
    OpCase("gelu", (A,), lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))), by=(0,)),
    OpCase("gelu_tanh", (A,), gelu_tanh, by=(0,)),
    OpCase("silu", (A,), lambda x: x * sigmoid(x), by=(0,)),
    OpCase("mish", (A,), lambda x: x * np.tanh(np.log1p(np.exp(x))), by=(0,)),
    OpCase("softsign", (A,), lambda x: x / (1 + np.abs(x)), by=(0,)),
    OpCase("elu", (A,), elu, {"alpha": 1.3}, by=(0,)),
    OpCase("selu", (A,), lambda x: 1.0507009873554805 * elu(x, 1.6732632423543772), by=(0,)),
    OpCase(
        "hard_sigmoid",
        (A * 2,),
        lambda x, slope, offset: np.clip(slope * x + offset, 0, 1),
        {"slope": 0.3, "offset": 0.4},
        by=(0,),
    ),
    OpCase("logical_xor", (TRUTH, TRUTH[::-1].copy()), np.logical_xor),
    *(OpCase(op, (ODD,), getattr(np, op)) for op in ("isnan", "isinf", "isfinite", "trunc")),
]
