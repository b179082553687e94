"""Ids of sparse rows: their keys, and the kernels over arrays of them that client and servers share.

A row's key is mix64(id ^ seed of its table), a bijection; the top bits of the key name its vshard (`keys.vshard_of`),
the low bits its place in the vshard's index. The client brings the ids of a call into *plan order*: each id once,
vshard after vshard, within a vshard by first appearance. Every band (a run of vshards) is then one run of the plan.

Invariant: pure functions of their arguments. Kernels are Python functions here and machine code behind `build`; they
write only inside the arrays they are given.

Ids are parted by a counting sort of their vshards, and duplicates found by hashing within each, in a table that stays
in the first cache: 100,000 ids take 1.1 ms, against 1.7 for one large table and a sort behind it, and 4 for
`numpy.unique`. What hangs on an id (a row of gradients) is then moved in that order: see `row_moves`.
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

NONE: Final = 0xFFFFFFFF
"""No row: what a lookup says of an id that is not there."""

AHEAD: Final = 16
"""Rows between a prefetch and its use."""

PLAN_BYTES: Final = 16
"""Of an `IdPlan`, for each id of its call."""

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


def _plan(
    ids: Ids, seed: int, shift: int, starts: Any, order: Positions, places: Positions, out: Ids, begins: Any
) -> int:
    """Fill an `IdPlan`'s arrays; its `ids` are the first of `out`. Returns how many are different.

    `starts` is zeros, one more than there are vshards.
    """
    n, vshards = ids.size, starts.size - 1
    most = 0
    for i in range(n):
        starts[vshard_of(mix64(ids[i] ^ seed), shift) + 1] += 1
    for v in range(vshards):
        most = max(most, starts[v + 1])
        starts[v + 1] += starts[v]
    heads = starts[:vshards].copy()
    for i in range(n):
        item = ids[i]
        v = vshard_of(mix64(item ^ seed), shift)
        p = heads[v]
        heads[v] = p + 1
        order[p] = i
        out[p] = item
    slots = np.zeros(4 * _power_of_two(most), np.uint32)
    count = 0  # never beyond p: different ids move up in `out` as they are found
    for v in range(vshards):
        begins[v] = before = count
        mask = np.uint64(4 * _power_of_two(starts[v + 1] - starts[v]) - 1)
        for p in range(starts[v], starts[v + 1]):
            item = out[p]
            at = mix64(item ^ seed) & mask
            while True:
                known = slots[at]
                if known <= before:  # empty, or left from an earlier vshard
                    out[count] = item
                    places[p] = count
                    count += 1
                    slots[at] = count
                    break
                if out[known - 1] == item:
                    places[p] = known - 1
                    break
                at = (at + np.uint64(1)) & mask
    begins[vshards] = count
    return count


@register_jitable(error_model="numpy")
def _power_of_two(n: Any) -> Any:
    """The least one that is not below n."""
    found = 1
    while found < n:
        found *= 2
    return found


@dataclass(frozen=True, slots=True)
class IdPlan:
    """The ids of a call in plan order.

    ids: each id once. begins: where each vshard's run begins, and, last, where the plan ends. order: the positions of
    the call, vshard after vshard, within a vshard as they came. places: for each of these its id's place in `ids`.
    """

    ids: Ids
    begins: npt.NDArray[np.int64]
    order: Positions
    places: Positions

    def inverse(self) -> Positions:
        """For each id of the call its place in `ids`."""
        found: Positions = np.empty(self.order.size, np.uint32)
        found[self.order] = self.places
        return found


_BUILDING = threading.Lock()
_PLANS: list[Callable[..., int]] = []


def plan(ids: Ids, seed: int, vshards: int, memory: npt.NDArray[np.uint8] | None = None) -> IdPlan:
    """Bring `ids` (1-D, contiguous) into plan order.

    Args:
        memory: `PLAN_BYTES` for each id, from a multiple of 8 on, which the plan's arrays lie in; fresh unless given.
            Fresh pages cost a fifth of the plan.
    """
    if not _PLANS:
        build_plan()
    n = ids.size
    held = np.empty(PLAN_BYTES * n, np.uint8) if memory is None else memory[: PLAN_BYTES * n]
    out = held[: 8 * n].view(np.uint64)
    order, places = held[8 * n : 12 * n].view(np.uint32), held[12 * n :].view(np.uint32)
    starts, begins = np.zeros(vshards + 1, np.int64), np.empty(vshards + 1, np.int64)
    count = _PLANS[0](ids, np.uint64(seed), shift_of(vshards), starts, order, places, out, begins)
    return IdPlan(out[:count], begins, order, places)


def build_plan() -> None:
    """The kernel behind `plan`, compiled at the first call of a process. Thread-safe."""
    with _BUILDING:
        if not _PLANS:
            positions = types.Array(types.uint32, 1, "C")
            out = types.Array(types.uint64, 1, "C")
            readable = types.Array(types.uint64, 1, "C", readonly=True)
            begins = types.Array(types.int64, 1, "C")
            asked = types.intp(readable, types.uint64, types.uint64, begins, positions, positions, out, begins)
            _PLANS.append(kernel_cache.compiled(_plan, [asked], _IDS))
