"""Rows of dense tensors as a worker uses them: some rows along the first axis, to and from the servers.

    ids of the call      7 3 7             grads   a b c
    on the wire          3 7               b, a + c         ascending, each once, cut where blocks end

Invariant: a push has an entry for every segment of its tensor, with or without rows: it counts as the dense gradient
that is 0 elsewhere, in every sum, mean and update. What a ticket sends or receives is the ticket's alone until it is
settled. The rows of neighbouring segments follow each other, so a row that is cut is put together by itself.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from windlass import row_values
from windlass.arrays import Array
from windlass.data_link import InArena, InFrame
from windlass.dense_table import DenseTable, Span
from windlass.exchange import Exchange
from windlass.plan import NOT_MEASURED, Plan, Squares
from windlass.rooms import Room
from windlass.row_values import Ids, Policy, Target
from windlass_proto import limits, row_moves, row_pieces
from windlass_proto.errors import UsageError
from windlass_proto.frames import Op, aligned


class _Part(NamedTuple):
    """One entry to be: rows [first, end) of the call's different ones, whose pieces are elements [low, high) of all."""

    block: int
    segment: int
    first: int
    end: int
    low: int
    high: int


class _Call(NamedTuple):
    """The rows of one call: each once, ascending; the call's positions in that order, and the place of each's row."""

    table: DenseTable
    width: int
    rows: Ids
    order: npt.NDArray[np.uint32]
    places: npt.NDArray[np.uint32]
    parts: list[_Part]

    @property
    def itemsize(self) -> int:
        return self.table.layout.dtype.itemsize

    @property
    def moved(self) -> tuple[Any, ...]:
        """What `row_moves` takes of rows that lie one after the other."""
        return self.order, self.places, np.array([self.rows.size], np.int64), np.zeros(1, np.int64), self.width


def push_plan(exchange: Exchange, op: Op, name: str, ids: Any, grads: Any, out: Any) -> Plan:
    """Send gradients of rows; with PUSH_PULL the rows come back, into `out` where it is given."""
    table, number, wanted, shape = _asked(exchange, name, ids)
    full = (*shape, *table.layout.tensors[number].shape[1:])
    policy = Policy(exchange.transfers[table.table_id].nonfinite, exchange.replaced, exchange.member.joined.rank)
    values = row_values.gradients_of(name, grads, wanted, full, table.layout.dtype_name, policy)
    call = _call(table, number, wanted)
    for part in call.parts:
        _check_frame(name, _sent_bytes(call, part), part.end - part.first)
    target = row_values.target(name, full, table.layout.dtype_name, out, grads)
    parts, rooms = call.parts, exchange.rooms
    room, begins = rooms.lay_out([_sent_bytes(call, part) for part in parts])
    whole, total = _summed(exchange, call, values)
    for part, at in zip(parts, begins, strict=True):
        _write(room.array, at, call, part)
        if part.high > part.low:
            sums = at + aligned(8 * (part.end - part.first))
            nbytes = (part.high - part.low) * call.itemsize
            room.array[sums : sums + nbytes] = total[part.low * call.itemsize : part.high * call.itemsize]
    squares = _squares(exchange, call, total)
    rooms.give(whole)
    sent = [room.values(at, _sent_bytes(call, part)) for part, at in zip(parts, begins, strict=True)]
    if op is Op.PUSH:
        return _plan(call, sent, [None] * len(parts), (lambda: rooms.give(room),), None, lasts=0, squares=squares)
    outs, finish = _received(exchange, call, target)
    return _plan(call, sent, outs, (lambda: rooms.give(room),), finish, lasts=1, squares=squares)


def pull_plan(exchange: Exchange, name: str, ids: Any, out: Any) -> Plan:
    """Ask for rows, into `out` where it is given."""
    table, number, wanted, shape = _asked(exchange, name, ids)
    full = (*shape, *table.layout.tensors[number].shape[1:])
    target = row_values.target(name, full, table.layout.dtype_name, out, ids, exchange.bfloat16_family)
    call = _call(table, number, wanted)
    call = call._replace(parts=[part for part in call.parts if part.high > part.low])
    for part in call.parts:
        _check_frame(name, aligned(8 * (part.end - part.first)), part.end - part.first)
    rooms = exchange.rooms
    room, begins = rooms.lay_out([8 * (part.end - part.first) for part in call.parts])
    for part, at in zip(call.parts, begins, strict=True):
        _write(room.array, at, call, part)
    sent = [room.values(at, 8 * (part.end - part.first)) for part, at in zip(call.parts, begins, strict=True)]
    outs, finish = _received(exchange, call, target)
    return _plan(call, sent, outs, (lambda: rooms.give(room),), finish, lasts=0)


def _asked(exchange: Exchange, name: str, ids: Any) -> tuple[DenseTable, int, Ids, tuple[int, ...]]:
    """Where a tensor is declared, and the rows of it that are meant.

    Raises:
        UsageError: it has no rows, or not all of these.
    """
    table_id, number = exchange.place(name)
    table = exchange.tables[table_id]
    tensor = table.layout.tensors[number]
    wanted, shape = row_values.ids_of(name, ids)
    if not tensor.shape:
        raise UsageError("a tensor without axes has no rows", name=name, next_move="Push and pull it whole.")
    if wanted.size and int(wanted.max()) >= tensor.shape[0]:
        raise UsageError(
            "a row is beyond its tensor",
            name=name,
            row=int(wanted.max()),
            rows=tensor.shape[0],
            next_move="Rows are counted from 0 along the first axis.",
        )
    return table, number, wanted, shape


def _call(table: DenseTable, number: int, wanted: Ids) -> _Call:
    """Each row once, and what of them lies in each segment."""
    order = np.argsort(wanted, kind="stable")
    ascending = wanted[order]
    fresh = np.ones(wanted.size, np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=fresh[1:])
    places = (np.cumsum(fresh) - 1).astype(np.uint32)
    rows = ascending[fresh]
    layout, parts = table.layout, []
    width = math.prod(layout.tensors[number].shape[1:])
    for block, segment in layout.segments_of[number]:
        pieces = row_pieces.of_segment(layout, layout.blocks[block].segments[segment])
        first, end = np.searchsorted(rows, [pieces.rows.start, pieces.rows.stop])
        low = high = int(first) * width
        if end > first:
            begin, stop = pieces.span(int(rows[first]), int(rows[end - 1]), int(end - first))
            low, high = low + begin, low + stop
        parts.append(_Part(block, segment, int(first), int(end), low, high))
    return _Call(table, width, rows, order.astype(np.uint32), places, parts)


def _check_frame(name: str, nbytes: int, rows: int) -> None:
    """Can so much be one entry? Of tensors that are cut it always can."""
    if nbytes > limits.WHOLE_TENSOR_BYTES_MAX:
        raise UsageError(
            "rows of a tensor are more than one frame holds",
            name=name,
            rows=rows,
            bytes=nbytes,
            bytes_max=limits.WHOLE_TENSOR_BYTES_MAX,
            next_move="Push or pull it whole, or fewer rows at a time.",
        )


def _sent_bytes(call: _Call, part: _Part) -> int:
    count = part.end - part.first
    return aligned(8 * count) + (part.high - part.low) * call.itemsize if count else 0


def _write(array: npt.NDArray[np.uint8], at: int, call: _Call, part: _Part) -> None:
    """The row numbers of an entry, and zeros up to where its pieces begin."""
    count = part.end - part.first
    array[at : at + aligned(8 * count)] = 0
    array[at : at + 8 * count].view(np.uint64)[:] = call.rows[part.first : part.end]


def _summed(exchange: Exchange, call: _Call, values: Array) -> tuple[Room, npt.NDArray[np.uint8]]:
    """The sums of each row's gradients, one row after the other; in a room that is to be given back.

    Of half tensors as well: `values` are float32 then, and the sums are rounded once.
    """
    elements, held = call.rows.size * call.width, call.table.layout.held
    room = exchange.rooms.take(elements * held.itemsize)
    sums: Array = room.array.view(held)
    row_moves.moves(held).gather_sums(values, *call.moved, sums)
    if call.itemsize == held.itemsize:
        return room, room.array[: elements * held.itemsize]
    from windlass_proto.codecs import halves

    rounded = exchange.rooms.take(elements * call.itemsize)
    halves.build(call.table.layout.dtype_name).to_half(
        sums[:elements], rounded.array[: elements * call.itemsize].view(np.uint16)
    )
    exchange.rooms.give(room)
    return rounded, rounded.array[: elements * call.itemsize]


def _squares(exchange: Exchange, call: _Call, total: npt.NDArray[np.uint8]) -> Squares:
    """Where this worker's norms clip, the sum of squares of the gradient that these rows stand for."""
    layout = call.table.layout
    clipping = exchange.clippings.get(layout.table_id)
    if clipping is None:
        return NOT_MEASURED
    found, values = {}, total.view(layout.dtype)
    for part in call.parts:
        if part.high > part.low:
            segment = layout.blocks[part.block].segments[part.segment]
            room = exchange.rooms.take((segment.end - segment.begin) * call.itemsize)
            dense = room.array[: segment.elements * call.itemsize].view(layout.dtype)
            dense[:] = 0
            pieces = row_pieces.of_segment(layout, segment)
            pieces.scatter(values[part.low : part.high], call.rows[part.first : part.end], dense)
            found[layout.table_id, part.block, part.segment] = clipping.segment_sum(dense)
            exchange.rooms.give(room)
        else:
            found[layout.table_id, part.block, part.segment] = 0.0
    return found


def _received(exchange: Exchange, call: _Call, target: Target) -> tuple[list[InFrame | InArena | None], Any]:
    """Where the pieces of each entry arrive, and what makes the caller's array of them."""
    rooms, dtype, itemsize = exchange.rooms, call.table.layout.dtype, call.itemsize
    sizes = [(part.high - part.low) * itemsize for part in call.parts]
    room, begins = rooms.lay_out(sizes)

    def finish() -> Any:
        whole = rooms.take(call.rows.size * call.width * itemsize)
        for part, at, nbytes in zip(call.parts, begins, sizes, strict=True):
            whole.array[part.low * itemsize : part.high * itemsize] = room.array[at : at + nbytes]
        rows = whole.array[: call.rows.size * call.width * itemsize].view(dtype)
        if dtype == call.table.layout.held:
            row_moves.moves(dtype).scatter_rows(rows, *call.moved, target.flat)
        else:
            inverse = np.empty(call.order.size, np.uint32)
            inverse[call.order] = call.places
            asked = target.flat.reshape(inverse.size, call.width)
            np.take(rows.reshape(call.rows.size, call.width), inverse, axis=0, out=asked, mode="clip")
        rooms.give(whole)
        rooms.give(room)
        return target.finish()

    return [room.values(at, nbytes) for at, nbytes in zip(begins, sizes, strict=True)], finish


def _plan(
    call: _Call,
    sent: list[Any],
    outs: list[Any],
    settle: tuple[Any, ...],
    finish: Any,
    *,
    lasts: int,
    squares: Squares = NOT_MEASURED,
) -> Plan:
    blocks, table_id = call.table.layout.blocks, call.table.table_id
    spans = [
        Span((table_id, blocks[p.block].vshard), p.block, p.segment, p.segment + 1, payload, out, p.end - p.first)
        for p, payload, out in zip(call.parts, sent, outs, strict=True)
    ]
    return Plan([spans], settle, finish, len(spans), lasts, squares)
