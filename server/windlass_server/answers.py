"""Replies as they travel: an entry each, and error records.

Invariant: every entry's values begin on a 64-byte line of the payload, whatever the length of those before.
"""

from __future__ import annotations

from typing import NamedTuple

from windlass_proto import errors, limits
from windlass_proto.errors import UsageError, WindlassError
from windlass_proto.frames import Entry, Status
from windlass_proto.memory import Buffer
from windlass_server.replies import Reply

_COUNT_MAX = 0xFFFFFFFF
_ZEROS = memoryview(bytes(limits.ALIGN_BYTES))


def error_record(error: Exception) -> tuple[memoryview, int]:
    """An error's bytes, padded to 64, and their length."""
    known = error if isinstance(error, WindlassError) else UsageError(str(error))
    record = errors.to_wire(known)
    return memoryview(record + bytes(-len(record) % 64)), len(record)


def answer_entry(reply: Reply, offset: int, nbytes: int) -> Entry:
    """A reply's entry, whose values lie at `offset` of the payload."""
    _, tag, table, op, *_, replaced = reply.origin
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
        min(replaced, _COUNT_MAX),
        0,
        reply.aux,
    )


class AnswerBatch(NamedTuple):
    """The parts of an answer frame; `values_bytes` counts those in shared memory as well."""

    entries: list[Entry]
    payload: list[memoryview]
    payload_bytes: int
    values_bytes: int
    snapshots: list[Buffer]


def lay_out(replies: list[Reply]) -> AnswerBatch:
    """Replies one after the other, their values on multiples of 64."""
    entries: list[Entry] = []
    payload: list[memoryview] = []
    snapshots: list[Buffer] = []
    at = sent = 0
    for reply in replies:
        size, view = 0, None
        if reply.snapshot is not None:
            snapshots.append(reply.snapshot)
            view = reply.snapshot.array.data
            size = view.nbytes
            sent += size
        elif reply.origin.out is not None and reply.status == Status.OK:
            sent += reply.origin.out.nbytes  # they lie in the worker's memory already
        elif reply.error is not None:
            view, size = error_record(reply.error)
        entries.append(answer_entry(reply, at, size))
        if view is not None:
            payload.append(view)
            at += view.nbytes
            if at & 63:
                payload.append(_ZEROS[: -at & 63])
                at += -at & 63
    return AnswerBatch(entries, payload, at, sent, snapshots)
