"""Sums over an axis between others, added up row by row: NumPy spends its time between the loops there.

An element is added to in the order of the axis, in the arrays' own precision, as by NumPy.
"""

from __future__ import annotations

from windlass_graph.kernels.loops import Array, loop


@loop("r3 R2")
def sum_middle(x: Array, out: Array) -> None:
    """out = x summed over its middle axis, which has an element at least."""
    for o in range(x.shape[0]):
        for i in range(x.shape[2]):
            out[o, i] = x[o, 0, i]
        for k in range(1, x.shape[1]):
            for i in range(x.shape[2]):
                out[o, i] += x[o, k, i]
