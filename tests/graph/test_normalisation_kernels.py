"""Normalisations equal their formulas, and their gradients finite differences; large means cost no digits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.graph import oracles
from windlass_graph.kernels import normalisation
from windlass_graph.threads import Threads

Array = npt.NDArray[Any]
ALONE = Threads(1)
EPSILON = 1e-3


def normalised(x: Array, axes: tuple[int, ...]) -> Array:
    mean = x.mean(axis=axes, keepdims=True)
    found: Array = (x - mean) / np.sqrt(((x - mean) ** 2).mean(axis=axes, keepdims=True) + EPSILON)
    return found


def expected(kind: str, x: Array, gamma: Array, beta: Array, groups: int) -> Array:
    if kind == "batch":
        return normalised(x, (0, 2)) * gamma[:, None] + beta[:, None]
    if kind == "layer":
        return normalised(x, (1,)) * gamma + beta
    grouped = normalised(x.reshape(len(x), groups, -1), (2,)).reshape(x.shape)
    return grouped * gamma[:, None] + beta[:, None]


def run(kind: str, x: Array, gamma: Array, beta: Array, groups: int, threads: Threads = ALONE) -> list[Array]:
    """The output, then the mean and the inverse deviation."""
    out = np.full_like(x, np.nan)
    if kind == "batch":
        mean, variance = np.full((2, x.shape[1]), np.nan, x.dtype)
        normalisation.batch_statistics(x, mean, variance, threads)
        inverse = (1 / np.sqrt(variance + EPSILON)).astype(x.dtype)
        normalisation.scale_channels(x, gamma * inverse, beta - mean * gamma * inverse, out, threads)
        return [out, mean, inverse]
    shape = (len(x),) if kind == "layer" else (len(x), groups)
    mean, inverse = np.full((2, *shape), np.nan, x.dtype)
    function: Callable[..., None] = getattr(normalisation, kind)
    function(x, gamma, beta, out, mean, inverse, EPSILON, threads)
    return [out, mean, inverse]


def gradients(kind: str, grad: Array, x: Array, gamma: Array, statistics: list[Array], threads: Threads) -> list[Array]:
    found = [np.full_like(x, np.nan), np.full_like(gamma, np.nan), np.full_like(gamma, np.nan)]
    function: Callable[..., None] = getattr(normalisation, f"{kind}_gradient")
    function(grad, x, gamma, *statistics, *found, threads)
    return found


CASES = [
    ("batch", (3, 4, 7), 1),
    ("batch", (5, 2, 1), 1),
    ("layer", (4, 37), 1),
    ("layer", (1, 3), 1),
    ("group", (2, 6, 7), 3),
    ("group", (2, 3, 40), 3),
    ("group", (3, 4, 5), 1),
]


def drawn(kind: str, shape: tuple[int, ...], dtype: str) -> tuple[Array, Array, Array, Array]:
    rng = np.random.default_rng(2)
    x = (3 * rng.standard_normal(shape) + 5).astype(dtype)
    gamma, beta = rng.standard_normal((2, shape[1])).astype(dtype)
    return x, gamma, beta, rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("kind", "shape", "groups"), CASES)
def test_what_comes_out_is_the_formula(kind: str, shape: tuple[int, ...], groups: int, dtype: str) -> None:
    x, gamma, beta, _ = drawn(kind, shape, dtype)
    found = run(kind, x, gamma, beta, groups)[0]
    x, gamma, beta = (array.astype(float) for array in (x, gamma, beta))
    np.testing.assert_allclose(found, expected(kind, x, gamma, beta, groups), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("kind", "shape", "groups"), CASES)
def test_gradients_are_those_of_finite_differences(kind: str, shape: tuple[int, ...], groups: int) -> None:
    x, gamma, beta, grad = drawn(kind, shape, "float64")
    statistics = run(kind, x, gamma, beta, groups)[1:]
    found = gradients(kind, grad, x, gamma, statistics, ALONE)
    for one, at in zip(found, (x, gamma, beta), strict=True):
        numeric = oracles.numeric_gradient(lambda: run(kind, x, gamma, beta, groups)[0], at, grad, 1e-5)
        np.testing.assert_allclose(one, numeric, atol=1e-7)


@pytest.mark.parametrize(("kind", "groups"), [("batch", 1), ("layer", 1), ("group", 2)])
def test_a_large_mean_costs_no_digits_of_the_variance(kind: str, groups: int) -> None:
    rng = np.random.default_rng(4)
    x = (rng.standard_normal((64, 40) if kind == "layer" else (16, 4, 40)) + 1000).astype("float32")
    gamma, beta = np.ones(x.shape[1], "float32"), np.zeros(x.shape[1], "float32")
    found = run(kind, x, gamma, beta, groups)[0]
    np.testing.assert_allclose(found, expected(kind, x.astype(float), gamma, beta, groups), atol=2e-3)


@pytest.mark.parametrize(("kind", "groups"), [("batch", 1), ("group", 2)])
def test_work_shared_among_threads_gives_the_bits_of_one(kind: str, groups: int) -> None:
    x, gamma, beta, grad = drawn(kind, (140, 8, 999), "float32")
    threads, found = Threads(2), []
    for number in (threads, ALONE):
        statistics = run(kind, x, gamma, beta, groups, number)
        found.append([*statistics, *gradients(kind, grad, x, gamma, statistics[1:], number)])
    threads.stop()
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


def test_rows_shared_among_threads_add_up_to_the_gradient_of_one() -> None:
    x, gamma, beta, grad = drawn("layer", (4000, 270), "float32")
    threads, found = Threads(2), []
    for number in (threads, ALONE):
        statistics = run("layer", x, gamma, beta, 1, number)
        found.append([*statistics, *gradients("layer", grad, x, gamma, statistics[1:], number)])
    threads.stop()
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)
