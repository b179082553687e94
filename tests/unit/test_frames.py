"""Frames: exact bytes, round trips, and parsers that a hostile peer can only make refuse."""

from __future__ import annotations

import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_proto import frames, limits
from windlass_proto.errors import ProtocolError
from windlass_proto.frames import Entry, Flag, Header, Kind, Op

U8, U16, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 16, 32, 64))

HEADERS = st.builds(
    Header,
    kind=st.sampled_from(Kind),
    flags=U16,
    entry_count=st.integers(0, limits.FRAME_ENTRIES_MAX),
    store=U32,
    payload_bytes=st.integers(0, limits.FRAME_PAYLOAD_BYTES_MAX),
    generation=U64,
    clock=U64,
    checksum=U64,
    number=U32,
)
ENTRIES = st.builds(
    Entry,
    op=U8,
    status=U8,
    flags=U16,
    table=U32,
    block=U32,
    tag=U32,
    seq=U64,
    clock=U64,
    seg_begin=st.integers(0, 1000),
    seg_end=st.integers(1000, 2**32 - 1),
    offset=st.integers(0, 100).map(lambda line: line * 64),
    nbytes=st.integers(0, 1000),
    arena=U32,
    out_arena=U32,
    out_offset=U64,
    weight=st.floats(),
    stamp=U32,
    vshard=U32,
    aux=U64,
)


def crafted(*, magic: bytes = b"WLF1", kind: int = 1, version: int = 1, count: int = 0, payload: int = 0) -> bytes:
    """A header with a right crc and any other fields."""
    raw = struct.pack("<4sBBHIIQQQQI8x", magic, kind, version, 0, count, 0, payload, 0, 0, 0, 0)
    return raw + struct.pack("<I", zlib.crc32(raw))


def request_of(payload_bytes: int, entry_count: int = 1) -> Header:
    return Header(Kind.REQUEST, 0, entry_count, 0, payload_bytes, 0, 0, 0, 0)


def entry_at(offset: int, nbytes: int, *, arena: int = 0, seg_begin: int = 0, seg_end: int = 1) -> Entry:
    return Entry(Op.PUSH, 0, 0, 1, 0, 1, 1, 0, seg_begin, seg_end, offset, nbytes, arena, 0, 0, 1.0, 0, 0, 0)


def test_a_header_has_the_bytes_of_the_drawing() -> None:
    header = Header(Kind.REQUEST, Flag.MARK | Flag.LEAVE, 2, 3, 4, 5, 6, 7, 8)
    raw = frames.pack_header(header)
    drawn = "574c4631 01 01 0300 02000000 03000000 0400000000000000 0500000000000000 0600000000000000 0700000000000000"
    drawn += " 08000000 0000000000000000 758c41a7"
    assert raw.hex() == drawn.replace(" ", "")


def test_an_entry_has_the_bytes_it_always_had() -> None:
    raw = frames.pack_entries([Entry._make([*range(1, 16), 1.5, 17, 18, 19])])
    drawn = "01 02 0300 04000000 05000000 06000000 0700000000000000 0800000000000000 09000000 0a000000"
    drawn += " 0b00000000000000 0c00000000000000 0d000000 0e000000 0f00000000000000 000000000000f83f 11000000 12000000"
    drawn += " 1300000000000000"
    assert raw.hex() == drawn.replace(" ", "") + "00" * 32
    assert len(raw) == 128 == frames.table_bytes(1)


@given(HEADERS)
def test_headers_come_back_as_they_went(header: Header) -> None:
    raw = frames.pack_header(header)
    assert len(raw) == frames.HEADER_BYTES
    assert frames.parse_header_untrusted(raw) == header


@given(st.lists(ENTRIES, max_size=20))
def test_entries_come_back_as_they_went(entries: list[Entry]) -> None:
    raw = frames.pack_entries(entries)
    assert len(raw) == frames.table_bytes(len(entries))
    parsed = frames.parse_entries_untrusted(raw, request_of(1 << 14, len(entries)))
    assert [repr(entry) for entry in parsed] == [repr(entry) for entry in entries]  # a NaN is not equal to itself


def test_headers_at_their_limits_are_read() -> None:
    raw = crafted(count=limits.FRAME_ENTRIES_MAX, payload=limits.FRAME_PAYLOAD_BYTES_MAX)
    assert frames.parse_header_untrusted(raw).entry_count == limits.FRAME_ENTRIES_MAX


@pytest.mark.parametrize(
    ("raw", "fact"),
    [
        (crafted(magic=b"HTTP"), "magic"),
        (crafted(version=2), "another version"),
        (crafted(kind=0), "unknown kind"),
        (crafted(kind=5), "unknown kind"),
        (crafted(count=limits.FRAME_ENTRIES_MAX + 1), "too many entries"),
        (crafted(count=2**32 - 1), "too many entries"),
        (crafted(payload=limits.FRAME_PAYLOAD_BYTES_MAX + 1), "too long"),
        (crafted(payload=2**63), "too long"),
        (crafted()[:60] + bytes(4), "crc"),
        (crafted()[:63], "cut short"),
        (b"", "cut short"),
    ],
)
def test_a_header_that_lies_is_refused(raw: bytes, fact: str) -> None:
    with pytest.raises(ProtocolError, match=fact):
        frames.parse_header_untrusted(raw)


@pytest.mark.parametrize(
    "entry",
    [
        entry_at(64, 65),
        entry_at(128, 1),
        entry_at(0, 129),
        entry_at(2**64 - 64, 128),
        entry_at(0, 2**64 - 1),
        entry_at(32, 8),
        entry_at(0, 8, seg_begin=2, seg_end=1),
    ],
)
def test_an_entry_outside_its_frame_is_refused(entry: Entry) -> None:
    with pytest.raises(ProtocolError):
        frames.parse_entries_untrusted(frames.pack_entries([entry]), request_of(128))


def test_an_entry_in_shared_memory_is_not_measured_by_the_frame() -> None:
    entry = entry_at(2**40, 2**30, arena=1)
    assert frames.parse_entries_untrusted(frames.pack_entries([entry]), request_of(0)) == [entry]


def test_a_table_that_is_cut_short_is_refused() -> None:
    raw = frames.pack_entries([entry_at(0, 8)] * 3)
    for size in range(3 * frames.ENTRY_BYTES):
        with pytest.raises(ProtocolError, match="cut short"):
            frames.parse_entries_untrusted(raw[:size], request_of(64, 3))


@settings(max_examples=1000)
@given(raw=st.binary(max_size=200), fix=st.booleans())
def test_header_fuzz_raises_protocol_errors_only(raw: bytes, fix: bool) -> None:
    if fix and len(raw) >= 60:  # past magic and crc, so that the fields behind them are reached
        raw = b"WLF1" + raw[4:60]
        raw += struct.pack("<I", zlib.crc32(raw))
    try:
        header = frames.parse_header_untrusted(raw)
    except ProtocolError:
        return
    assert header.entry_count <= limits.FRAME_ENTRIES_MAX
    assert header.payload_bytes <= limits.FRAME_PAYLOAD_BYTES_MAX


@settings(max_examples=1000)
@given(raw=st.binary(max_size=400), count=st.integers(0, limits.FRAME_ENTRIES_MAX), payload=st.integers(0, 1 << 26))
def test_entry_fuzz_raises_protocol_errors_only(raw: bytes, count: int, payload: int) -> None:
    count = min(count, len(raw) // frames.ENTRY_BYTES + 1)
    try:
        entries = frames.parse_entries_untrusted(raw, request_of(payload, count))
    except ProtocolError:
        return
    assert len(entries) == count
    assert all(e.arena or e.offset + e.nbytes <= payload for e in entries)


@given(entry=ENTRIES, at=st.integers(0, 127), bit=st.integers(0, 7))
def test_one_flipped_bit_in_a_table_is_read_or_refused(entry: Entry, at: int, bit: int) -> None:
    raw = bytearray(frames.pack_entries([entry]))
    raw[at] ^= 1 << bit
    try:
        frames.parse_entries_untrusted(raw, request_of(1 << 14))
    except ProtocolError as error:
        assert "entry" in error.fact  # noqa: PT017 - either outcome is right


@given(header=HEADERS, at=st.integers(0, 63), bit=st.integers(0, 7))
def test_one_flipped_bit_in_a_header_is_always_found(header: Header, at: int, bit: int) -> None:
    raw = bytearray(frames.pack_header(header))
    raw[at] ^= 1 << bit
    with pytest.raises(ProtocolError):
        frames.parse_header_untrusted(raw)
