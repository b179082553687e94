"""Softmax over rows, its logarithm, and the gradient of the cross entropy with labels, each in one pass over a row.

    softmax(x)[j]     = exp(x[j] - m) / s            m = max(x), s = sum over j of exp(x[j] - m)
    log_softmax(x)[j] = x[j] - m - log(s)

A row stays in the first-level cache from its maximum to its last product; by NumPy each of these is a pass over all
rows. s is added up in float64 (`sums`). A row of nothing but -infinity gives NaN, as NumPy does.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from windlass_graph.kernels.bits import load, select, store
from windlass_graph.kernels.loops import Array, loop
from windlass_graph.kernels.real_functions import exp, log
from windlass_graph.kernels.sums import LANES, add_up, folded
from windlass_graph.threads import Threads


def softmax(x: Array, out: Array, threads: Threads) -> None:
    """Write `out`; arrays are (rows, classes), and may be one."""
    threads.share(lambda begin, end: _softmax(x, out, begin, end), len(x), 4 * x.nbytes)


def log_softmax(x: Array, out: Array, threads: Threads) -> None:
    """Write `out`; arrays are (rows, classes), and may be one."""
    threads.share(lambda begin, end: _log_softmax(x, out, begin, end), len(x), 4 * x.nbytes)


def cross_entropy_gradient(grad: Array, log_p: Array, labels: Array, out: Array, threads: Threads) -> None:
    """Write out[row] = grad[row] * (exp(log_p[row]) - 1 at the row's label); labels are int64 within the classes."""

    def work(begin: int, end: int) -> None:
        _cross_entropy_gradient(grad, log_p, labels, out, begin, end)

    threads.share(work, len(log_p), 4 * log_p.nbytes)


@numba.njit(forceinline=True, error_model="numpy")
def _largest(row: Any, tops: Any) -> Any:
    """The largest element, or a NaN if there is one; `tops` holds LANES of the row's dtype meanwhile."""
    tops[:] = -np.inf
    whole = row.size // LANES * LANES
    for at in range(0, whole, LANES):
        for k in range(LANES):
            value, top = load(row, at + k), load(tops, k)
            store(tops, k, select((value > top) | (value != value), value, top))
    for k in range(whole, row.size):
        tops[0] = select((row[k] > tops[0]) | (row[k] != row[k]), row[k], tops[0])
    found = tops[0]
    for k in range(1, LANES):
        found = select((tops[k] > found) | (tops[k] != tops[k]), tops[k], found)
    return found


@loop("r2 R2 n n")
def _softmax(x: Array, out: Array, begin: int, end: int) -> None:
    classes, lanes = x.shape[1], np.zeros(LANES)
    tops = np.empty(LANES, x.dtype)
    for row in range(begin, end):
        source, target = x[row], out[row]
        largest = _largest(source, tops)
        for k in range(classes):
            target[k] = exp(source[k] - largest)
        add_up(lanes, target, 0, classes)
        scale = tops.dtype.type(1.0 / folded(lanes))
        for k in range(classes):
            target[k] *= scale


@loop("r2 R2 n n")
def _log_softmax(x: Array, out: Array, begin: int, end: int) -> None:
    classes, lanes = x.shape[1], np.zeros(LANES)
    tops, part = np.empty(LANES, x.dtype), np.empty(classes, x.dtype)
    for row in range(begin, end):
        source, target = x[row], out[row]
        largest = _largest(source, tops)
        for k in range(classes):
            part[k] = exp(source[k] - largest)
        add_up(lanes, part, 0, classes)
        away = log(tops.dtype.type(folded(lanes)))
        for k in range(classes):
            target[k] = (source[k] - largest) - away


@loop("r1 r2 l1 R2 n n")
def _cross_entropy_gradient(grad: Array, log_p: Array, labels: Array, out: Array, begin: int, end: int) -> None:
    for row in range(begin, end):
        source, target, g = log_p[row], out[row], grad[row]
        for k in range(source.size):
            target[k] = g * exp(source[k])
        target[labels[row]] -= g
