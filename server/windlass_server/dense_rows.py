"""Rows of dense tensors on this server: entries that name some rows of one segment, and what they are turned into.

A push of rows becomes a run of the whole segment with zeros elsewhere, so that it counts as the dense gradient would,
bit for bit: the rule runs on every row, whose momentum and decay go on. What is saved is the wire. Of a lazy tensor it
stays what it is (`as_rows`), and the rule runs on these rows (`lazy_rows`). A pull is answered with the rows alone.

Invariant: the numbers of rows are copied out of what the peer may still change, and checked, before anything is done
with them; a `NamedRows` that exists can be carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto import row_pieces
from windlass_proto.errors import ProtocolError
from windlass_proto.frames import Entry, EntryFlag, Op, aligned
from windlass_proto.layout import Block, GroupLayout
from windlass_proto.memory import Buffer
from windlass_proto.row_pieces import Numbers, RowPieces
from windlass_server.dense_memory import Values, Vector

_ROW_OPS = frozenset({Op.PUSH, Op.PUSH_PULL, Op.PULL})


@dataclass(frozen=True, slots=True, eq=False)
class NamedRows:
    """Some rows of one segment, ascending.

    elements: of their pieces. segment_elements: of the segment, its padding included.
    """

    pieces: RowPieces
    rows: Numbers
    elements: int
    segment_elements: int

    def read(self, run: Vector, out: Vector) -> None:
        """Out of the segment `run`."""
        self.pieces.gather(run, self.rows, out)


def rows_named(entry: Entry) -> int:
    """How many rows an entry about rows names: the lower half of `aux`."""
    return entry.aux & 0xFFFFFFFF


def read_said(entry: Entry) -> int:
    """The number of the read that an entry's gradient was made from; 0: it does not say."""
    return entry.aux >> 32 if entry.flags & EntryFlag.ROWS else entry.aux


def numbers_bytes_untrusted(entry: Entry, block: Block, layout: GroupLayout) -> int:
    """Bytes of the row numbers at the beginning of an entry's values.

    Raises:
        ProtocolError: the entry cannot be about rows.
    """
    if entry.op not in _ROW_OPS or entry.seg_end != entry.seg_begin + 1:
        raise ProtocolError("an entry asks for rows of what has none", op=entry.op, segments=entry.seg_end)
    held = row_pieces.of_segment(layout, block.segments[entry.seg_begin]).rows
    count = rows_named(entry)
    if count > len(held) or 8 * count > entry.nbytes:
        raise ProtocolError("an entry names more rows than there are", rows=count, rows_max=len(held))
    return 8 * count


def named_untrusted(raw: npt.NDArray[np.uint8], entry: Entry, block: Block, layout: GroupLayout) -> NamedRows:
    """The rows that an entry names in the first of its values.

    Raises:
        ProtocolError: they are not ascending rows of the segment, or its values have another length.
    """
    segment = block.segments[entry.seg_begin]
    pieces = row_pieces.of_segment(layout, segment)
    rows: Numbers = raw[: 8 * rows_named(entry)].view(np.uint64).copy()
    held = pieces.rows
    if rows.size and (rows[0] < held.start or rows[-1] >= held.stop or not (rows[1:] > rows[:-1]).all()):
        raise ProtocolError("an entry's rows do not ascend within its segment", begin=held.start, end=held.stop)
    elements = pieces.elements(rows)
    values = 0 if entry.op == Op.PULL else aligned(8 * rows.size) - 8 * rows.size + elements * layout.dtype.itemsize
    if entry.nbytes != 8 * rows.size + (values if rows.size else 0):
        raise ProtocolError("an entry's values have another length", got=entry.nbytes, rows=rows.size)
    return NamedRows(pieces, rows, elements, segment.end - segment.begin)


def as_rows(named: NamedRows, pieces: Vector, held: Buffer | None) -> Values:
    """The gradient of these rows where it is: in `held`, or (None) in a worker's shared memory or an array's own."""
    if held is not None and named.rows.size:
        held.hold()
    return Values(pieces, held if named.rows.size else None, named)


def as_dense(named: NamedRows, pieces: Vector, dtype: np.dtype[Any], run: Buffer) -> Values:
    """The gradient of the whole segment that rows of it stand for, in `run`; `pieces` are theirs, of `dtype`."""
    run.array[:] = 0
    whole = run.array.view(dtype)
    if named.rows.size:
        named.pieces.scatter(pieces, named.rows, whole)
    return Values(whole, run)


def pieces_of(named: NamedRows, raw: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> Vector:
    """The values of an entry's pieces, behind the numbers of its rows."""
    at = aligned(8 * named.rows.size)
    return raw[at : at + named.elements * dtype.itemsize].view(dtype)
