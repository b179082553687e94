"""Ids of sparse rows: their keys, and the kernels over arrays of them that client and servers share.

A row's key is mix64(id ^ seed of its table), a bijection; the top bits of the key name its vshard (`keys.vshard_of`),
the low bits its place in the vshard's index. The client brings the ids of a call into *plan order*: each id once,
vshard after vshard, within a vshard by first appearance. Every band (a run of vshards) is then one run of the plan.

Invariant: pure functions of their arguments. Kernels are Python functions here and machine code behind `build`; they
write only inside the arrays they are given.

Duplicates are found by hashing, one pass in cache, then put in order by a counting sort of the vshards: 100,000 ids
take 1.9 ms against 4.0 for `numpy.unique` (`python -m benchmarks --only sparse`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from windlass_proto import kernel_cache

Ids = npt.NDArray[np.uint64]
Positions = npt.NDArray[np.uint32]
Vector = npt.NDArray[np.floating[Any]]

NONE: Final = 0xFFFFFFFF
"""No row: what a lookup says of an id that is not there."""

AHEAD: Final = 16
"""Rows between a prefetch and its use."""

_IDS = np.dtype(np.uint64)


def _prefetch(typingctx: Any, array: Any, index: Any) -> Any:  # noqa: ARG001 - Numba's protocol
    """Ask for the cache line of array[index], which may lie anywhere: nothing is read."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        base = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        line = builder.bitcast(builder.gep(base, [arguments[1]]), ir.IntType(8).as_pointer())
        get_function: Any = cgutils.get_or_insert_function
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [line.type, number, number, number])
        function = get_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [line, number(1), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


prefetch: Any = intrinsic(_prefetch)
"""prefetch(array, index), in kernels."""


@register_jitable(error_model="numpy")
def mix64(x: Any) -> Any:
    """`keys.mix64` of a u64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@register_jitable(error_model="numpy")
def vshard_of(key: Any, shift: Any) -> Any:
    """The vshard of a key; `shift` is 63 less the bits of a vshard's number, so that one vshard needs none."""
    return np.int64((key >> np.uint64(1)) >> shift)


def shift_of(vshards: int) -> np.uint64:
    """What `vshard_of` takes for a key space of `vshards`."""
    return np.uint64(63 - (vshards.bit_length() - 1))


def _plan(ids: Ids, seed: int, shift: int, slots: Positions, inverse: Positions, out: Ids, begins: Any) -> int:
    """Each id once into `out`, vshard after vshard; inverse[i] is where ids[i] went.

    `slots` is zeros, a power of two at least twice the ids; `begins` is zeros, one more than there are vshards, and
    gets the begin of each vshard's run. Returns how many ids are different.
    """
    mask = np.uint64(slots.size - 1)
    first = np.empty(ids.size, np.uint64)
    count = 0
    for i in range(ids.size):
        key = mix64(ids[i] ^ seed)
        at = key & mask
        while True:
            known = slots[at]
            if known == 0:
                slots[at] = count + 1
                first[count] = ids[i]
                inverse[i] = count
                begins[vshard_of(key, shift) + 1] += 1
                count += 1
                break
            if first[known - 1] == ids[i]:
                inverse[i] = known - 1
                break
            at = (at + np.uint64(1)) & mask
    for v in range(1, begins.size):
        begins[v] += begins[v - 1]
    ends = begins.copy()
    moved = slots  # its work is done
    for u in range(count):
        v = vshard_of(mix64(first[u] ^ seed), shift)
        moved[u] = ends[v]
        out[ends[v]] = first[u]
        ends[v] += 1
    for i in range(ids.size):
        inverse[i] = moved[inverse[i]]
    return count


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


def _take_rows(rows: Vector, inverse: Positions, begins: Any, dim: int, out: Vector) -> None:
    """Row i of `out` = the row of `rows` at begins[inverse[i]]."""
    n = inverse.size
    for i in range(n):
        if i + AHEAD < n:
            prefetch(rows, begins[np.int64(inverse[i + AHEAD])])
        at = begins[np.int64(inverse[i])]
        source = rows[at : at + dim]
        row = out[i * dim : (i + 1) * dim]
        for j in range(row.size):
            row[j] = source[j]


@dataclass(frozen=True, slots=True)
class RowMoves:
    """The compiled kernels that move rows of one dtype; see the functions of the same names."""

    sum_rows: Callable[..., None]
    take_rows: Callable[..., None]


@dataclass(frozen=True, slots=True)
class IdPlan:
    """The ids of a call in plan order.

    ids: each id once. inverse: for each id of the call its place in `ids`. begins: where each vshard's run begins, and,
    last, where the plan ends.
    """

    ids: Ids
    inverse: Positions
    begins: npt.NDArray[np.int64]


_BUILDING = threading.Lock()
_PLANS: list[Callable[..., int]] = []
_MOVES: dict[np.dtype[Any], RowMoves] = {}


def plan(ids: Ids, seed: int, vshards: int) -> IdPlan:
    """Bring `ids` (1-D, contiguous) into plan order."""
    if not _PLANS:
        build_plan()
    slots = np.zeros(1 << max(4, (2 * ids.size - 1).bit_length()), np.uint32)
    inverse = np.empty(ids.size, np.uint32)
    out = np.empty(ids.size, np.uint64)
    begins = np.zeros(vshards + 1, np.int64)
    count = _PLANS[0](ids, np.uint64(seed), shift_of(vshards), slots, inverse, out, begins)
    return IdPlan(out[:count], inverse, begins)


def moves(dtype: npt.DTypeLike) -> RowMoves:
    """The kernels that move rows of `dtype`, compiled at the first call of a process. Thread-safe."""
    kind = np.dtype(dtype)
    ready = _MOVES.get(kind)
    if ready is None:
        with _BUILDING:
            vector = kernel_cache.vector_type(kind)
            readable = kernel_cache.vector_type(kind, readonly=True)
            inverse = types.Array(types.uint32, 1, "C", readonly=True)
            seen = types.Array(types.uint8, 1, "C")
            begins = types.Array(types.int64, 1, "C")
            summing = types.void(readable, inverse, begins, types.intp, kernel_cache.scalar_type(kind), vector, seen)
            taking = types.void(readable, inverse, begins, types.intp, vector)
            ready = _MOVES[kind] = RowMoves(
                kernel_cache.compiled(_sum_rows, [summing], kind), kernel_cache.compiled(_take_rows, [taking], kind)
            )
    return ready


def build_plan() -> None:
    """The kernel behind `plan`, compiled at the first call of a process. Thread-safe."""
    with _BUILDING:
        if not _PLANS:
            positions = types.Array(types.uint32, 1, "C")
            out = types.Array(types.uint64, 1, "C")
            readable = types.Array(types.uint64, 1, "C", readonly=True)
            begins = types.Array(types.int64, 1, "C")
            asked = types.intp(readable, types.uint64, types.uint64, positions, positions, out, begins)
            _PLANS.append(kernel_cache.compiled(_plan, [asked], _IDS))
