"""Rows added up by index: the gradient of taking rows, as of an embedding.

out[index[i]] += grad[i], in the order of i
"""

from __future__ import annotations

from windlass_graph.kernels.loops import Array, loop
from windlass_graph.kernels.runs import add_run


def add_rows(grad: Array, indices: Array, out: Array) -> None:
    """`grad` is (rows, length), `indices` int64 within the rows of `out` (any, length)."""
    _add_rows(grad.reshape(-1), indices, out.reshape(-1), grad.shape[1])


@loop("r1 l1 R1 n")
def _add_rows(grad: Array, indices: Array, out: Array, length: int) -> None:
    for i in range(indices.size):
        add_run(out, indices[i] * length, grad, i * length, length)
