"""Frames: the bytes of the data plane.

    byte  0        4     5        6       8            12        16
          +--------+-----+--------+-------+------------+---------+----------------+
          | "WLF1" |kind |version | flags |entry count | store   | payload bytes  |
          +--------+-----+--------+-------+------------+---------+----------------+
    byte 24                32               40               48       52       60 64
          +----------------+----------------+----------------+--------+--------+---+
          | generation     | clock          | checksum       | number | zeros  |crc|
          +----------------+----------------+----------------+--------+--------+---+
          then `entry count` entries of 96 bytes, zeros up to a multiple of 64, then the payload, in which each
          entry's bytes start at a multiple of 64.

All integers are little-endian. `crc` is CRC-32 of the first 60 bytes. `checksum` is XXH3-64 of entry table and payload
where the link needs one (plain TCP), else 0. With FLAG_MARK the sender says that it has closed step `clock` of `store`.

Invariant: a header that parses has lengths within `limits`, checked before anything is allocated; an entry that parses
lies inside its payload. Functions that read a peer's bytes end in `_untrusted` and raise ProtocolError only.

Entries are read with `struct` into named tuples, not into a structured array: the server looks at each entry in Python
anyway, and one entry costs 0.9 us this way against 5 us for a one-row structured array (128 entries: 0.8 us each).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from windlass_proto import limits
from windlass_proto.errors import ProtocolError

HEADER: Final = struct.Struct("<4sBBHIIQQQQI8xI")
HEADER_BYTES: Final = 64
ENTRY: Final = struct.Struct("<BBHIIIQQIIQQIIQdIIQ")
ENTRY_BYTES: Final = 96
MAGIC: Final = b"WLF1"
VERSION: Final = 1

assert HEADER.size == HEADER_BYTES
assert ENTRY.size == ENTRY_BYTES


class Kind(IntEnum):
    """What a frame is for."""

    REQUEST = 1
    ANSWER = 2
    ARENA = 3  # a shared-memory segment; its descriptor travels beside it
    GOODBYE = 4  # the sender goes in order, nothing follows


class Flag(IntEnum):
    """Bits of a frame's flags. (IntFlag's operators are Python functions: 2 us each on the hot path.)"""

    MARK = 1
    LEAVE = 2  # with MARK: and no further step of this store will come from me


class Op(IntEnum):
    """What an entry asks for."""

    PUSH = 1
    PULL = 2
    PUSH_PULL = 3
    INIT = 4
    ASSIGN = 5
    DECLARE = 6
    DROP = 7
    SET_RULE = 8
    STATS = 9  # of a sparse table: how many rows it holds
    CHECKPOINT = 10  # the payload is an order (checkpoint_orders)
    ERASE = 11  # rows of a sparse table
    SCAN = 12  # rows of a sparse table by their numbers
    REDUCE = 13  # from a server: a block's partial norm, or without values, how far steps have gone by without one
    READ = 14  # the payload asks a reader of an installed package (own_readers)


class Status(IntEnum):
    """How an entry was answered."""

    OK = 0
    DUPLICATE = 1
    GAP = 2
    FENCED = 3
    RETRY = 4
    REJECTED = 5  # non-finite values: consumed, not applied
    LATE = 6  # its step was complete without it: consumed, not applied
    ERROR = 7  # the payload holds an error record
    UNKNOWN = 8  # the table is not declared here
    UNKNOWN_STAMP = 9  # the version it is stamped with is not known here: its record first, then it again


class EntryFlag(IntEnum):
    """Bits of an entry's flags."""

    LAST = 1  # the session's last piece for these segments in this step
    NOWAIT = 2  # a pull that reads what is there
    FIRST = 4  # an answer's values follow in pieces
    ROWS = 8  # of a dense tensor: about some rows of one segment (`row_pieces`)


class Header(NamedTuple):
    """The fields of a frame's header, in wire order."""

    kind: int
    flags: int
    entry_count: int
    store: int
    payload_bytes: int
    generation: int
    clock: int
    checksum: int
    number: int


class Entry(NamedTuple):
    """One entry, in wire order. Offsets and lengths are bytes; segments count within the block.

    offset, nbytes: where the values lie in the payload (arena 0) or in shared-memory segment `arena`.
    out_arena, out_offset: where in shared memory the answer's values go (out_arena 0: into the answer's payload).
    Of a sparse table: block is the first vshard of the band, seg_begin 0, seg_end the number of ids; the values are the
    ids (u64), zeros up to a multiple of 64, and for a push their rows, encoded where the table has a codec. A scan's
    segments are row numbers.
    status: of an answer; in a request the priority of its answer (`priority_byte`).
    weight: of a gradient in its step's mean (bsp). Where pushes are applied on arrival and the rule bounds norms, what
    this one is multiplied with, 0 to 1; NaN: its worker's gradient has no norm.
    stamp: with which version of the store's hyper-parameters a gradient is to be applied; 0: as declared. Of an answer:
    how many values of the gradient were not finite and are what the policy (`transfer_specs.Nonfinite`) made of them.
    aux: the expected seq of a gap; the version of an answer. With ROWS the number of rows: the values begin with them
    (u64), and for a push zeros up to a multiple of 64 and their pieces follow; those of an answer are the pieces.
    Of a pull or push_pull where weights come down as deltas: the state that was read last (`weight_deltas`).

    REDUCE: seg_end is the scope (a tensor's number, or the number of tensors for the group), stamp the phase; the
    values are sums of squares, float64, and so are those of the answer, whose aux says how many.

    SET_RULE holds a rule record, ahead of what is stamped with it: `table` is its store, `clock` the sender's first
    step with that stamp. It is not answered.
    """

    op: int
    status: int
    flags: int
    table: int
    block: int
    tag: int
    seq: int
    clock: int
    seg_begin: int
    seg_end: int
    offset: int
    nbytes: int
    arena: int
    out_arena: int
    out_offset: int
    weight: float
    stamp: int
    vshard: int
    aux: int


def aligned(nbytes: int) -> int:
    """`nbytes` rounded up to a multiple of 64."""
    return (nbytes + 63) & ~63


def table_bytes(entry_count: int) -> int:
    """Bytes of an entry table on the wire, padding included."""
    return (entry_count * ENTRY_BYTES + 63) & ~63


def priority_byte(priority: int) -> int:
    """`priority`, as far as a byte holds it (-128 to 127), in two's complement."""
    return max(-128, min(127, priority)) & 0xFF


def priority_of(request: Entry) -> int:
    """Answers of a higher one overtake those that wait to be sent."""
    return request.status - 256 if request.status > 127 else request.status


def pack_header(header: Header, checksum: int | None = None, number: int | None = None) -> bytes:
    """The 64 bytes of `header`, its crc included; `checksum` and `number` stand for the header's own where given."""
    raw = HEADER.pack(
        MAGIC,
        header.kind,
        VERSION,
        header.flags,
        header.entry_count,
        header.store,
        header.payload_bytes,
        header.generation,
        header.clock,
        header.checksum if checksum is None else checksum,
        header.number if number is None else number,
        0,
    )
    return raw[:60] + zlib.crc32(raw[:60]).to_bytes(4, "little")


def pack_entries(entries: Iterable[Entry]) -> bytes:
    """The entry table of `entries`, padded to a multiple of 64 bytes."""
    pack = ENTRY.pack
    raw = b"".join([pack(*entry) for entry in entries])
    return raw + bytes(-len(raw) % 64)


def parse_header_untrusted(raw: bytes | bytearray | memoryview) -> Header:
    """Read a header from the first 64 bytes of `raw`.

    Raises:
        ProtocolError: if magic, version, crc or a length is wrong.
    """
    if len(raw) < HEADER_BYTES:
        raise ProtocolError("a frame header is cut short", bytes=len(raw), expected=HEADER_BYTES)
    magic, kind, version, flags, count, store, payload, generation, clock, checksum, number, crc = HEADER.unpack_from(
        raw
    )
    if magic != MAGIC:
        raise ProtocolError("a frame does not begin with its magic", got=magic.hex(), expected=MAGIC.hex())
    if zlib.crc32(memoryview(raw)[:60]) != crc:
        raise ProtocolError("a frame header's crc does not match", got=crc)
    if version != VERSION:
        raise ProtocolError("a frame has another version", got=version, expected=VERSION)
    if not Kind.REQUEST <= kind <= Kind.GOODBYE:
        raise ProtocolError("a frame has an unknown kind", got=kind)
    if count > limits.FRAME_ENTRIES_MAX:
        raise ProtocolError("a frame has too many entries", got=count, entries_max=limits.FRAME_ENTRIES_MAX)
    if payload > limits.FRAME_PAYLOAD_BYTES_MAX:
        raise ProtocolError("a frame is too long", bytes=payload, bytes_max=limits.FRAME_PAYLOAD_BYTES_MAX)
    return Header(kind, flags, count, store, payload, generation, clock, checksum, number)


def parse_entries_untrusted(raw: bytes | bytearray | memoryview, header: Header) -> list[Entry]:
    """Read `header.entry_count` entries; those with in-frame values lie inside the payload.

    Raises:
        ProtocolError: if an entry reaches beyond the payload or starts off a 64-byte line.
    """
    table = memoryview(raw)[: header.entry_count * ENTRY_BYTES]
    if len(table) != header.entry_count * ENTRY_BYTES:
        raise ProtocolError("an entry table is cut short", bytes=len(table), entries=header.entry_count)
    entries = [Entry._make(fields) for fields in ENTRY.iter_unpack(table)]
    payload_bytes = header.payload_bytes
    for entry in entries:
        if entry.arena == 0 and (entry.offset + entry.nbytes > payload_bytes or entry.offset & 63):
            raise ProtocolError(
                "an entry does not lie inside its frame",
                offset=entry.offset,
                nbytes=entry.nbytes,
                payload_bytes=payload_bytes,
            )
        if entry.seg_begin > entry.seg_end:
            raise ProtocolError("an entry's segments are reversed", begin=entry.seg_begin, end=entry.seg_end)
    return entries
