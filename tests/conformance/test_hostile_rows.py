"""Hostile entries of sparse tables: the peer loses its connection, the table and its neighbours are as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.neighbour import answers, beside_a_good_client, block_bytes, is_closed
from tests.conformance.served import STORE, Served, frame, push_entry
from windlass_proto import ids, keys, limits
from windlass_proto.consistency import Consistency
from windlass_proto.frames import ENTRY_BYTES, Entry, Op, Status, aligned
from windlass_proto.init_specs import Zeros
from windlass_proto.rule_specs import SGD
from windlass_proto.table_specs import TableSpec
from windlass_server.sparse import SparseTable

DIM = 4
ROWS = TableSpec(
    STORE, 9, "user", DIM, "float32", Zeros(), limits.MIB, SGD(lr=1.0), False, Consistency.parse("asp"),
    keys.VSHARDS_DEFAULT,
)  # fmt: skip
PLAN = ids.plan(np.arange(64, dtype=np.uint64), ROWS.seed, ROWS.vshards)
MINE = PLAN.ids[: PLAN.begins[64]]  # those of the first band
OTHERS = PLAN.ids[PLAN.begins[64] :]


def table_of(served: Served) -> SparseTable:
    found = served.node.declare(ROWS)
    assert isinstance(found, SparseTable)
    return found


def payload(items: np.ndarray, value: float = 1.0) -> bytes:
    rows = np.full(items.size * DIM, value, np.float32).tobytes()
    return items.tobytes() + bytes(-items.nbytes % 64) + rows


def entry(op: Op, count: int, nbytes: int, **fields: Any) -> Entry:
    return Entry(
        op, 0, 0, ROWS.table_id, 0, 1, 1, 0, 0, count, 0, nbytes, 0, 0, 0, 1.0, 0, 0, 0
    )._replace(**fields)  # fmt: skip


def sent(one: Entry, values: bytes) -> bytes:
    return frame([one], values + bytes(-len(values) % 64))


def push(items: np.ndarray, **fields: Any) -> bytes:
    values = payload(items)
    return sent(entry(Op.PUSH, items.size, len(values), **fields), values)


def test_a_push_of_good_rows_is_applied() -> None:
    with beside_a_good_client() as (served, _, _):
        table = table_of(served)
        sock = served.raw_link()
        sock.sendall(push(MINE))
        assert answers(sock, 1)[1].status == Status.OK
        assert len(table.tables[0]) == MINE.size
        sock.close()


N = int(MINE.size)
BAD: dict[str, bytes] = {
    "an id of another band": push(np.append(MINE[:-1], OTHERS[:1])),
    "a pull of another band's id": sent(entry(Op.PULL, 1, 8), OTHERS[:1].tobytes()),
    "an erasure of another band's id": sent(entry(Op.ERASE, 1, 8), OTHERS[:1].tobytes()),
    "fewer rows than ids": sent(entry(Op.PUSH, N, len(payload(MINE)) - 16), payload(MINE)),
    "more ids than rows": sent(entry(Op.PUSH, N + 8, len(payload(MINE))), payload(MINE)),
    "ids by the billion": sent(entry(Op.PULL, 2**32 - 1, 8), MINE[:1].tobytes()),
    "an answer larger than a frame": sent(
        entry(Op.PULL, limits.ENTRY_IDS_MAX, 8, table=ROWS.table_id), MINE[:1].tobytes()
    ),
    "segments that do not begin at 0": push(MINE, seg_begin=1),
    "a scan beyond what there is": sent(entry(Op.SCAN, 1 << 20, 0), b""),
    "a weight that is no number": push(MINE, weight=float("nan")),
    "no values": sent(entry(Op.PUSH, N, len(payload(MINE)), arena=7), b""),
    "a block beyond the key space": push(MINE, block=ROWS.vshards),
    "a step out of reach": push(MINE, clock=1 << 40),
    "an operation of dense tensors": sent(entry(Op.SET_RULE, 0, 0), b""),
}


@pytest.mark.parametrize("what", BAD)
def test_a_peer_that_breaks_the_protocol_loses_its_link_and_changes_nothing(what: str) -> None:
    with beside_a_good_client() as (served, _, _):
        table = table_of(served)
        sock = served.raw_link()
        sock.sendall(BAD[what])
        assert is_closed(sock)
        sock.close()
        assert len(table.tables[0]) == 0


def test_a_band_that_this_server_does_not_have_is_fenced() -> None:
    with beside_a_good_client() as (served, _, _):
        table_of(served)
        sock = served.raw_link()
        sock.sendall(push(MINE, block=3))
        assert answers(sock, 1)[1].status == Status.FENCED
        sock.close()


def test_rows_that_are_not_finite_are_consumed_and_not_applied() -> None:
    with beside_a_good_client() as (served, _, _):
        table = table_of(served)
        sock = served.raw_link()
        values = payload(MINE, float("nan"))
        sock.sendall(sent(entry(Op.PUSH, N, len(values)), values))
        assert answers(sock, 1)[1].status == Status.REJECTED
        sock.sendall(push(MINE, seq=2, tag=2))
        assert answers(sock, 1)[2].status == Status.OK
        assert (table.tables[0].rows[: N * DIM] == -1.0).all()
        sock.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, ENTRY_BYTES - 1), noise=st.binary(min_size=1, max_size=8))
def test_noise_in_an_entry_is_answered_or_closes_the_link(at: int, noise: bytes) -> None:
    good = push(MINE)
    table = good[64 : 64 + ENTRY_BYTES]
    bent = (table[:at] + noise + table[at + len(noise) :])[:ENTRY_BYTES]
    raw = good[:64] + bent + good[64 + ENTRY_BYTES :]
    with Served() as served:
        held = table_of(served)
        sock = served.raw_link("unix")
        sock.sendall(raw)
        sock.shutdown(1)
        assert is_closed(sock)
        sock.close()
        served.await_connections(0)
        served.validate()
        held.tables[0].validate()
        assert served.pool.bytes_lent == 0


def test_entries_are_laid_out_as_drawn() -> None:
    assert aligned(8 * N) % 64 == 0
    assert len(payload(MINE)) == aligned(8 * N) + N * DIM * 4


@pytest.mark.parametrize("op", [Op.STATS, Op.ERASE, Op.SCAN])
def test_operations_of_sparse_tables_are_refused_by_dense_groups(op: Op) -> None:
    with beside_a_good_client() as (served, spec, _):
        sock = served.raw_link()
        sock.sendall(frame([push_entry(spec, 0, 1, op=op)], block_bytes(spec)))
        assert is_closed(sock)
        sock.close()
