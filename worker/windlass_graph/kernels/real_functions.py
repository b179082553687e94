"""exp, log, sigmoid and tanh in loops, each for the dtype of its argument.

A loop is one function, compiled for float32 and for float64; `elementary` has a function for each. What is called here
is chosen by the compiler, from the argument's type.

This module imports Numba: it is imported where loops are compiled, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from windlass_graph.kernels import elementary


def exp(x: Any) -> Any:
    return np.exp(x)


def log(x: Any) -> Any:
    return np.log(x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def tanh(x: Any) -> Any:
    return np.tanh(x)


def _chosen(function: Callable[[Any], Any], single: Any, double: Any) -> None:
    def in_single(x: Any) -> Any:
        return single(x)

    def in_double(x: Any) -> Any:
        return double(x)

    def choose(x: Any) -> Any:
        return {types.float32: in_single, types.float64: in_double}.get(x)

    overload(function, jit_options={"forceinline": True, "error_model": "numpy"})(choose)


_chosen(exp, elementary.exp_float32, elementary.exp_float64)
_chosen(log, elementary.log_float32, elementary.log_float64)
_chosen(sigmoid, elementary.sigmoid_float32, elementary.sigmoid_float64)
_chosen(tanh, elementary.tanh_float32, elementary.tanh_float64)
