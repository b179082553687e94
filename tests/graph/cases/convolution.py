"""Convolutions of each kind, along one to three axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.graph import oracles
from tests.graph.op_case import OpCase, Values, drawn
from windlass_graph.kernels.windows import Window


def _window(x: Values, given: dict[str, Any]) -> Window:
    axes = len(given["kernel_size"])
    each = {
        name: (value,) * axes if isinstance(value := given.get(name, fill), int) else value
        for name, fill in (("stride", 1), ("padding", 0), ("dilation", 1))
    }
    return Window.of(x.shape[2:], given["kernel_size"], each["stride"], each["padding"], each["dilation"])


def _in_three(x: Values) -> Values:
    return x.reshape(*x.shape[:2], *(1,) * (5 - x.ndim), *x.shape[2:])


def _convolved(x: Values, w: Values, *rest: Values, **given: Any) -> Values:
    window = _window(x, given)
    out = oracles.convolution(_in_three(x), _in_three(w), window, given.get("groups", 1))
    out = out.reshape(*out.shape[:2], *window.out[3 - (x.ndim - 2) :])
    return out + rest[0].reshape(-1, *(1,) * (x.ndim - 2)) if rest and rest[0].ndim == 1 else out


def _by_unit_images(shape: tuple[int, ...], g: Values, w: Values, given: dict[str, Any]) -> Values:
    """The transpose of a linear map: the product of g with what each unit image gives."""
    found = np.zeros(shape)
    for place in np.ndindex(*shape[1:]):
        unit = np.zeros((1, *shape[1:]))
        unit[(0, *place)] = 1
        found[(slice(None), *place)] = np.sum(g * _convolved(unit, w, **given), axis=tuple(range(1, g.ndim)))
    return found


def _transposed(x: Values, w: Values, *bias: Values, **given: Any) -> Values:
    given = {**given}
    channels, shape = given.pop("channels"), given.pop("shape")
    found = _by_unit_images((len(x), channels, *shape), x, w, given)
    return found + bias[0].reshape(-1, *(1,) * (x.ndim - 2)) if bias else found


def _by_weight(x: Values, g: Values, like: Values, **given: Any) -> Values:
    found = np.zeros(like.shape)
    for place in np.ndindex(*like.shape):
        unit = np.zeros(like.shape)
        unit[place] = 1
        found[place] = np.sum(g * _convolved(x, unit, **given))
    return found


LINE, IMAGE, VOLUME = drawn(2, 2, 6), drawn(1, 4, 4, 5), drawn(1, 1, 3, 3, 4)
GEOMETRY = {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1, "groups": 2}
W = drawn(2, 2, 3, 2, seed=1)
OUT = drawn(1, 2, 2, 6, seed=2)

CASES = [
    OpCase("convolution", (LINE, drawn(3, 2, 3), drawn(3)), _convolved, {"kernel_size": (3,), "channels": 3},
           by=(0, 1, 2)),
    OpCase("convolution", (IMAGE, W), _convolved, {**GEOMETRY, "channels": 2, "use_bias": False}, by=(0, 1)),
    OpCase("convolution", (VOLUME, drawn(2, 1, 2, 2, 2), drawn(2)), _convolved,
           {"kernel_size": (2, 2, 2), "channels": 2, "padding": (0, 1, 0), "dilation": (1, 2, 1)}, by=(0, 1, 2),
           second=False),
    OpCase("convolution", (IMAGE, drawn(4, 1, 3, 3)), _convolved,
           {"kernel_size": (3, 3), "channels": 4, "groups": 4, "padding": 1, "use_bias": False}, by=(0, 1),
           second=False),
    OpCase("convolution", (IMAGE, drawn(2, 4, 1, 1), drawn(2)), _convolved, {"kernel_size": (1, 1), "channels": 2},
           by=(0, 1, 2), second=False),
    OpCase("transposed_convolution", (drawn(2, 2, 3), drawn(2, 3, 3), drawn(3)),
           lambda x, w, b, **given: _transposed(x, w, b, **given, shape=(5,)), {"kernel_size": (3,), "channels": 3},
           by=(0, 1, 2)),
    OpCase("transposed_convolution", (OUT, W),
           lambda x, w, use_bias, output_padding, **given: _transposed(x, w, **given, shape=(4, 5)),
           {**GEOMETRY, "channels": 4, "use_bias": False, "output_padding": (1, 0)}, by=(0, 1)),
    OpCase("convolution_like", (IMAGE, W, OUT), _convolved, GEOMETRY, by=(0, 1)),
    OpCase("convolution_data_gradient", (OUT, W, IMAGE),
           lambda g, w, like, **given: _by_unit_images(like.shape, g, w, given), GEOMETRY, by=(0, 1)),
    OpCase("convolution_weight_gradient", (IMAGE, OUT, W), _by_weight, GEOMETRY, by=(0, 1)),
]  # fmt: skip
