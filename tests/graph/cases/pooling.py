"""Pooling by windows and of whole channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.graph import oracles
from tests.graph.op_case import OpCase, Values, drawn
from windlass_graph.kernels.windows import Window


def _windows(x: Values, given: dict[str, Any]) -> tuple[Window, list[list[list[float]]]]:
    """What each window of each channel sees."""
    size = x.shape[2:] if given["kernel_size"] is None else given["kernel_size"]
    stride, padding = given.get("stride") or size, given.get("padding", 0)
    padding = (padding,) * len(size) if isinstance(padding, int) else padding
    window = Window.of(x.shape[2:], size, stride, padding)
    images = x.reshape(-1, *window.size)
    seen = [
        [[float(image[point]) for _, point in oracles.seen(window, place)] for place in oracles.places(window)]
        for image in images
    ]
    return window, seen


def _shaped(x: Values, window: Window, found: Any) -> Values:
    return np.array(found).reshape(*x.shape[:2], *window.out[5 - x.ndim :])


def _largest(x: Values, **given: Any) -> Values:
    window, seen = _windows(x, given)
    return _shaped(x, window, [[max(one) for one in channel] for channel in seen])


def _mean(x: Values, count_include_pad: bool = True, **given: Any) -> Values:
    window, seen = _windows(x, given)
    counts = [[window.taps if count_include_pad else len(one) for one in channel] for channel in seen]
    sums = [[sum(one) for one in channel] for channel in seen]
    return _shaped(x, window, np.array(sums) / np.array(counts))


def _mean_gradient(g: Values, like: Values, **given: Any) -> Values:
    found = np.zeros(like.shape)
    for place in np.ndindex(*like.shape):
        unit = np.zeros(like.shape)
        unit[place] = 1
        found[place] = np.sum(g * _mean(unit, **given))
    return found


LINE, IMAGE, VOLUME = drawn(2, 2, 7), drawn(2, 1, 4, 6), drawn(1, 2, 2, 3, 4)
GEOMETRIES: list[tuple[Values, dict[str, Any]]] = [
    (LINE, {"kernel_size": (3,), "stride": (2,), "padding": 1}),
    (IMAGE, {"kernel_size": (2, 2)}),
    (IMAGE, {"kernel_size": (3, 2), "stride": (1, 2), "padding": (1, 0)}),
    (VOLUME, {"kernel_size": (2, 2, 3), "stride": (1, 1, 1), "padding": (1, 0, 1)}),
    (IMAGE, {"kernel_size": None, "global_pool": True}),
]
AT = np.array([[[[0, 9], [20, -1]]], [[[7, 5], [12, 23]]]], np.int32)
BY = {"kernel_size": (2, 3)}
G = drawn(2, 1, 2, 2, seed=4)


def _gathered(x: Values, at: Values, **_: Any) -> Values:
    flat, places = x.reshape(2, -1), at.reshape(2, -1)
    found = np.where(places < 0, 0, np.take_along_axis(flat, np.maximum(places, 0), 1))
    return found.reshape(at.shape)


def _scattered(g: Values, at: Values, like: Values, **_: Any) -> Values:
    found = np.zeros((2, 24))
    for image, place, value in zip(np.repeat([0, 1], 4), at.reshape(-1), g.reshape(-1), strict=True):
        found[image, place] += value if place >= 0 else 0
    return found.reshape(like.shape)


CASES = [
    *(OpCase("max_pool", (x,), _largest, given, by=(0,)) for x, given in GEOMETRIES),
    *(OpCase("mean_pool", (x,), _mean, given, by=(0,)) for x, given in GEOMETRIES),
    OpCase("mean_pool", (LINE,), _mean, {**GEOMETRIES[0][1], "count_include_pad": False}, by=(0,)),
    OpCase("mean_pool_gradient", (drawn(2, 1, 4, 3), IMAGE), _mean_gradient, GEOMETRIES[2][1], by=(0,)),
    OpCase("max_pool_gradient", (G, AT, IMAGE), _scattered, BY, by=(0,)),
    OpCase("max_pool_gather", (IMAGE, AT), _gathered, BY, by=(0,)),
]
