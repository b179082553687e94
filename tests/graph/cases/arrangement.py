"""Padding, repetition, order, running sums, elements by index along an axis."""

from __future__ import annotations

import numpy as np

from tests.graph.op_case import OpCase, Values, drawn

X = drawn(2, 3, 4)
WIDTHS = ((0, 0), (1, 2), (2, 0))
PLACES = np.array([[1, 0, 1], [2, 2, 0]])
ROWS = np.array([2, 0, 2])


def _scattered(x: Values, indices: Values, updates: Values) -> Values:
    found = x.copy()
    for i, row in zip(indices, updates, strict=True):
        found[i] += row
    return found


def _put(g: Values, indices: Values, like: Values, axis: int) -> Values:
    found = np.zeros_like(like)
    for i in range(2):
        for j in range(3):
            found[i, indices[i, j]] += g[i, j]
    return found


CASES = [
    OpCase(
        "pad",
        (X,),
        lambda x, widths, value: np.pad(x, widths, constant_values=value),
        {"widths": WIDTHS, "value": 2.0},
        by=(0,),
    ),
    OpCase("crop", (drawn(2, 6, 6),), lambda x, widths: x[:, 1:4, 2:], {"widths": WIDTHS}, by=(0,)),
    *(
        OpCase(
            "tile",
            (X,),
            lambda x, repeats, axis: np.concatenate([x] * repeats, axis),
            {"repeats": 3, "axis": axis},
            by=(0,),
        )
        for axis in (0, -1)
    ),
    OpCase(
        "tile_gradient",
        (drawn(2, 6), drawn(2, 3)),
        lambda g, like, repeats, axis: g[:, :3] + g[:, 3:],
        {"repeats": 2, "axis": 1},
        by=(0,),
    ),
    *(OpCase("repeat", (X,), np.repeat, {"repeats": 2, "axis": axis}, by=(0,)) for axis in (0, 1)),
    OpCase(
        "repeat_gradient",
        (drawn(2, 6), drawn(2, 3)),
        lambda g, like, repeats, axis: g[:, ::2] + g[:, 1::2],
        {"repeats": 2, "axis": 1},
        by=(0,),
    ),
    OpCase("flip", (X,), np.flip, {"axis": 1}, by=(0,)),
    OpCase("cumsum", (X,), np.cumsum, {"axis": 1}, by=(0,)),
    OpCase("argsort", (X,), lambda x, axis: np.argsort(x, axis), {"axis": 1}),
    OpCase("sort", (X,), lambda x, axis: np.sort(x, axis), {"axis": 1}, by=(0,)),
    OpCase("sort", (X,), lambda x, descending: np.sort(x)[..., ::-1], {"descending": True}, by=(0,)),
    OpCase("take_along", (drawn(2, 3), PLACES), lambda x, i: np.take_along_axis(x, i, -1), by=(0,)),
    OpCase("take_along_gradient", (drawn(2, 3), PLACES, drawn(2, 4)), _put, {"axis": 1}, by=(0,)),
    OpCase("scatter_add", (drawn(3, 2), ROWS, drawn(3, 2, seed=4)), _scattered, by=(0, 2)),
]
