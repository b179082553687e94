"""Softmax over rows of any length equals its formula, in place as well, whatever is in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from windlass_graph.kernels import softmax
from windlass_graph.threads import Threads

Array = npt.NDArray[Any]
ALONE = Threads(1)
CLOSE = {"float32": 2e-6, "float64": 1e-14}


def expected(x: Array) -> Array:
    e: Array = np.exp(x.astype(float) - x.max(axis=1, keepdims=True))
    found: Array = e / e.sum(axis=1, keepdims=True)
    return found


@pytest.mark.parametrize("classes", [1, 3, 16, 37, 1000])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rows_of_any_length_equal_the_formula(classes: int, dtype: str) -> None:
    x = (10 * np.random.default_rng(0).standard_normal((5, classes))).astype(dtype)
    x[0] += 300  # which exp alone would not survive
    out, log_p = np.full_like(x, np.nan), np.full_like(x, np.nan)
    softmax.softmax(x, out, ALONE)
    softmax.log_softmax(x, log_p, ALONE)
    np.testing.assert_allclose(out, expected(x), rtol=CLOSE[dtype] * 10, atol=CLOSE[dtype])
    np.testing.assert_allclose(log_p, np.log(expected(x)), rtol=CLOSE[dtype], atol=CLOSE[dtype] * 40)
    softmax.softmax(x, x, ALONE)
    assert np.array_equal(x, out)


def test_a_nan_fills_its_row_and_no_other_and_minus_infinity_is_zero() -> None:
    x = np.zeros((3, 20), "float32")
    x[1, 17] = np.nan
    x[2, :19] = -np.inf
    out, log_p = np.empty_like(x), np.empty_like(x)
    softmax.softmax(x, out, ALONE)
    softmax.log_softmax(x, log_p, ALONE)
    for found in (out, log_p):
        assert np.isnan(found).any(axis=1).tolist() == [False, True, False]
        assert np.isnan(found[1]).all()
    assert out[2].tolist() == [0] * 19 + [1]


def test_the_gradient_of_the_cross_entropy_is_the_probability_less_one_at_the_label() -> None:
    rng = np.random.default_rng(1)
    x, grad, labels = rng.standard_normal((6, 33)), rng.standard_normal(6), rng.integers(0, 33, 6)
    log_p, out = np.empty_like(x), np.empty_like(x)
    softmax.log_softmax(x, log_p, ALONE)
    softmax.cross_entropy_gradient(grad, log_p, labels, out, ALONE)
    np.testing.assert_allclose(out, grad[:, None] * (expected(x) - np.eye(33)[labels]), atol=1e-14)


def test_rows_shared_among_threads_give_the_bits_of_one() -> None:
    x = np.random.default_rng(2).standard_normal((3000, 400)).astype("float32")
    threads, found = Threads(3), []
    for number in (threads, ALONE):
        out, log_p = np.empty_like(x), np.empty_like(x)
        softmax.softmax(x, out, number)
        softmax.log_softmax(x, log_p, number)
        found.append((out, log_p))
    threads.stop()
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))
