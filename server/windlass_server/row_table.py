"""A row table: the rows of one band (a run of vshards) of a sparse table, with their rule's slots.

    index   | vshard 0: 256 slots | vshard 1: 512 slots | free | vshard 0's next |        u32, 0 or row number + 1
    ids     | row 0 | row 1 | row 2 | ...                                                u64
    rows    | row 0 ... dim | row 1 ... dim | ...                                        the table's dtype
    slots   | as rows, once for each slot of the rule; one value a row where the slot says so

All four are addresses reserved for as many rows as the band may ever hold, and take memory where they are touched: rows
never move, so a rebuild copies u32 slots and nothing else. Each vshard has an index of its own, rebuilt at twice its
size from when it is filled to between 0.60 and 0.80, a threshold that differs from vshard to vshard: indexes that fill
alike do not grow at one time. A push walks some slots for each row it makes (`SLICE_SLOTS_A_ROW`), so that none waits
for a whole table; the old run is the index until all of it is in the next one, and is kept up to 0.90 full, beyond
which (one push made most of its rows) the rest is walked at once. A row costs its values, 8 B of id and 5 to 14 B of
index.

A page's first touch costs more than the rows on it (2 MiB: 5 ms on a virtual machine), so memory is taken ahead of the
rows: `ahead`, if there is one, is handed what the next pushes will need, and takes it in a thread of its own; what it
has not taken when a push comes is taken before the lock is (`take_memory`).

Invariant: whoever calls holds the share's lock. A row exists from the first push for its id that had room (or, where
the table's `life` says who is admitted and who goes, from the one that was applied), and begins with the initialiser's
values, which is also what a pull of an absent id answers: nobody can see when a row was made. Row numbers stay valid
until `erasures` changes.

Prior art: open addressing is Peterson's (IBM Journal, 1957); the reserve-then-touch arrays are those of region
allocators.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from windlass_proto import ids as id_kernels
from windlass_proto import limits, memory
from windlass_proto.errors import UsageError
from windlass_proto.init_specs import InitSpec
from windlass_rules.rule import Slot
from windlass_server import row_kernels
from windlass_server.row_changes import RowChanges
from windlass_server.row_life import RowLife

_INDEX_SLOTS_MIN: Final = 64
_INDEX_RUNS_AHEAD: Final = 12  # the thresholds of a band's vshards are spread, so that few grow in one push
_AHEAD_FROM_ROWS: Final = 4096
_AHEAD_BYTES_MAX: Final = 64 * limits.MIB  # of one array
_FILL_LOW: Final = 0.60
_FILL_SPREAD: Final = 0.20
_FILL_MAX: Final = 0.90
SLICE_SLOTS_MIN: Final = 1 << 14
"""Slots that one push walks at least to rebuild indexes, where some are being rebuilt: 0.2 ms."""

SLICE_SLOTS_A_ROW: Final = 8
"""Slots that it walks for each row it makes: an index that doubles has 2.9 for each row since it doubled last."""

_GOLDEN: Final = 0.6180339887498949

Ahead = Callable[[npt.NDArray[Any]], object]
Numbers = npt.NDArray[np.uint32]
Vector = npt.NDArray[np.floating[Any]]


class RowTable:
    """The rows of the vshards in `held`, of a key space of `vshards`.

    Args:
        rows_max: how many rows there is room for.
        slots: of the rule.
        ahead: takes memory for an array, now or soon (`memory.populate`).
    """

    def __init__(
        self,
        name: str,
        held: range,
        vshards: int,
        seed: int,
        dim: int,
        dtype: np.dtype[Any],
        init: InitSpec,
        slots: tuple[Slot, ...],
        rows_max: int,
        ahead: Ahead | None = None,
    ) -> None:
        self.name = name
        self.held = held
        self.dim = dim
        self.dtype = dtype
        self.rows_max = min(rows_max, limits.BAND_ROWS_MAX)
        self.used = 0
        self.free = np.empty(0, np.uint32)
        self.free_count = 0
        self.erasures = 0
        self.reserved = 0  # rows that pushes not applied yet may make, where they are made when applied
        self.life: RowLife | None = None
        self.changes: RowChanges | None = None  # since a checkpoint that another one may build on
        self._ahead = ahead
        self._rows_taken = 0  # memory was taken for so many
        self._index_taken = 0
        self._rows_sure = 0  # memory of so many is there
        self._index_sure = 0
        self.kernels = row_kernels.build(dtype)
        self._slots = slots
        kind, a, b, init_seed = init.numbers()
        self._init = (kind, a, b, np.uint64(init_seed))
        self._where = (np.uint64(seed), id_kernels.shift_of(vshards), held.start)
        self.ids = memory.reserve(self.rows_max * 8)[1].view(np.uint64)
        self.rows: Vector = memory.reserve(self.rows_max * dim * dtype.itemsize)[1].view(dtype)
        self.slots: tuple[Vector, ...] = tuple(
            memory.reserve(self.rows_max * slot.width(dim) * dtype.itemsize)[1].view(dtype) for slot in slots
        )
        self.row_bytes = (dim + sum(slot.width(dim) for slot in slots)) * dtype.itemsize + 8
        count = len(held)
        self._index_pages, raw = memory.reserve(4 * (8 * self.rows_max + 2 * count * _INDEX_SLOTS_MIN))
        self._index = raw.view(np.uint32)
        self._index_used = count * _INDEX_SLOTS_MIN
        self._index_free: dict[int, list[int]] = {}
        self._begins = np.arange(count, dtype=np.int64) * _INDEX_SLOTS_MIN
        self._masks = np.full(count, _INDEX_SLOTS_MIN - 1, np.uint64)
        self._counts = np.zeros(count, np.int64)
        places = np.arange(held.start, held.stop, dtype=np.float64) * _GOLDEN
        self._fill = _FILL_LOW + _FILL_SPREAD * (places - np.floor(places))
        self._held = (self.ids, self._index, self._begins, self._masks)
        self._next_begins, self._next_masks = np.zeros(count, np.int64), np.zeros(count, np.uint64)
        self._walked = np.zeros(count, np.int64)  # slots of the old run that are in the next one
        self._moving = (self._next_begins, self._next_masks, self._walked)
        self._growing: deque[int] = deque()  # vshards with a next run, the first one being walked
        self.slots_walked = 0

    def __len__(self) -> int:
        return self.used - self.free_count

    @property
    def nbytes(self) -> int:
        """Bytes in use: rows, slots, ids, indexes."""
        life = sum(values.itemsize for values, _ in self.life.columns().values()) if self.life is not None else 0
        return self.used * (self.row_bytes + life + (self.changes is not None)) + self._index_used * 4

    def columns(self) -> dict[str, tuple[npt.NDArray[Any], int]]:
        """What a row is made of, by name: an array, and how many of its elements are one row's."""
        found: dict[str, tuple[npt.NDArray[Any], int]] = {"ids": (self.ids, 1), "rows": (self.rows, self.dim)}
        for slot, values in zip(self._slots, self.slots, strict=True):
            found[f"slot.{slot.name}"] = (values, slot.width(self.dim))
        found |= self.life.columns() if self.life is not None else {}
        return {name: (values[: self.rows_max * width], width) for name, (values, width) in found.items()}

    def belonging(self, ids: id_kernels.Ids) -> npt.NDArray[np.bool_]:
        """Which of `ids` belong to this band."""
        seed, shift, first = self._where
        places = id_kernels.vshard_of(id_kernels.mix64(ids ^ seed), shift) - first
        found: npt.NDArray[np.bool_] = (places >= 0) & (places < self._counts.size)
        return found

    def covers(self, ids: id_kernels.Ids) -> bool:
        """Do all `ids` belong to this band? What every other method is called with must."""
        return self.kernels.covers(ids, self._counts.size, *self._where)

    def find(self, ids: id_kernels.Ids, numbers: Numbers) -> int:
        """Row numbers of `ids`, NONE where there is none; returns how many there are none of."""
        return self.kernels.find(ids, numbers, *self._held, *self._where)

    def room_for(self, absent: int) -> UsageError | None:
        """Is there room for so many more rows? An error if there is none."""
        if absent <= self.rows_max - len(self):
            return None
        return UsageError(
            "a sparse table is full",
            table=self.name,
            rows=len(self),
            rows_asked=absent,
            rows_max=self.rows_max,
            next_move="Declare it with a larger bytes_max=, or erase rows. The push was not applied.",
        )

    def insert(self, ids: id_kernels.Ids, numbers: Numbers, absent: int) -> UsageError | None:
        """Make rows for those of `ids` that `find` found none for; `numbers` then has all.

        Returns an error, with nothing changed, where there is no room.
        """
        refused = self.room_for(absent)
        if refused is not None:
            return refused
        needed = np.zeros(self._counts.size, np.int64)
        self.kernels.count(ids, numbers, needed, *self._where)
        for v in np.flatnonzero(self._counts + needed > self._fill * (self._masks + np.uint64(1))):
            self._grow(int(v), int(self._counts[v] + needed[v]))
        self._walk(max(SLICE_SLOTS_MIN, SLICE_SLOTS_A_ROW * absent))
        before, reused = self.used, self.free_count
        self.used, self.free_count = self.kernels.insert(
            ids, numbers, *self._held, *self._where, self._counts, *self._moving, self.used, self.free,
            self.free_count, self.rows, self.dim, *self._init,
        )  # fmt: skip
        for slot, values in zip(self._slots, self.slots, strict=True):
            width = slot.width(self.dim)
            if slot.fill:
                values[before * width : self.used * width] = slot.fill
            if reused > self.free_count:
                values[: self.used * width].reshape(-1, width)[self.free[self.free_count : reused]] = slot.fill
        if self.changes is not None:
            self.changes.update(numbers)
        if self._ahead is not None and self.used > before:
            self._take_ahead(self.used - before)
        return None

    def _take_ahead(self, made: int) -> None:
        """Memory for the next two pushes like one that made `made` rows, or a 32nd of all, and for some runs."""
        assert self._ahead is not None
        if self.used < _AHEAD_FROM_ROWS:
            return
        margin = max(2 * made, self.used // 32)
        if self.used + margin // 2 > self._rows_taken:
            begin, end = max(self._rows_taken, self.used), min(self.used + margin, self.rows_max)
            for values, width in self.columns().values():
                most = _AHEAD_BYTES_MAX // values.itemsize
                self._ahead(values[begin * width : min(end * width, begin * width + most)])
            self._rows_taken = end
        runs = _INDEX_RUNS_AHEAD * 2 * (int(self._masks.max()) + 1)
        if self._index_used + runs // 2 > self._index_taken:
            begin, end = max(self._index_taken, self._index_used), self._index_used + runs
            self._ahead(self._index[begin:end])
            self._index_taken = end

    def take_memory(self, made: int) -> None:
        """Memory for `made` more rows, now, where `ahead` may be late. Whoever calls need not hold the lock.

        A row of another thread's push may be made meanwhile: then some of this memory is taken in the lock after all.
        """
        end = min(self.used + made, self.rows_max)
        if self._ahead is None or end < _AHEAD_FROM_ROWS:
            return
        page = mmap.PAGESIZE  # the last one is taken whole
        if end > self._rows_sure:
            for values, width in self.columns().values():
                memory.populate(values[self._rows_sure * width : end * width + page // values.itemsize])
            self._rows_sure = end
        runs = self._index_used + _INDEX_RUNS_AHEAD * 2 * (int(self._masks.max()) + 1)
        if runs > self._index_sure:
            memory.populate(self._index[self._index_sure : runs + page // 4])
            self._index_sure = runs

    def read(self, ids: id_kernels.Ids, out: Vector) -> None:
        """The rows of `ids` into `out`; absent ones as the initialiser has them."""
        numbers = np.empty(ids.size, np.uint32)
        self.find(ids, numbers)
        if self.life is not None:
            self.life.hide(numbers)
        self.read_found(ids, numbers, out)

    def read_found(self, ids: id_kernels.Ids, numbers: Numbers, out: Vector) -> None:
        """`read` for row numbers that are known."""
        self.kernels.read(ids, numbers, self.rows, self.dim, out, self._where[0], *self._init)

    def erase(self, ids: id_kernels.Ids) -> int:
        """Rows of `ids` go, their slots with them; returns how many there were."""
        erased = np.empty(ids.size, np.uint32)
        gone = self.kernels.erase(ids, erased, *self._held, *self._where, self._counts, *self._moving)
        if gone:
            if self.free_count + gone > self.free.size:
                grown = np.empty(2 * (self.free_count + gone), np.uint32)
                grown[: self.free_count] = self.free[: self.free_count]
                self.free = grown
            self.free[self.free_count : self.free_count + gone] = erased[:gone]
            self.free_count += gone
            self.erasures += 1
            if self.life is not None:
                self.life.gone(erased[:gone])
            if self.changes is not None:
                self.changes.erase(erased[:gone], self.ids[erased[:gone]], len(self))
        return gone

    def vshards_above(self, counts: npt.NDArray[np.int64]) -> list[int]:
        """The vshards with more rows than `counts` says of each, numbered from this band's first."""
        found: list[int] = np.flatnonzero(self._counts > counts).tolist()
        return found

    def count_of(self, v: int) -> int:
        """The rows of one vshard."""
        return int(self._counts[v])

    def run_of(self, v: int) -> tuple[Numbers, int]:
        """The index, and where the run of one vshard begins in it."""
        return self._index, int(self._begins[v])

    def numbers_of(self, v: int) -> Numbers:
        """The row numbers of one vshard, in no order that means anything."""
        begin = int(self._begins[v])
        run = self._index[begin : begin + int(self._masks[v]) + 1]
        found: Numbers = run[run != 0] - np.uint32(1)
        return found

    def scan(self, begin: int, live: npt.NDArray[np.uint8]) -> None:
        """live[i] = does row number begin + i belong to an id?"""
        self.kernels.scan(begin, live, *self._held, *self._where)
        if self.life is not None:
            numbers = np.where(live, np.arange(begin, begin + live.size, dtype=np.uint32), np.uint32(id_kernels.NONE))
            self.life.hide(numbers)
            live[:] = numbers != id_kernels.NONE

    def _grow(self, v: int, count: int) -> None:
        """A vshard is to have `count` rows: begin to rebuild its index, or end it where the old one would be full."""
        if v not in self._growing:
            size = int(self._masks[v]) + 1
            while count > self._fill[v] * size:
                size *= 2
            self._next_begins[v], self._next_masks[v] = self._take_index(size), size - 1
            self._growing.append(v)
        if count > _FILL_MAX * (int(self._masks[v]) + 1):
            self._walk_one(v, int(self._masks[v]) + 1)
            if count > self._fill[v] * (int(self._masks[v]) + 1):  # more came than when it began
                self._grow(v, count)

    def _walk(self, slots: int) -> None:
        """Go on rebuilding, so many slots further."""
        while slots > 0 and self._growing:
            slots -= self._walk_one(self._growing[0], slots)

    def _walk_one(self, v: int, slots: int) -> int:
        """Enter some slots of a vshard's old run into its next one, which takes its place after the last one."""
        begin, size, first = int(self._begins[v]), int(self._masks[v]) + 1, int(self._walked[v])
        last = min(size, first + slots)
        run = (int(self._next_begins[v]), self._next_masks[v])
        self.kernels.walk(self.ids, self._index, begin, first, last, size, *run, self._where[0])
        self._walked[v] = last
        self.slots_walked += last - first
        if last == size:
            self._begins[v], self._masks[v] = run
            self._walked[v] = 0
            self._growing.remove(v)
            self._give_index(begin, size)
        return last - first

    def _take_index(self, size: int) -> int:
        """The begin of `size` zeroed slots."""
        free = self._index_free.get(size)
        if free:
            begin = free.pop()
            self._index[begin : begin + size] = 0
            return begin
        begin = self._index_used
        self._index_used += size
        return begin

    def _give_index(self, begin: int, size: int) -> None:
        """A run is used no more: its slots wait for the next of their size, its whole pages go back."""
        waiting = self._index_free.setdefault(size, [])
        waiting.append(begin)
        if len(waiting) == 1:  # the next to grow to this size finds it warm
            return
        low = -(-begin * 4 // mmap.PAGESIZE) * mmap.PAGESIZE
        high = (begin + size) * 4 // mmap.PAGESIZE * mmap.PAGESIZE
        if high > low and hasattr(mmap, "MADV_DONTNEED"):
            self._index_pages.madvise(mmap.MADV_DONTNEED, low, high - low)

    def validate(self) -> None:
        """Check that index and rows agree; for tests."""
        for v, (begin, mask) in enumerate(zip(self._begins, self._masks, strict=True)):
            run = self._index[begin : begin + int(mask) + 1]
            coming = self._index[self._next_begins[v] :][: int(self._next_masks[v]) + 1 if v in self._growing else 0]
            behind = run[: self._walked[v]]
            assert set(behind) <= {0, *coming}, "a row that was walked is not in the next run"
            assert set(coming) <= {0, *run}, "a next run has a row that is gone"
            assert np.unique(coming[coming != 0]).size == np.count_nonzero(coming), "a next run has a row twice"
            assert np.count_nonzero(run) == self._counts[v], "a vshard's rows are miscounted"
            numbers = run[run != 0] - 1
            found = np.empty(numbers.size, np.uint32)
            assert self.find(self.ids[numbers].copy(), found) == 0, "an id cannot be found"
            assert np.array_equal(found, numbers), "an id is found elsewhere"
        assert self._counts.sum() == len(self), "rows are miscounted"
