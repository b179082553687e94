"""Hostile entries about rows of dense tensors: the peer loses its connection, and no memory stays lent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.neighbour import ELEMENTS, answers, beside_a_good_client, is_closed
from tests.conformance.served import Served, frame, push_entry
from windlass_proto.frames import ENTRY_BYTES, EntryFlag, Op, Status, aligned
from windlass_proto.group_specs import GroupSpec

ROWS = np.array([0, 5, 16_383], np.uint64)  # of the first block


def payload(rows: np.ndarray, values: int | None = None) -> bytes:
    raw = rows.astype(np.uint64).tobytes()
    raw += bytes(aligned(len(raw)) - len(raw)) + np.ones(rows.size if values is None else values, np.float32).tobytes()
    return raw


def sent(spec: GroupSpec, raw: bytes, count: int, **fields: Any) -> bytes:
    given = {"op": Op.PUSH, "flags": EntryFlag.ROWS, "aux": count, "nbytes": len(raw)}
    return frame([push_entry(spec, 0, 1, **(given | fields))], raw + bytes(-len(raw) % 64))


GOOD = payload(ROWS)
BAD: dict[str, tuple[bytes, int, dict[str, Any]]] = {
    "a row of another block": (payload(np.array([1, 16_384])), 2, {}),
    "rows that do not ascend": (payload(np.array([5, 1])), 2, {}),
    "a row twice": (payload(np.array([5, 5])), 2, {}),
    "fewer values than rows": (payload(ROWS, 2), 3, {}),
    "more values than rows": (payload(ROWS, 4), 3, {}),
    "more rows than the tensor": (GOOD, ELEMENTS + 1, {}),
    "rows by the billion": (GOOD, 1 << 62, {}),
    "no values": (GOOD, 3, {"nbytes": 0}),
    "a pull with values": (GOOD, 3, {"op": Op.PULL}),
    "first values of rows": (GOOD, 3, {"op": Op.INIT}),
    "an assignment of rows": (GOOD, 3, {"op": Op.ASSIGN}),
    "a deletion of rows": (GOOD, 3, {"op": Op.DROP}),
    "a weight that is no number": (GOOD, 3, {"weight": float("nan")}),
    "shared memory that is not there": (GOOD, 3, {"arena": 3}),
}


@pytest.mark.parametrize("what", BAD)
def test_a_peer_that_breaks_the_protocol_loses_its_link(what: str) -> None:
    raw, count, fields = BAD[what]
    with beside_a_good_client() as (served, spec, _):
        sock = served.raw_link()
        sock.sendall(sent(spec, raw, count, **fields))
        assert is_closed(sock)
        sock.close()


def test_rows_of_a_tensor_without_values_are_refused_in_words() -> None:
    with beside_a_good_client() as (served, spec, _):
        sock = served.raw_link()
        sock.sendall(sent(spec, GOOD, 3))
        assert answers(sock, 1)[1].status == Status.ERROR
        sock.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(at=st.integers(0, ENTRY_BYTES - 1), noise=st.binary(min_size=1, max_size=8))
def test_noise_in_an_entry_is_answered_or_closes_the_link(at: int, noise: bytes) -> None:
    with Served() as served:
        good = sent(served.declare(ELEMENTS), GOOD, 3)
        entry = good[64 : 64 + ENTRY_BYTES]
        bent = (entry[:at] + noise + entry[at + len(noise) :])[:ENTRY_BYTES]
        sock = served.raw_link("unix")
        sock.sendall(good[:64] + bent + good[64 + ENTRY_BYTES :])
        sock.shutdown(1)
        assert is_closed(sock)
        sock.close()
        served.await_connections(0)
        served.validate()
        assert served.pool.bytes_lent == 0
