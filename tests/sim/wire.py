"""Frames to bytes and back: what the simulated links carry is what real links carry."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from windlass_proto import frames
from windlass_proto.frames import Entry, Header, Kind

Values = npt.NDArray[np.float32]


def pack(
    kind: Kind,
    store: int,
    entries: Sequence[tuple[Entry, Values | None]],
    *,
    flags: int = 0,
    clock: int = 0,
    generation: int = 0,
) -> bytes:
    """One frame; each entry's values, if any, lie at a multiple of 64 in its payload."""
    payload = bytearray()
    placed = []
    for entry, values in entries:
        raw = b"" if values is None else values.tobytes()
        placed.append(entry._replace(offset=len(payload), nbytes=len(raw)))
        payload += raw
        payload += bytes(frames.aligned(len(raw)) - len(raw))
    header = Header(kind, flags, len(placed), store, len(payload), generation, clock, 0, 0)
    return frames.pack_header(header) + frames.pack_entries(placed) + bytes(payload)


def parse(raw: bytes) -> tuple[Header, list[tuple[Entry, Values]]]:
    """The header of a frame and its entries with their values."""
    header = frames.parse_header_untrusted(raw)
    table = raw[frames.HEADER_BYTES :]
    entries = frames.parse_entries_untrusted(table, header)
    payload = table[frames.table_bytes(header.entry_count) :]
    assert len(payload) == header.payload_bytes
    return header, [(entry, np.frombuffer(payload, np.float32, entry.nbytes // 4, entry.offset)) for entry in entries]
