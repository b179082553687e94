"""Loops are compiled for the dtype they are called with, and for no other type than their parameters name."""

from __future__ import annotations

import numpy as np
import pytest

from windlass_graph.kernels.pooling import _gather


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_loop_takes_arrays_to_read_that_nobody_may_write(dtype: str) -> None:
    x, at, out = np.arange(6, dtype=dtype).reshape(2, 3), np.array([[2], [0]], "int32"), np.empty((2, 1), dtype)
    x.setflags(write=False)
    _gather(x, at, out, 0, 2)
    assert out.tolist() == [[2], [3]]


def test_another_dtype_or_order_is_an_error_and_no_conversion() -> None:
    x, at, out = np.zeros((2, 3)), np.zeros((2, 1), "int32"), np.zeros((2, 1))
    with pytest.raises(TypeError, match="No matching definition"):
        _gather(x, at.astype("int64"), out, 0, 2)
    with pytest.raises(TypeError, match="No matching definition"):
        _gather(x, at, out.astype("float32"), 0, 2)
    with pytest.raises(TypeError, match="No matching definition"):
        _gather(np.asfortranarray(x), at, out, 0, 2)
