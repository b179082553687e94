"""Reductions, shapes, joins and parts, products, indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.graph.op_case import OpCase, drawn

X = drawn(2, 3, 4)
M, N = drawn(2, 3), drawn(3, 4, seed=1)
INTS = np.array([2, 0, 2, 1])

REDUCED: list[dict[str, Any]] = [{}, {"axis": 1}, {"axis": (0, -1)}, {"axis": 2, "keepdims": True}]

CASES = [
    *(
        OpCase(op, (X if op != "prod" else drawn(2, 2, 3, low=0.5),), getattr(np, op), attrs, by=(0,))
        for op in ("sum", "mean", "max", "min", "prod")
        for attrs in REDUCED
    ),
    OpCase("sum", (drawn(2, 3, 2, 4),), np.sum, {"axis": (1, 2), "keepdims": True}, by=(0,)),
    *(OpCase(op, (X,), getattr(np, op), {"axis": 1}) for op in ("argmax", "argmin")),
    OpCase("keep_axes", (M, X), lambda x, like, axis: np.expand_dims(x, axis), {"axis": 2}, by=(0,)),
    OpCase("broadcast_like", (drawn(3, 1), X), lambda x, like: np.broadcast_to(x, like.shape), by=(0,)),
    OpCase("broadcast_to", (drawn(1, 4),), np.broadcast_to, {"shape": (3, 4)}, by=(0,)),
    OpCase("sum_to_like", (X, drawn(3, 1)), lambda x, like: x.sum(axis=(0, 2))[:, None], by=(0,)),
    OpCase("count_like", (X,), lambda x, axis: np.float64(8), {"axis": (0, 2)}),
    OpCase("reshape", (X,), lambda x, shape: x.reshape(2, 12), {"shape": (0, -1)}, by=(0,)),
    OpCase("flatten", (X,), lambda x: x.reshape(2, 12), by=(0,)),
    OpCase("expand_dims", (X,), np.expand_dims, {"axis": -1}, by=(0,)),
    OpCase("squeeze", (drawn(2, 1, 3, 1),), np.squeeze, {"axis": 1}, by=(0,)),
    OpCase("squeeze", (drawn(2, 1, 3, 1),), np.squeeze, {}, by=(0,)),
    OpCase("reshape_like", (X, drawn(4, 6)), lambda x, like: x.reshape(4, 6), by=(0,)),
    OpCase("rows_of", (X,), lambda x: x.reshape(6, 4), by=(0,)),
    OpCase("transpose", (X,), np.transpose, {}, by=(0,)),
    OpCase("transpose", (X,), np.transpose, {"axes": (1, -1, 0)}, by=(0,)),
    OpCase("zeros_like", (X,), np.zeros_like),
    OpCase("ones_like", (X,), np.ones_like),
    OpCase("concat", (M, drawn(2, 1), M * 2), lambda *x, axis: np.concatenate(x, axis), {"axis": 1}, by=(0, 1, 2)),
    OpCase(
        "part_like",
        (drawn(2, 4), drawn(2, 3), drawn(2, 1)),
        lambda x, *parts, axis, index: x[:, 3:],
        {"axis": 1, "index": 1},
        by=(0,),
    ),
    OpCase(
        "slice_axis", (X,), lambda x, axis, begin, end: x[:, begin:end], {"axis": 1, "begin": -2, "end": None}, by=(0,)
    ),
    OpCase(
        "slice_axis_gradient",
        (drawn(2, 2, 4), X),
        lambda g, like, axis, begin, end: np.pad(g, ((0, 0), (1, 0), (0, 0))),
        {"axis": 1, "begin": 1, "end": 3},
        by=(0,),
    ),
    OpCase("matmul", (M, N), lambda x, y: x @ y, by=(0, 1)),
    OpCase("matmul", (drawn(2, 2, 3), N), lambda x, y: x @ y, by=(0, 1)),
    *(
        OpCase(
            "matmul",
            (M.T if tx else M, N.T if ty else N),
            lambda x, y, transpose_x, transpose_y: M @ N,
            {"transpose_x": tx, "transpose_y": ty},
            by=(0, 1),
        )
        for tx, ty in ((True, False), (False, True), (True, True))
    ),
    OpCase("dot", (drawn(3), drawn(3, seed=2)), np.dot, by=(0, 1)),
    OpCase(
        "fully_connected",
        (X, drawn(5, 12, seed=1), drawn(5, seed=2)),
        lambda x, w, b, units: x.reshape(2, -1) @ w.T + b,
        {"units": 5},
        by=(0, 1, 2),
    ),
    OpCase(
        "fully_connected",
        (X, drawn(5, 4, seed=1)),
        lambda x, w, units, use_bias, flatten: x @ w.T,
        {"units": 5, "use_bias": False, "flatten": False},
        by=(0, 1),
    ),
    OpCase("take", (drawn(3, 2), INTS), lambda x, i: x[i], by=(0,)),
    OpCase("take", (X, INTS.reshape(2, 2)), lambda x, i, axis: np.take(x, i, axis), {"axis": 1}, by=(0,)),
    OpCase(
        "take_gradient",
        (drawn(4, 2), INTS, drawn(3, 2)),
        lambda g, i, like: np.array([g[1], g[3], g[0] + g[2]]),
        by=(0,),
    ),
    OpCase(
        "take_gradient",
        (drawn(2, 4, 3), INTS, drawn(2, 5, 3)),
        lambda g, i, like, axis: np.stack([g[:, 1], g[:, 3], g[:, 0] + g[:, 2], 0 * g[:, 0], 0 * g[:, 0]], axis=1),
        {"axis": 1},
        by=(0,),
    ),
    OpCase(
        "embedding",
        (INTS, drawn(3, 2)),
        lambda i, w, input_size, output_size: w[i],
        {"input_size": 3, "output_size": 2},
        by=(1,),
    ),
    OpCase("pick", (drawn(4, 3), INTS), lambda x, i: x[np.arange(4), i], by=(0,)),
    OpCase("one_hot", (INTS,), lambda i, depth: np.eye(depth, dtype=np.float32)[i], {"depth": 3}),
    OpCase("dropout", (M,), lambda x, p, training: x, {"p": 0.4, "training": False}, by=(0,)),
    OpCase("random_uniform", (), None, {"shape": (2, 3)}),
    OpCase("random_normal", (), None, {"shape": (2, 3)}),
]
