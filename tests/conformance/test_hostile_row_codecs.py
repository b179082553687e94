"""Encoded rows that no worker would send: the link ends, the table and the other links stay."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.conformance.served import Served
from tests.conformance.test_hostile_rows import DIM, MINE, ROWS, entry, sent
from windlass_proto.codec_specs import BFloat16, CodecSpec, Int8
from windlass_proto.codecs.registry import build_rows
from windlass_proto.frames import Op
from windlass_proto.transfer_specs import Transfer
from windlass_server.sparse import SparseTable

IDS = MINE.tobytes() + bytes(-MINE.nbytes % 64)
PLAIN = np.ones(MINE.size * DIM, np.float32).tobytes()


def encoded(spec: CodecSpec) -> np.ndarray:
    codec = build_rows(spec, DIM)
    wire = np.zeros(codec.wire_bytes(MINE.size * DIM), np.uint8)
    codec.encode(np.ones(MINE.size * DIM, np.float32), wire)
    return wire


def with_scale(scale: float) -> bytes:
    wire = encoded(Int8())
    wire[4:8].view(np.float32)[0] = scale
    return wire.tobytes()


def push(rows: bytes) -> bytes:
    return sent(entry(Op.PUSH, MINE.size, len(IDS) + len(rows)), IDS + rows)


@pytest.mark.parametrize(
    ("codec", "rows"),
    [
        (Int8(), encoded(Int8()).tobytes()[:-1]),
        (Int8(), encoded(Int8()).tobytes() + bytes(1)),
        (Int8(), PLAIN),
        (Int8(), b""),
        (Int8(), with_scale(-1.0)),
        (Int8(), with_scale(float("inf"))),
        (BFloat16(), encoded(BFloat16()).tobytes()[:-2]),
        (BFloat16(), PLAIN),
    ],
)
def test_rows_that_cannot_be_decoded_end_their_link_alone(codec: CodecSpec, rows: bytes) -> None:
    with Served() as served:
        table = served.node.declare(dataclasses.replace(ROWS, transfer=Transfer(up=codec)))
        assert isinstance(table, SparseTable)
        with served.raw_link() as hostile, served.raw_link() as other:
            hostile.sendall(push(rows))
            assert hostile.recv(1) == b"", "the server closed the link"
            served.await_connections(1)
            assert not any(len(held) for held in table.tables.values())
            other.sendall(push(encoded(codec).tobytes()))
            assert other.recv(4) == b"WLF1", "and answers the others"
        assert len(table.tables[0]) == MINE.size
        assert served.pool.bytes_lent == 0
