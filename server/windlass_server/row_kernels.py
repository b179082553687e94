"""Kernels of row tables: find, insert, erase, walk (rebuild), read.

An index is a run of u32 slots in a shared array, a power of two long: 0 is empty, n + 1 says row number n. An id's
first slot is its key's low bits; a full slot is passed over to the next (linear probing: Knuth, The Art of Computer
Programming vol. 3, section 6.4, algorithm L; erasing moves entries back, algorithm R, so nothing is left behind).

Finding is three passes over 64 ids, slots then ids then the rest: the second pass's cache misses overlap, and so do the
third's. One pass with each id's misses in turn found 8 M ids a second among 4 M rows, three passes find 30 M.

Invariant: kernels trust the index, which only they write, and that ids belong to the band, which `covers` says of a
peer's. They write only inside the arrays given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numba import types
from numba.extending import register_jitable

from windlass_proto import init_specs, kernel_cache
from windlass_proto.ids import AHEAD, NONE, mix64, prefetch, vshard_of
from windlass_proto.row_moves import copy_row

_CHUNK: Final = 64
_IDS: Final = np.dtype(np.uint64)
_NONE: Final = np.uint32(NONE)
_UNIFORM: Final = init_specs.UNIFORM
_NORMAL: Final = init_specs.NORMAL
_CENTRE: Final = init_specs.NORMAL_CENTRE
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


@register_jitable(error_model="numpy")
def _lookup(item: Any, key: Any, v: Any, ids: Any, index: Any, begins: Any, masks: Any) -> Any:
    """The slot of `item` in the index of local vshard v, or the empty slot where it would go."""
    mask = masks[v]
    at = key & mask
    while True:
        known = index[begins[v] + np.int64(at)]
        if known == 0 or ids[known - 1] == item:
            return begins[v] + np.int64(at)
        at = (at + np.uint64(1)) & mask


@register_jitable(error_model="numpy")
def _fill_row(row: Any, key: Any, kind: Any, a: Any, b: Any, init_seed: Any) -> None:
    """First values of the row of `key`: see windlass_proto.init_specs."""
    if kind in (_UNIFORM, _NORMAL):
        stream = mix64(key ^ mix64(init_seed + np.uint64(1)))
        low = np.uint64(0xFFFF)
        for j in range(row.size):
            if kind == _UNIFORM:
                word = mix64(stream + np.uint64(j + 1) * _GOLDEN)
                row[j] = a + b * np.float64(word >> np.uint64(40))
            else:
                x = mix64(stream + np.uint64(2 * j + 1) * _GOLDEN)
                y = mix64(stream + np.uint64(2 * j + 2) * _GOLDEN)
                total = (x & low) + ((x >> np.uint64(16)) & low) + ((x >> np.uint64(32)) & low) + (x >> np.uint64(48))
                total += (y & low) + ((y >> np.uint64(16)) & low) + ((y >> np.uint64(32)) & low) + (y >> np.uint64(48))
                row[j] = a + b * np.float64(np.int64(total) - _CENTRE)
    else:
        for j in range(row.size):
            row[j] = a


def _covers(asked: Any, count: Any, seed: Any, shift: Any, first: Any) -> bool:
    """Does every id fall into one of `count` vshards from `first` on?"""
    outside = 0
    for i in range(asked.size):
        v = vshard_of(mix64(asked[i] ^ seed), shift) - first
        outside += v < 0 or v >= count
    return outside == 0


def _find(
    asked: Any, numbers: Any, ids: Any, index: Any, begins: Any, masks: Any, seed: Any, shift: Any, first: Any
) -> int:
    """numbers[i] = the row number of asked[i], or NONE. Returns how many are NONE."""
    slots, keys = np.empty(_CHUNK, np.int64), np.empty(_CHUNK, np.uint64)
    absent = 0
    for base in range(0, asked.size, _CHUNK):
        size = min(_CHUNK, asked.size - base)
        for i in range(size):
            key = mix64(asked[base + i] ^ seed)
            v = vshard_of(key, shift) - first
            keys[i] = key
            slots[i] = begins[v] + np.int64(key & masks[v])
            prefetch(index, slots[i])
        for i in range(size):
            known = index[slots[i]]
            if known != 0:
                prefetch(ids, np.int64(known - 1))
        for i in range(size):
            item = asked[base + i]
            known = index[slots[i]]
            if known != 0 and ids[known - 1] != item:  # a third of them: what `_lookup` does, without a call
                key = keys[i]
                v = vshard_of(key, shift) - first
                at = np.uint64(slots[i] - begins[v])
                while known != 0 and ids[known - 1] != item:
                    at = (at + np.uint64(1)) & masks[v]
                    known = index[begins[v] + np.int64(at)]
            if known == 0:
                numbers[base + i] = _NONE
                absent += 1
            else:
                numbers[base + i] = known - 1
    return absent


def _count(asked: Any, numbers: Any, needed: Any, seed: Any, shift: Any, first: Any) -> None:
    """needed[v] = how many of the absent ids fall into local vshard v (an id given twice counts twice)."""
    for i in range(asked.size):
        if numbers[i] == _NONE:
            needed[vshard_of(mix64(asked[i] ^ seed), shift) - first] += 1


def _insert(
    asked: Any, numbers: Any, ids: Any, index: Any, begins: Any, masks: Any, seed: Any, shift: Any, first: Any,
    counts: Any, next_begins: Any, next_masks: Any, walked: Any,
    used: Any, free: Any, free_count: Any, rows: Any, dim: Any, kind: Any, a: Any, b: Any, init_seed: Any,
) -> tuple[int, int]:  # fmt: skip
    """Give each absent id a row with first values. There is room in every index and in `rows`.

    Row numbers come from the end of `free`, then from `used` on. Returns what both are now; numbers[i] is set. What
    falls behind a vshard's walk (see `_walk`) is entered into its next run as well.
    """
    n = asked.size
    for i in range(n):
        if i + AHEAD < n and numbers[i + AHEAD] == _NONE:
            soon = mix64(asked[i + AHEAD] ^ seed)
            coming = vshard_of(soon, shift) - first
            prefetch(index, begins[coming] + np.int64(soon & masks[coming]))
        if numbers[i] != _NONE:
            continue
        item = asked[i]
        key = mix64(item ^ seed)
        v = vshard_of(key, shift) - first
        slot = _lookup(item, key, v, ids, index, begins, masks)
        if index[slot] != 0:  # given twice
            numbers[i] = index[slot] - 1
            continue
        if free_count > 0:
            free_count -= 1
            number = np.int64(free[free_count])
        else:
            number = used
            used += 1
        ids[number] = item
        index[slot] = number + 1
        counts[v] += 1
        numbers[i] = number
        if slot - begins[v] < walked[v]:
            _enter(number + 1, key, index, next_begins[v], next_masks[v])
        _fill_row(rows[number * dim : (number + 1) * dim], key, kind, a, b, init_seed)
    return used, free_count


def _erase(
    asked: Any, erased: Any, ids: Any, index: Any, begins: Any, masks: Any, seed: Any, shift: Any, first: Any,
    counts: Any, next_begins: Any, next_masks: Any, walked: Any,
) -> int:  # fmt: skip
    """Take the ids that are there out of the index; their row numbers go to `erased`. Returns how many."""
    gone = 0
    for i in range(asked.size):
        if i + AHEAD < asked.size:
            soon = mix64(asked[i + AHEAD] ^ seed)
            coming = vshard_of(soon, shift) - first
            prefetch(index, begins[coming] + np.int64(soon & masks[coming]))
        key = mix64(asked[i] ^ seed)
        v = vshard_of(key, shift) - first
        begin = begins[v]
        slot = _lookup(asked[i], key, v, ids, index, begins, masks)
        known = index[slot]
        if known == 0:
            continue
        erased[gone] = known - 1
        gone += 1
        counts[v] -= 1
        _close(np.uint64(slot - begin), ids, index, begin, masks[v], seed, walked[v], next_begins[v], next_masks[v])
        if walked[v] > 0:
            at = key & next_masks[v]
            found = index[next_begins[v] + np.int64(at)]
            while found != 0 and found != known:
                at = (at + np.uint64(1)) & next_masks[v]
                found = index[next_begins[v] + np.int64(at)]
            if found == known:
                _close(at, ids, index, next_begins[v], next_masks[v], seed, 0, next_begins[v], next_masks[v])
    return gone


@register_jitable(error_model="numpy")
def _close(
    hole: Any, ids: Any, index: Any, begin: Any, mask: Any, seed: Any, walked: Any, next_begin: Any, next_mask: Any
) -> None:
    """Whatever could not be found across the hole moves into it; what moves behind the walk is entered there."""
    at = hole
    while True:
        at = (at + np.uint64(1)) & mask
        known = index[begin + np.int64(at)]
        if known == 0:
            break
        key = mix64(ids[known - 1] ^ seed)
        if ((at - (key & mask)) & mask) >= ((at - hole) & mask):
            index[begin + np.int64(hole)] = known
            if np.int64(hole) < walked:
                _enter(known, key, index, next_begin, next_mask)
            hole = at
    index[begin + np.int64(hole)] = 0


@register_jitable(error_model="numpy")
def _enter(known: Any, key: Any, index: Any, begin: Any, mask: Any) -> None:
    """Enter a row number + 1 into a run that has room, unless it is there."""
    at = key & mask
    found = index[begin + np.int64(at)]
    while found != 0 and found != known:
        at = (at + np.uint64(1)) & mask
        found = index[begin + np.int64(at)]
    index[begin + np.int64(at)] = known


def _walk(
    ids: Any, index: Any, old_begin: Any, first: Any, last: Any, old_size: Any, begin: Any, mask: Any, seed: Any
) -> None:
    """Enter what slots [first, last) of the old run hold into the next one, which began as zeros.

    A run is rebuilt in such steps, and the old one is what calls look into until the last. A row that an erasure moves
    from slots to come into slots that were walked is entered then, one that it moves the other way is entered twice.
    """
    for i in range(first, last):
        ahead = index[old_begin + min(i + AHEAD, old_size - 1)]
        if ahead != 0:
            prefetch(ids, np.int64(ahead - 1))
        known = index[old_begin + i]
        if known != 0:
            key = mix64(ids[known - 1] ^ seed)
            at = key & mask
            found = index[begin + np.int64(at)]
            while found != 0 and found != known:
                at = (at + np.uint64(1)) & mask
                found = index[begin + np.int64(at)]
            index[begin + np.int64(at)] = known


def _read(
    asked: Any, numbers: Any, rows: Any, dim: Any, out: Any, seed: Any, kind: Any, a: Any, b: Any, init_seed: Any
) -> None:
    """out[i] = row numbers[i], or for NONE the first values that asked[i] would have."""
    n = numbers.size
    for i in range(n):
        if i + AHEAD < n and numbers[i + AHEAD] != _NONE:
            prefetch(rows, np.int64(numbers[i + AHEAD]) * dim)
        if numbers[i] == _NONE:
            _fill_row(out[i * dim : (i + 1) * dim], mix64(asked[i] ^ seed), kind, a, b, init_seed)
        else:
            copy_row(rows, np.int64(numbers[i]) * dim, out, i * dim, dim)


def _scan(
    begin: Any, live: Any, ids: Any, index: Any, begins: Any, masks: Any, seed: Any, shift: Any, first: Any
) -> None:
    """live[i] = does row number begin + i belong to an id?"""
    for i in range(live.size):
        number = begin + i
        item = ids[number]
        key = mix64(item ^ seed)
        v = vshard_of(key, shift) - first
        live[i] = 0
        if v >= 0 and v < begins.size:
            live[i] = index[_lookup(item, key, v, ids, index, begins, masks)] == number + 1


@dataclass(frozen=True, slots=True)
class RowKernels:
    """The compiled kernels for rows of one dtype; see the functions of the same names."""

    covers: Callable[..., bool]
    find: Callable[..., int]
    count: Callable[..., None]
    insert: Callable[..., tuple[int, int]]
    erase: Callable[..., int]
    walk: Callable[..., None]
    read: Callable[..., None]
    scan: Callable[..., None]


_BUILDING = threading.Lock()
_READY: dict[np.dtype[Any], RowKernels] = {}


def build(dtype: np.dtype[Any]) -> RowKernels:
    """The kernels for rows of `dtype`, compiled (or loaded) at the first call of a process. Thread-safe."""
    with _BUILDING:
        if dtype not in _READY:
            _READY[dtype] = _compile(dtype)
        return _READY[dtype]


def _compile(dtype: np.dtype[Any]) -> RowKernels:
    u64, i64, f64, integer = types.uint64, types.int64, types.float64, types.intp
    asked = types.Array(u64, 1, "C", readonly=True)
    numbers, flags = types.Array(types.uint32, 1, "C"), types.Array(types.uint8, 1, "C")
    own_ids, masks, counts = types.Array(u64, 1, "C"), types.Array(u64, 1, "C"), types.Array(i64, 1, "C")
    rows, out = kernel_cache.vector_type(dtype), kernel_cache.vector_type(dtype)
    index, where = numbers, (u64, u64, i64)
    held = (own_ids, index, counts, masks)
    first_values = (i64, f64, f64, u64)
    moving = (counts, masks, counts)
    numba_types: Any = types
    pair = numba_types.UniTuple(i64, 2)

    def made(function: Callable[..., Any], signature: Any, kind: Any = _IDS) -> Callable[..., Any]:
        return kernel_cache.compiled(function, [signature], kind)

    return RowKernels(
        covers=made(_covers, types.boolean(asked, i64, *where)),
        find=made(_find, i64(asked, numbers, *held, *where)),
        count=made(_count, types.void(asked, numbers, counts, *where)),
        insert=made(
            _insert,
            pair(asked, numbers, *held, *where, counts, *moving, i64, numbers, i64, rows, integer, *first_values),
            dtype,
        ),
        erase=made(_erase, i64(asked, numbers, *held, *where, counts, *moving)),
        walk=made(_walk, types.void(own_ids, index, i64, i64, i64, i64, i64, u64, u64)),
        read=made(_read, types.void(asked, numbers, rows, integer, out, u64, *first_values), dtype),
        scan=made(_scan, types.void(i64, flags, *held, *where)),
    )
