"""Bands of sparse tables read from a checkpoint into memory beside what is served.

Bands are cut where servers' key ranges end, so those of a checkpoint and those here may differ. A row belongs to the
band that its id's key falls into; each stretch of rows of every band that has keys in common with one here is read, and
the rows that belong are kept.

Invariant: a band is staged whole or not at all. A band's count of updates is the highest of those it is made of.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from windlass_proto import checkpoint_format, limits, table_specs
from windlass_proto.checkpoint_format import Part
from windlass_proto.errors import CorruptionError, UsageError
from windlass_proto.ids import Ids
from windlass_proto.table_specs import TableSpec
from windlass_server.dense import Share
from windlass_server.part_files import PartFiles
from windlass_server.row_life import RowLife
from windlass_server.row_table import RowTable
from windlass_server.sparse import SparseTable


@dataclass(frozen=True, slots=True, eq=False)
class StagedBand:
    """What one band will hold."""

    group: SparseTable
    share: Share
    rows: RowTable
    updates: int

    def serve(self, steps_before: int) -> None:
        """Serve it from now on. The caller holds the share's lock."""
        self.group.steps_before = steps_before
        self.group.adopt(self.share, self.rows, self.updates)


def read_bands_untrusted(parts: PartFiles, table: SparseTable) -> list[StagedBand]:
    """Read what the bands of `table` on this server need.

    Raises:
        CorruptionError: a part is missing, torn or altered.
        UsageError: the checkpoint holds another table, other slots, or more rows than there is room for.
    """
    number, was = _declared(parts, table.spec)
    staged = []
    for share in table.shares.values():
        rows, updates = table.empty_rows(share.vshard), 0
        for part in parts.manifest.parts:
            for held, begin, end in part.bands:
                if held == number and _meet(range(begin, end), was.vshards, rows.held, table.spec.vshards):
                    updates = max(updates, _read_band(parts, part, number, begin, rows))
                    if rows.life is not None:
                        same = was.vshards == table.spec.vshards  # else its counts are of other vshards
                        _read_life(parts, part, (number, range(begin, end) if same else range(0)), begin, rows.life)
        staged.append(StagedBand(table, share, rows, updates))
    return staged


def _declared(parts: PartFiles, spec: TableSpec) -> tuple[int, TableSpec]:
    """Number and declaration of a table in the manifest, compared with what is declared here."""
    for number, was in enumerate(parts.manifest.tables):
        if was.name != spec.name:
            continue
        here, there = [(s.dim, s.dtype_name, s.init) for s in (spec, was)]
        if here == there:
            return number, was
        raise UsageError(
            "a checkpoint holds a table of another kind",
            table=spec.name,
            declared=table_specs.kind_in_words(spec),
            checkpoint=table_specs.kind_in_words(was),
            next_move="Declare it as it was, or start without this checkpoint.",
        )
    raise UsageError(
        "a checkpoint lacks a declared table",
        folder=parts.folder,
        table=spec.name,
        holds=", ".join(was.name for was in parts.manifest.tables[:5]) or "no tables",
    )


def _meet(one: range, of: int, other: range, of_other: int) -> bool:
    """Do two runs of vshards, of `of` and `of_other` in all, have keys in common?"""
    return one.start * of_other < other.stop * of and other.start * of < one.stop * of_other


def _read_band(parts: PartFiles, part: Part, number: int, vshard: int, rows: RowTable) -> int:
    """Add the rows of one band of the checkpoint that belong to `rows`; returns its count of updates."""
    places = parts.places_untrusted(part)
    columns = rows.columns()
    replaces = _erase(parts, part, checkpoint_format.band_key(number, vshard, "erased"), rows)
    for at in itertools.count():
        prefix = checkpoint_format.stretch_key(number, vshard, at, "")
        found = {key.removeprefix(prefix) for key in places if key.startswith(prefix)} if at == 0 else columns.keys()
        key = checkpoint_format.stretch_key(number, vshard, at, "ids")
        if key not in places:
            break
        if found - {"touched", "score"} != columns.keys() - {"touched", "score"}:
            raise UsageError(
                "a checkpoint was made with another update rule",
                table=rows.name,
                declared=", ".join(columns),
                checkpoint=", ".join(sorted(found)),
                next_move="Declare the table with the rule that trained it.",
            )
        _read_stretch(parts, part, (number, vshard, at), rows, replaces=replaces)
    key = checkpoint_format.band_key(number, vshard, "updates")
    updates = int(parts.read_untrusted(part, key, np.dtype(np.int64), (1,))[0])
    if updates < 0:
        raise CorruptionError("a part counts updates below 0", file=part.path(parts.folder), updates=updates)
    return updates


def _read_life(parts: PartFiles, part: Part, band: tuple[int, range], vshard: int, life: RowLife) -> None:
    """Time and counts, as far as the checkpoint has them: its table may have been declared without."""
    number, held = band
    places = parts.places_untrusted(part)
    keys = [checkpoint_format.band_key(number, vshard, what) for what in ("now", "admit.tags", "admit.counts")]
    if keys[0] not in places:
        return
    now = int(parts.read_untrusted(part, keys[0], np.dtype(np.int64), (1,))[0])
    if keys[1] not in places or not held:
        life.take(now, held, None, None)
        return
    shape = (len(held), limits.ADMISSION_COUNTERS)
    tags = parts.read_untrusted(part, keys[1], np.dtype(np.uint32), shape)
    life.take(now, held, tags, parts.read_untrusted(part, keys[2], np.dtype(np.uint16), shape))


def _erase(parts: PartFiles, part: Part, key: str, rows: RowTable) -> bool:
    """Take out what went since the part before; is this one to be read beside those before it?"""
    place = parts.places_untrusted(part).get(key)
    if place is None:
        return False
    ids: Ids = parts.read_untrusted(part, key, np.dtype(np.uint64), place.shape)
    if ids.ndim != 1 or part.whole:
        raise CorruptionError("a part holds changes that it should not", file=part.path(parts.folder), table=rows.name)
    rows.erase(np.unique(ids[rows.belonging(ids)]))
    return True


def _read_stretch(
    parts: PartFiles, part: Part, stretch: tuple[int, int, int], rows: RowTable, *, replaces: bool
) -> None:
    place = parts.places_untrusted(part)[checkpoint_format.stretch_key(*stretch, "ids")]
    count = place.shape[0] if len(place.shape) == 1 else -1
    ids: Ids = parts.read_untrusted(part, checkpoint_format.stretch_key(*stretch, "ids"), np.dtype(np.uint64), (count,))
    mine = np.flatnonzero(rows.belonging(ids))
    chosen = ids if mine.size == ids.size else ids[mine]
    numbers = np.empty(chosen.size, np.uint32)
    absent = rows.find(chosen, numbers)
    if absent != chosen.size and not replaces:
        raise CorruptionError("a part holds an id twice", file=part.path(parts.folder), table=rows.name)
    refused = rows.insert(chosen, numbers, absent)
    if refused is not None:
        raise refused
    if rows.life is not None:
        rows.life.touch(numbers)  # what a checkpoint without these policies does not say
    for name, (values, width) in rows.columns().items():
        key = checkpoint_format.stretch_key(*stretch, name)
        if name != "ids" and (name not in ("touched", "score") or key in parts.places_untrusted(part)):
            read = parts.read_untrusted(part, key, values.dtype, (count, width))
            values.reshape(-1, width)[numbers] = read if mine.size == ids.size else read[mine]
