"""What kernels are compared with: the plainest loops over NumPy scalars, and gradients by finite differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_graph.kernels.windows import Window

Array = npt.NDArray[Any]


def numeric_gradient(function: Callable[[], Array], at: Array, weights: Array, step: float = 1e-6) -> Array:
    """The gradient of sum(weights * function()) to float64 `at`, which is moved in place and put back."""
    gradient = np.zeros_like(at)
    for place in np.ndindex(*at.shape):
        held = at[place]
        at[place] = held + step
        above = float(np.sum(weights * function()))
        at[place] = held - step
        below = float(np.sum(weights * function()))
        at[place] = held
        gradient[place] = (above - below) / (2 * step)
    return gradient


def seen(window: Window, place: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each tap of the window at `place`, with the point of the image that it sees; in the padding it sees none."""
    for tap in itertools.product(*map(range, window.kernel_size)):
        point = tuple(place[k] * window.stride[k] + tap[k] * window.dilation[k] - window.padding[k] for k in range(3))
        if all(0 <= point[k] < window.size[k] for k in range(3)):
            yield tap, point


def places(window: Window) -> Iterator[tuple[int, ...]]:
    return itertools.product(*map(range, window.out))


def convolution(x: Array, w: Array, window: Window, groups: int) -> Array:
    """`x` (images, channels, d, h, w), `w` (out_channels, channels // groups, kd, kh, kw)."""
    out = np.zeros((len(x), len(w), *window.out), x.dtype)
    per_group, out_per_group = w.shape[1], len(w) // groups
    for n, o, place in itertools.product(range(len(x)), range(len(w)), places(window)):
        for tap, point in seen(window, place):
            for c in range(per_group):
                out[(n, o, *place)] += w[(o, c, *tap)] * x[(n, o // out_per_group * per_group + c, *point)]
    return out
