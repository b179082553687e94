"""Pooling gives the largest element or the mean of each window, and its gradients finite differences."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.graph import oracles
from windlass_graph.kernels import pooling
from windlass_graph.kernels.windows import Window
from windlass_graph.threads import Threads

Array = npt.NDArray[Any]
ALONE = Threads(1)
CHANNELS = 3
WINDOWS = {
    "of a line": Window.of((11,), (3,), (2,), (1,)),
    "two by two": Window.of((6, 38), (2, 2), (2, 2)),
    "overlapping": Window.of((5, 21), (3, 3), (1, 1), (1, 1)),
    "of stride three": Window.of((7, 9), (2, 3), (3, 3), (1, 1)),
    "dilated": Window.of((7, 9), (2, 3), (1, 2), (0, 1), (2, 2)),
    "of a volume": Window.of((4, 3, 7), (2, 2, 3), (2, 1, 2), (1, 0, 1)),
    "as large as the image": Window.of((3, 4), (3, 4)),
}


@pytest.fixture(params=list(WINDOWS))
def window(request: pytest.FixtureRequest) -> Window:
    return WINDOWS[request.param]


def drawn(window: Window, dtype: str = "float64") -> tuple[Array, Array]:
    rng = np.random.default_rng(5)
    x = rng.permutation(CHANNELS * window.points).reshape(CHANNELS, -1).astype(dtype)
    return x, rng.standard_normal((CHANNELS, window.places)).astype(dtype)


def windows_of(x: Array, window: Window) -> list[list[list[tuple[int, float]]]]:
    """For each channel and place, the points seen and their elements."""
    strides = (window.size[1] * window.size[2], window.size[2], 1)

    def seen(channel: Array, place: tuple[int, ...]) -> list[tuple[int, float]]:
        points = [int(np.dot(point, strides)) for _, point in oracles.seen(window, place)]
        return [(point, float(channel[point])) for point in points]

    return [[seen(channel, place) for place in oracles.places(window)] for channel in x]


def largest(x: Array, window: Window) -> tuple[Array, Array]:
    out, at = np.full((len(x), window.places), np.nan, x.dtype), np.full((len(x), window.places), -7, np.int32)
    pooling.largest(x, out, at, window, ALONE)
    return out, at


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_largest_element_of_each_window_comes_out_with_its_place(window: Window, dtype: str) -> None:
    x, _ = drawn(window, dtype)
    out, at = largest(x, window)
    expected = [[max(seen, key=lambda one: one[1]) for seen in channel] for channel in windows_of(x, window)]
    assert at.tolist() == [[point for point, _ in channel] for channel in expected]
    assert out.tolist() == [[value for _, value in channel] for channel in expected]


def test_of_equal_elements_the_first_is_taken(window: Window) -> None:
    _, at = largest(np.zeros((1, window.points)), window)
    assert at[0].tolist() == [seen[0][0] for seen in windows_of(np.zeros((1, window.points)), window)[0]]


def test_a_nan_in_a_window_comes_out_and_minus_infinity_has_none_or_the_first(window: Window) -> None:
    x = np.full((1, window.points), -np.inf)
    firsts = [seen[0][0] for seen in windows_of(x, window)[0]]
    assert largest(x, window)[1].tolist() in ([[-1] * window.places], [firsts])
    x[0, window.points // 2] = np.nan
    out, _ = largest(x, window)
    expected = [any(value != value for _, value in seen) for seen in windows_of(x, window)[0]]
    assert np.isnan(out[0]).tolist() == expected


def test_gradients_go_to_where_the_largest_came_from_and_gather_brings_them_back(window: Window) -> None:
    x, grad = drawn(window)
    _, at = largest(x, window)
    to_x, back = np.full_like(x, np.nan), np.full_like(grad, np.nan)
    pooling.spread(grad, at, to_x, ALONE)
    expected = oracles.numeric_gradient(lambda: largest(x, window)[0], x, grad, 1e-3)
    np.testing.assert_allclose(to_x, expected, atol=1e-8)
    pooling.gather(x, at, back, ALONE)
    assert np.array_equal(back, largest(x, window)[0])


@pytest.mark.parametrize("count_padding", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_mean_counts_the_padding_or_not(window: Window, dtype: str, count_padding: bool) -> None:
    x, grad = drawn(window, dtype)
    out = np.full_like(grad, np.nan)
    pooling.mean(x, out, window, count_padding=count_padding, threads=ALONE)
    expected = [
        [sum(value for _, value in seen) / (window.taps if count_padding else max(len(seen), 1)) for seen in channel]
        for channel in windows_of(x, window)
    ]
    np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize("count_padding", [True, False])
def test_the_gradient_of_the_mean_is_its_transpose(window: Window, count_padding: bool) -> None:
    x, grad = drawn(window)

    def forward() -> Array:
        out = np.full_like(grad, np.nan)
        pooling.mean(x, out, window, count_padding=count_padding, threads=ALONE)
        return out

    to_x = np.full_like(x, np.nan)
    pooling.mean_gradient(grad, to_x, window, count_padding=count_padding, threads=ALONE)
    np.testing.assert_allclose(to_x, oracles.numeric_gradient(forward, x, grad, 1.0), atol=1e-9)


def test_channels_shared_among_threads_give_the_bits_of_one() -> None:
    window, rng = Window.of((40, 40), (3, 3), (2, 2), (1, 1)), np.random.default_rng(0)
    x = rng.standard_normal((800, window.points)).astype("float32")
    threads, found = Threads(3), []
    for number in (threads, ALONE):
        out, at = np.empty((len(x), window.places), "float32"), np.empty((len(x), window.places), "int32")
        pooling.largest(x, out, at, window, number)
        to_x, averaged, of_mean = np.empty_like(x), np.empty_like(out), np.empty_like(x)
        pooling.spread(out, at, to_x, number)
        pooling.mean(x, averaged, window, count_padding=False, threads=number)
        pooling.mean_gradient(out, of_mean, window, count_padding=False, threads=number)
        found.append([out, at, to_x, averaged, of_mean])
    threads.stop()
    assert all(itertools.starmap(np.array_equal, zip(*found, strict=True)))
