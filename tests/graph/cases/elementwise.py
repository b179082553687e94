"""Elementwise ops."""

from __future__ import annotations

import numpy as np

from tests.graph.op_case import OpCase, Values, drawn

A, B, ROW = drawn(2, 3), drawn(2, 3, seed=1), drawn(3, seed=2)
POSITIVE, AWAY = drawn(2, 3, low=0.2, high=2), drawn(2, 3, low=0.3, high=0.9, seed=3)
INTS = np.array([[0, 1, 2], [2, 1, 0]])
TRUTH = np.array([[True, False, True], [False, True, False]])


def _sigmoid(x: Values) -> Values:
    found: Values = 1 / (1 + np.exp(-x))
    return found


CASES = [
    *(
        OpCase(op, (x, y), expected, by=(0, 1))
        for op, expected in (("add", np.add), ("subtract", np.subtract), ("multiply", np.multiply))
        for x, y in ((A, B), (A, ROW), (ROW, A))
    ),
    OpCase("divide", (A, POSITIVE), np.divide, by=(0, 1)),
    OpCase("divide", (INTS, INTS + 1), lambda x, y: np.divide(x, y, dtype=np.float32)),
    OpCase("power", (POSITIVE, A), np.power, by=(0, 1)),
    OpCase("power", (POSITIVE, ROW), np.power, by=(0, 1)),
    OpCase("floor_divide", (A, POSITIVE), np.floor_divide),
    OpCase("mod", (A, POSITIVE), np.mod, by=(0, 1)),
    OpCase("maximum", (A, B), np.maximum, by=(0, 1)),
    OpCase("minimum", (A, ROW), np.minimum, by=(0, 1)),
    *(
        OpCase(op, (x,), getattr(np, op), by=(0,))
        for op, x in (
            ("negative", A),
            ("absolute", A),
            ("square", A),
            ("sqrt", POSITIVE),
            ("exp", A),
            ("log", POSITIVE),
            ("log1p", A * 0.9),
            ("expm1", A),
            ("sin", A),
            ("cos", A),
            ("tanh", A),
            ("reciprocal", POSITIVE),
        )
    ),
    *(OpCase(op, (A * 3,), getattr(np, op)) for op in ("sign", "floor", "ceil", "round")),
    OpCase("rsqrt", (POSITIVE,), lambda x: x**-0.5, by=(0,)),
    OpCase("sigmoid", (A,), _sigmoid, by=(0,)),
    OpCase("relu", (A,), lambda x: np.maximum(x, 0), by=(0,)),
    OpCase("relu_gradient", (A, B), lambda g, out: g * (out > 0), by=(0,)),
    OpCase("leaky_relu", (A,), lambda x, slope: np.where(x > 0, x, x * slope), {"slope": 0.3}, by=(0,)),
    OpCase("softplus", (A,), lambda x: np.log1p(np.exp(x)), by=(0,)),
    OpCase("clip", (A,), lambda x, low, high: np.clip(x, low, high), {"low": -0.45, "high": 0.55}, by=(0,)),
    *(
        OpCase(op, (INTS, INTS.T.reshape(2, 3)), getattr(np, op))
        for op in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal", "logical_and", "logical_or")
    ),
    OpCase("logical_not", (TRUTH,), np.logical_not),
    OpCase("where", (TRUTH, A, B), np.where, by=(1, 2)),
    OpCase("where", (TRUTH, A, ROW), np.where, by=(1, 2)),
    OpCase("cast", (A,), lambda x, dtype: x.astype(dtype), {"dtype": "float64"}, by=(0,)),
    OpCase("cast", (A * 4,), lambda x, dtype: x.astype(dtype), {"dtype": "int32"}),
    OpCase("cast_like", (A, B), lambda x, like: x, by=(0,)),
    OpCase("block_grad", (A,), lambda x: x),
    OpCase("identity", (A,), lambda x: x, by=(0,)),
]
