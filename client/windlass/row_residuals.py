"""Row residuals: what encoding lost of rows of a table, kept by id for the row's next gradient.

    sets     | 16 slots | 16 slots | ...      an id's set is named by its hash
    slot     id, number of the call that named it last, what was lost (dim float32)

An id that is new to a full set takes the slot that was named longest ago, and what was kept there is dropped: lost,
where feedback would have brought it later. Sets double until they fill the byte budget, so nothing is dropped before
that but from a set that chance has filled (of sets half full on average, one in 270). An id that finds its whole set
named by the same call has no slot: it is encoded without feedback that time.

Invariant: at most `limits.ROW_RESIDUAL_BYTES_MAX`; two runs that push the same ids keep the same. Owner: the store's
lock.

Prior art: the set-associative caches of processors; error feedback is Seide et al. (Interspeech 2014).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import types

from windlass_proto import kernel_cache, limits
from windlass_proto.ids import Ids, mix64

Floats = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

WAYS: Final = 16
_SETS_MIN: Final = 64
_SLOT_BYTES: Final = 16  # id and number of the call
_NO_SLOT: Final = -1
_HEADER: Final = 4  # sets, number of the latest call, residuals dropped, ids

_BUILDING = threading.Lock()
_READY: list[Callable[..., int]] = []


def _find(ids: Ids, tags: Ids, calls: Any, call: Any, places: Places, lost: Places) -> int:
    """The slot of each id, which is its own from now on; how many slots were nobody's before.

    `lost` gets the slots that were other ids', and -1 behind them.
    """
    sets = np.uint64(tags.size // WAYS)
    count = fresh = 0
    for i in range(ids.size):
        begin = np.int64(mix64(ids[i]) & (sets - np.uint64(1))) * WAYS
        found: Any = begin
        oldest: Any = begin
        is_known = False
        for at in range(begin, begin + WAYS):
            if calls[at] != 0 and tags[at] == ids[i]:
                found, is_known = at, True
                break
            if calls[at] < calls[oldest]:
                oldest = at
        if not is_known:
            found = oldest if calls[oldest] != call else _NO_SLOT
        if not is_known and found != _NO_SLOT:
            if calls[found] != 0:
                lost[count] = found
                count += 1
            else:
                fresh += 1
            tags[found] = ids[i]
        if found != _NO_SLOT:
            calls[found] = call
        places[i] = found
    lost[count] = -1
    return fresh


def _kernel() -> Callable[..., int]:
    with _BUILDING:
        if not _READY:
            readable = types.Array(types.uint64, 1, "C", readonly=True)
            tags = types.Array(types.uint64, 1, "C")
            numbers = types.Array(types.int64, 1, "C")
            asked = types.intp(readable, tags, numbers, types.int64, numbers, numbers)
            _READY.append(kernel_cache.compiled(_find, [asked], np.dtype(np.uint64)))
        return _READY[0]


class RowResiduals:
    """Of one table in one worker; rows have `dim` values."""

    def __init__(self, dim: int, *, bytes_max: int = limits.ROW_RESIDUAL_BYTES_MAX) -> None:
        self.dim = dim
        self.dropped = 0  # residuals of other ids that had to go
        row = 4 * dim + _SLOT_BYTES
        self._sets_max = max(1, 1 << (max(1, bytes_max // (row * WAYS)).bit_length() - 1))
        self._find = _kernel()
        self._call = 0
        self._lay_out(min(_SETS_MIN, self._sets_max))

    def __len__(self) -> int:
        """Ids that something may be kept of."""
        return self._used

    @property
    def nbytes(self) -> int:
        return self._tags.nbytes + self._calls.nbytes + self._rows.nbytes

    def take(self, ids: Ids) -> tuple[Places, Floats]:
        """Where each of `ids` (all different) keeps what is lost, and a copy of what it has kept so far."""
        while self._calls.size < WAYS * self._sets_max and 2 * (self._used + ids.size) > self._calls.size:
            self._double()
        self._call += 1
        places, lost = np.empty(ids.size, np.int64), np.empty(ids.size + 1, np.int64)
        self._used += self._find(ids, self._tags, self._calls, self._call, places, lost)
        others = lost[: int(np.argmin(lost >= 0))]
        self._rows[others] = 0
        self.dropped += others.size
        kept = self._rows[places]
        kept[places == _NO_SLOT] = 0
        return places, kept.reshape(-1)

    def keep(self, places: Places, lost: Floats) -> None:
        """What encoding has lost of the rows that `take` gave these places."""
        mine = places != _NO_SLOT
        rows = lost.reshape(-1, self.dim)
        if mine.all():
            self._rows[places] = rows
        else:
            self._rows[places[mine]] = rows[mine]

    def forget(self, ids: Ids) -> None:
        """Nothing is kept of these any more."""
        sets = np.uint64(self._tags.size // WAYS)
        slots = (mix64(ids) & (sets - np.uint64(1))).astype(np.int64)[:, None] * WAYS + np.arange(WAYS)
        mine = slots[(self._tags[slots] == ids[:, None]) & (self._calls[slots] != 0)]
        self._rows[mine] = 0
        self._calls[mine] = 0
        self._used -= np.unique(mine).size

    # ---- in a checkpoint ---------------------------------------------------------------------------------------------

    def packed(self) -> npt.NDArray[np.uint8]:
        """All of it as bytes, copied: _HEADER i64, ids u64, calls and slots i64, rows float32; `unpack` is exact."""
        live = np.flatnonzero(self._calls)
        header = np.array([self._tags.size // WAYS, self._call, self.dropped, live.size], np.int64)
        columns = (header, self._tags[live], self._calls[live], live, self._rows[live])
        return np.concatenate([np.ascontiguousarray(column).reshape(-1).view(np.uint8) for column in columns])

    def unpack(self, raw: npt.NDArray[np.uint8]) -> None:
        """Be what `packed` was called on; what is here is forgotten.

        Raises:
            ValueError: it is of rows of another size, or nothing that `packed` made.
        """
        (sets, call, dropped), (ids, calls, slots, rows) = self._columns(raw)
        if not 0 < sets <= self._sets_max or sets & (sets - 1):
            raise ValueError(f"{sets} sets")
        if slots.size and not (slots.min() >= 0 and slots.max() < WAYS * sets and calls.min() > 0):
            raise ValueError("a slot is beyond its sets")
        self._lay_out(sets)
        self._call, self.dropped, self._used = call, dropped, ids.size
        self._tags[slots], self._calls[slots], self._rows[slots] = ids, calls, rows

    def add(self, raw: npt.NDArray[np.uint8]) -> None:
        """Keep what another one kept as well, as far as there is room.

        Raises:
            ValueError: as `unpack`.
        """
        _, (ids, _, _, rows) = self._columns(raw)
        places, kept = self.take(ids)
        self.keep(places, kept + rows.reshape(-1))

    def clear(self) -> None:
        """Nothing is kept."""
        self._lay_out(min(_SETS_MIN, self._sets_max))

    def _columns(self, raw: npt.NDArray[np.uint8]) -> tuple[list[int], tuple[Ids, Places, Places, Any]]:
        *numbers, live = np.array(raw[: 8 * _HEADER].view(np.int64)).tolist() if raw.size >= 8 * _HEADER else [-1] * 4
        if live < 0 or raw.size != 8 * _HEADER + live * (24 + 4 * self.dim):
            raise ValueError(f"{raw.size} bytes for {live} rows of {self.dim}")
        at = [8 * (_HEADER + live * column) for column in range(4)]
        ids, calls, slots = (np.array(raw[begin : begin + 8 * live]) for begin in at[:3])
        rows = np.array(raw[at[3] :]).view(np.float32).reshape(live, self.dim)
        return numbers, (ids.view(np.uint64), calls.view(np.int64), slots.view(np.int64), rows)

    def _lay_out(self, sets: int) -> None:
        self._tags: Ids = np.zeros(WAYS * sets, np.uint64)
        self._calls: Places = np.zeros(WAYS * sets, np.int64)
        self._rows: npt.NDArray[np.float32] = np.zeros((WAYS * sets, self.dim), np.float32)
        self._used = 0

    def _double(self) -> None:
        """Twice the sets: each gives about half of its slots to a new one, so all find room."""
        live = np.flatnonzero(self._calls)
        ids, calls, rows = self._tags[live], self._calls[live], self._rows[live]
        self._lay_out(2 * (self._calls.size // WAYS))
        places, lost = np.empty(ids.size, np.int64), np.empty(ids.size + 1, np.int64)
        self._used = self._find(ids, self._tags, self._calls, np.iinfo(np.int64).max, places, lost)
        self._calls[places], self._rows[places] = calls, rows
