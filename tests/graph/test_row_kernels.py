"""Rows added up by index are those that NumPy adds, whatever is named twice."""

from __future__ import annotations

import numpy as np
import pytest

from windlass_graph import nd
from windlass_graph.array import array_of


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("shape", [(5, 3), (4, 16), (6, 2, 9), (3,), (7, 0)])
def test_rows_named_twice_are_added_in_the_order_given(shape: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(0)
    indices = rng.integers(0, shape[0], (4, 10))
    grad = rng.standard_normal((4, 10, *shape[1:])).astype(dtype)
    found = np.asarray(nd.take_gradient(array_of(grad), array_of(indices), array_of(np.ones(shape, dtype)), axis=0))
    expected = np.zeros(shape, dtype)
    for place in np.ndindex(indices.shape):
        expected[indices[place]] += grad[place]
    assert np.array_equal(found, expected)


def test_of_no_index_the_gradient_is_zero() -> None:
    none = np.empty((0, 4), "float32")
    found = nd.take_gradient(array_of(none), array_of(np.empty(0, "int64")), array_of(np.ones((3, 4), "f4")), axis=0)
    assert not np.asarray(found).any()
