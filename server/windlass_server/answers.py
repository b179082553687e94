"""Replies as they travel: an entry each, and error records.

Invariant: an error's bytes are padded to whole 64-byte lines, as all values of a payload are.
"""

from __future__ import annotations

from windlass_proto import errors
from windlass_proto.errors import UsageError, WindlassError
from windlass_proto.frames import Entry
from windlass_server.dense import Reply


def error_record(error: Exception) -> tuple[memoryview, int]:
    """An error's bytes, padded to 64, and their length."""
    known = error if isinstance(error, WindlassError) else UsageError(str(error))
    record = errors.to_wire(known)
    return memoryview(record + bytes(-len(record) % 64)), len(record)


def answer_entry(reply: Reply, offset: int, nbytes: int) -> Entry:
    """A reply's entry, whose values lie at `offset` of the payload."""
    _, tag, table, op, _, _ = reply.origin
    seg_begin, seg_end = reply.seg_begin, reply.seg_end
    # By position, in wire order: nineteen names would take twice the time, once for each answer.
    return Entry(
        op,
        reply.status,
        0,
        table,
        reply.block,
        tag,
        0,
        0,
        seg_begin,
        seg_end,
        offset,
        nbytes,
        0,
        0,
        0,
        0.0,
        0,
        0,
        reply.aux,
    )
