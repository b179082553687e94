"""The life of a band's rows: which ids are given rows as pushes are applied, and which rows go again.

    rows_of     rows for the ids of an applied push: what has expired begins anew, what is absent is admitted or not
    touch       the push named these rows
    make_way    vshards with more rows than their part of rows_max give up the lowest eighth; parts differ a little
    sweep       some rows more are looked at: what has expired gives its memory back

Everything is a function of the pushes that were applied. Time is the highest step among them (`now`). Whether a row has
expired follows from `now` at once; the sweep, whose turn depends on where rows lie in memory, changes nothing that can
be read. Which rows a full vshard gives up depends on their scores and, where these are equal, on their keys.

Invariant: whoever calls holds the share's lock. A call of `sweep` looks at `SWEEP_ROWS` rows; one of `make_way` at each
row of a vshard that is over its part, once in an eighth of that part's new rows. Parts are up to an
eighth apart, so that vshards which fill alike are not looked at in one push.

Per row a `touched` step (u32) and a `score` (float32) are kept, where the policies need them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from windlass_proto import ids as id_kernels
from windlass_proto import memory
from windlass_proto.ids import NONE, Ids
from windlass_proto.life_specs import LFU, LRU, TTL, AdmitSpec, Count, Evictions, Score
from windlass_server import eviction_kernels
from windlass_server.admission_counts import AdmissionCounts

if TYPE_CHECKING:
    from windlass_server.row_table import Numbers, RowTable

SWEEP_ROWS: Final = 8192
_NEVER: Final = np.uint32(0xFFFFFFFF)
_STEP_MAX: Final = 0xFFFFFFFE
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)

Mask = npt.NDArray[np.bool_]


def parts(rows_max: int, held: range, vshards: int) -> npt.NDArray[np.int64]:
    """How many rows each vshard of `held` may have: rows_max / vshards, less up to an eighth."""
    whole = np.uint64(rows_max // vshards)
    places = (np.arange(held.start, held.stop, dtype=np.uint64) * _GOLDEN) >> np.uint64(32)
    found: npt.NDArray[np.int64] = (whole - ((whole // np.uint64(8) * places) >> np.uint64(32))).astype(np.int64)
    return found


class RowLife:
    """The policies of one row table.

    Args:
        vshards: of the whole key space.
    """

    def __init__(self, rows: RowTable, seed: int, vshards: int, admit: AdmitSpec | None, evict: Evictions) -> None:
        self.now = 0
        self.evicted = 0
        self.refused = 0
        self._rows = rows
        self._seed = np.uint64(seed)
        self._admit = admit
        self.counts = AdmissionCounts(rows.held, vshards, seed, admit.n) if isinstance(admit, Count) else None
        self._ttl = next((spec.steps for spec in evict if isinstance(spec, TTL)), None)
        self._capacity = next((spec for spec in evict if not isinstance(spec, TTL)), None)
        self._parts = parts(self._capacity.rows_max if self._capacity is not None else 0, rows.held, vshards)
        self._cursor = 0
        if self._capacity is not None:
            eviction_kernels.lowest()  # compiled now, not under a lock
        needs_time = self._ttl is not None or isinstance(self._capacity, LRU | Score)
        needs_score = isinstance(self._capacity, LFU | Score)
        self._touched = memory.reserve(4 * rows.rows_max)[1].view(np.uint32)[: rows.rows_max] if needs_time else None
        self._score = memory.reserve(4 * rows.rows_max)[1].view(np.float32)[: rows.rows_max] if needs_score else None

    def columns(self) -> dict[str, tuple[npt.NDArray[Any], int]]:
        """What is kept of each row, as `RowTable.columns`."""
        found = {"touched": self._touched, "score": self._score}
        return {name: (values, 1) for name, values in found.items() if values is not None}

    # ---- applying ----------------------------------------------------------------------------------------------------

    def pass_step(self, step: int) -> None:
        """Something of `step` is applied."""
        self.now = max(self.now, min(step, _STEP_MAX))

    def rows_of(self, ids: Ids, draw: int) -> Numbers:
        """Row numbers for the ids of a push, which are different; NONE for those that are given none.

        There is room for all of them. `draw`: a number that no other push to the band has, for probabilities.
        """
        numbers: Numbers = np.empty(ids.size, np.uint32)
        absent = self._rows.find(ids, numbers)
        old = self._expired(numbers)
        if old is not None and old.any():
            self.evicted += self._rows.erase(ids[old])
            numbers[old] = NONE
            absent += int(old.sum())
        if not absent:
            return numbers
        if self._admit is None:
            self._rows.insert(ids, numbers, absent)
            return numbers
        places = np.flatnonzero(numbers == NONE)
        admitted = self._admits(ids[places], draw)
        chosen = places[admitted]
        self.refused += places.size - chosen.size
        if chosen.size:
            made: Numbers = np.full(chosen.size, NONE, np.uint32)
            self._rows.insert(ids[chosen], made, chosen.size)
            numbers[chosen] = made
        return numbers

    def touch(self, numbers: Numbers) -> None:
        """A push has named these rows, NONE aside."""
        named = numbers[numbers != NONE]
        if self._score is not None:
            self._score[named] = self._scores(named) + 1
        if self._touched is not None:
            self._touched[named] = self.now

    def make_way(self) -> None:
        """Take rows away where there are more than there may be."""
        if self._capacity is None:
            return
        for v in self._rows.vshards_above(self._parts):
            part, held = int(self._parts[v]), self._rows.count_of(v)
            if self._ttl is not None:  # whatever the sweep has left
                numbers = self._rows.numbers_of(v)
                old = self._expired(numbers)
                if old is not None and old.any():
                    self.evicted += self._rows.erase(self._rows.ids[numbers[old]])
                    held = self._rows.count_of(v)
            if held > part:
                self.evicted += self._rows.erase(self._rows.ids[self._lowest(v, held, held - part + part // 8)])

    def sweep(self) -> None:
        """Give back the memory of rows that have expired, among the next few."""
        if self._ttl is None or self._touched is None or self._rows.used == 0:
            return
        begin = self._cursor if self._cursor < self._rows.used else 0
        end = min(begin + SWEEP_ROWS, self._rows.used)
        numbers = np.arange(begin, end, dtype=np.uint32)
        old = self._expired(numbers)
        if old is not None and old.any():
            self.evicted += self._rows.erase(self._rows.ids[numbers[old]])
        self._cursor = end

    def gone(self, numbers: Numbers) -> None:
        """These row numbers belong to nobody now."""
        if self._touched is not None:
            self._touched[numbers] = _NEVER
        if self._score is not None:
            self._score[numbers] = 0

    # ---- keeping ---------------------------------------------------------------------------------------------------

    def copied(self) -> dict[str, npt.NDArray[Any]]:
        """What a checkpoint keeps beside the columns: time, and the counts of ids without rows, by vshard."""
        found: dict[str, npt.NDArray[Any]] = {"now": np.array([self.now], np.int64)}
        if self.counts is not None:
            found |= {"admit.tags": self.counts.tags.copy(), "admit.counts": self.counts.counts.copy()}
        return found

    def take(self, now: int, held: range, tags: npt.NDArray[Any] | None, counts: npt.NDArray[Any] | None) -> None:
        """Go on from what `copied` said of the vshards `held`, as far as they are this band's."""
        self.now = max(self.now, now)
        mine = self._rows.held
        both = range(max(held.start, mine.start), min(held.stop, mine.stop))
        if self.counts is not None and tags is not None and counts is not None and both:
            here = slice(both.start - mine.start, both.stop - mine.start)
            there = slice(both.start - held.start, both.stop - held.start)
            self.counts.tags[here], self.counts.counts[here] = tags[there], counts[there]

    # ---- reading -----------------------------------------------------------------------------------------------------

    def hide(self, numbers: Numbers) -> None:
        """Make NONE of row numbers that have expired."""
        old = self._expired(numbers)
        if old is not None:
            numbers[old] = NONE

    def _expired(self, numbers: Numbers) -> Mask | None:
        """Which of these rows have expired; None if rows never do."""
        if self._ttl is None or self._touched is None:
            return None
        known = numbers != NONE
        touched = self._touched[np.where(known, numbers, 0)]
        found: Mask = known & (touched != _NEVER) & (touched.astype(np.int64) < self.now - self._ttl)
        return found

    # ---- deciding ----------------------------------------------------------------------------------------------------

    def _admits(self, ids: Ids, draw: int) -> Mask:
        if self.counts is not None:
            return self.counts.admits(ids)
        assert self._admit is not None
        assert not isinstance(self._admit, Count)
        seed, number = np.array([self._admit.seed, draw + 1], np.uint64)[:, None]  # arrays: scalars say when they wrap
        stream = id_kernels.mix64(seed + number * _GOLDEN)
        drawn = id_kernels.mix64((ids ^ self._seed) ^ stream) >> np.uint64(11)
        found: Mask = drawn < np.uint64(self._admit.p * float(1 << 53))
        return found

    def _scores(self, numbers: Numbers) -> npt.NDArray[np.float32]:
        """The scores of rows at present."""
        assert self._score is not None
        score = self._score[numbers]
        if not isinstance(self._capacity, Score) or self._touched is None:
            return score
        half_life = self._capacity.half_life
        age = np.maximum(self.now - self._touched[numbers].astype(np.int64), 0)
        line = 1.0 - (age % half_life) / (2.0 * half_life)
        halved = eviction_kernels.HALVES[np.minimum(age // half_life, eviction_kernels.HALVINGS_MAX)]
        faded: npt.NDArray[np.float32] = (score * line * halved).astype(np.float32)
        return faded

    def _lowest(self, v: int, held: int, count: int) -> Numbers:
        """The `count` of a vshard's `held` rows that are worth least."""
        numbers, chosen = np.empty(held, np.uint32), np.empty(count, np.uint32)
        bits = np.zeros(1, np.float32)
        half_life = self._capacity.half_life if isinstance(self._capacity, Score) else 1
        kind = eviction_kernels.BY_STEP
        if self._score is not None:
            fades = isinstance(self._capacity, Score)
            kind = eviction_kernels.BY_FADING_SCORE if fades else eviction_kernels.BY_SCORE
        eviction_kernels.lowest()(
            *self._rows.run_of(v), self._rows.ids, self._seed, kind,
            self._touched if self._touched is not None else numbers, self._score if self._score is not None else bits,
            self.now, half_life, eviction_kernels.HALVES, count, numbers, np.empty(held, np.uint32),
            (bits, bits.view(np.uint32)), chosen,
        )  # fmt: skip
        return chosen
