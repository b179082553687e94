"""Kernels that move rows between the order of a call and plan order, and add up what a call names twice.

    gather_sums     rows of a call -> each row once, in plan order, its gradients summed in the order given
    scatter_rows    rows in plan order -> rows of the call
    sum_rows        rows of one call of several -> added, weighted, to rows in any order

The first two go through a call in plan order (`ids.IdPlan`): what they write, or read, for the ids of one vshard lies
in cache, and the rows of the call, which lie anywhere, are asked for some rows before.

Invariant: pure functions of their arguments; kernels write only inside the arrays they are given.

A row is copied by whole cache lines of 64 bytes: a loop over 16 float32 whose length the compiler does not know spent
its time on the ends of its loops. 100,000 rows of 16 float32 take 1.0 ms against 1.2 to 2.2
(`python -m benchmarks --only sparse` prints what this comes to).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from windlass_proto import kernel_cache
from windlass_proto.ids import AHEAD, Positions, prefetch

Vector = npt.NDArray[np.floating[Any]]


def _copy_row(typingctx: Any, source: Any, at: Any, target: Any, to: Any, dim: Any) -> Any:  # noqa: ARG001
    """Emits the copy where it stands: as a function it was a call with twenty arguments a row."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = context.get_data_type(signature.args[0].dtype)
        itemsize = context.get_abi_sizeof(kind)

        def begin(k: int) -> Any:
            base = context.make_array(signature.args[k])(context, builder, arguments[k]).data
            return builder.gep(base, [arguments[k + 1]])

        read, write, done = begin(0), begin(2), ir.Constant(arguments[4].type, 0)
        for nbytes in (64, 16, itemsize):
            held, run = nbytes // itemsize, _run_type(nbytes, kind)
            count = builder.udiv(builder.sub(arguments[4], done), ir.Constant(done.type, held))
            with cgutils.for_range(builder, count) as loop:
                step = builder.add(done, builder.mul(loop.index, ir.Constant(done.type, held)))
                from_here = builder.bitcast(builder.gep(read, [step]), run.as_pointer())
                to_here = builder.bitcast(builder.gep(write, [step]), run.as_pointer())
                builder.store(builder.load(from_here, align=itemsize), to_here, align=itemsize)
            done = builder.add(done, builder.mul(count, ir.Constant(done.type, held)))
        return context.get_dummy_value()

    place = types.intp
    return types.void(source, place, target, place, place), generate


def _run_type(nbytes: int, kind: Any) -> Any:
    """The type of so many bytes of `kind` in registers."""
    run: Any = ir.VectorType(ir.IntType(32), nbytes // 4) if nbytes >= 16 else kind
    return run


copy_row: Any = intrinsic(_copy_row)
"""copy_row(source, at, target, to, dim), in kernels: target[to : to + dim] = source[at : at + dim], for dim >= 0."""


def _gather_sums(
    grads: Vector, order: Positions, places: Positions, ends: Any, moved: Any, dim: int, out: Vector
) -> None:
    """The row of `out` for each place = the sum of grads[order[p]] over all p with that place, in the order of p.

    A place's first p comes after those of all lower places. Run r is the places below ends[r] that no earlier run has;
    place u of it begins at element moved[r] + u * dim of `out`.
    """
    n, fresh, run = order.size, 0, 0
    for p in range(n):
        if p + AHEAD < n:
            prefetch(grads, np.int64(order[p + AHEAD]) * dim)
        place = np.int64(places[p])
        while place >= ends[run]:
            run += 1
        while run > 0 and place < ends[run - 1]:
            run -= 1
        at = np.int64(order[p]) * dim
        to = moved[run] + place * dim
        if place == fresh:
            fresh += 1
            copy_row(grads, at, out, to, dim)
        else:
            row, source = out[to : to + dim], grads[at : at + dim]
            for j in range(row.size):
                row[j] += source[j]


def _scatter_rows(
    rows: Vector, order: Positions, places: Positions, ends: Any, moved: Any, dim: int, out: Vector
) -> None:
    """Row order[p] of `out` = the row of `rows` for places[p], which lies as in `gather_sums`."""
    n, run = order.size, 0
    for p in range(n):
        if p + AHEAD < n:
            prefetch(out, np.int64(order[p + AHEAD]) * dim)
        place = np.int64(places[p])
        while place >= ends[run]:
            run += 1
        while run > 0 and place < ends[run - 1]:
            run -= 1
        copy_row(rows, moved[run] + place * dim, out, np.int64(order[p]) * dim, dim)


def _sum_rows(grads: Vector, inverse: Positions, begins: Any, dim: int, weight: float, out: Vector, seen: Any) -> None:
    """The row of `out` at begins[inverse[i]] = the sum of weight * grads[i], in the order given.

    `seen` says which rows hold a sum already.
    """
    n = inverse.size
    for i in range(n):
        if i + AHEAD < n:
            prefetch(out, begins[np.int64(inverse[i + AHEAD])])
        place = np.int64(inverse[i])
        source = grads[i * dim : (i + 1) * dim]
        at = begins[place]
        row = out[at : at + dim]
        if seen[place]:
            for j in range(row.size):
                row[j] += weight * source[j]
        else:
            seen[place] = 1
            for j in range(row.size):
                row[j] = weight * source[j]


@dataclass(frozen=True, slots=True)
class RowMoves:
    """The compiled kernels that move rows of one dtype; see the functions of the same names."""

    gather_sums: Callable[..., None]
    scatter_rows: Callable[..., None]
    sum_rows: Callable[..., None]


_BUILDING = threading.Lock()
_READY: dict[np.dtype[Any], RowMoves] = {}


def moves(dtype: npt.DTypeLike) -> RowMoves:
    """The kernels that move rows of `dtype`, compiled at the first call of a process. Thread-safe."""
    kind = np.dtype(dtype)
    ready = _READY.get(kind)
    if ready is None:
        with _BUILDING:
            ready = _READY[kind] = _compile(kind)
    return ready


def _compile(kind: np.dtype[Any]) -> RowMoves:
    vector = kernel_cache.vector_type(kind)
    readable = kernel_cache.vector_type(kind, readonly=True)
    positions = types.Array(types.uint32, 1, "C", readonly=True)
    seen, begins = types.Array(types.uint8, 1, "C"), types.Array(types.int64, 1, "C")
    moving = types.void(readable, positions, positions, begins, begins, types.intp, vector)
    summing = types.void(readable, positions, begins, types.intp, kernel_cache.scalar_type(kind), vector, seen)

    def made(function: Callable[..., None], signature: Any) -> Callable[..., None]:
        return kernel_cache.compiled(function, [signature], kind)

    return RowMoves(made(_gather_sums, moving), made(_scatter_rows, moving), made(_sum_rows, summing))
