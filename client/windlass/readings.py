"""Readings: functions of installed packages, run by the servers where the parameters lie, and their answers.

Invariant: every server runs the same version, which the scheduler compares before anything is asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from windlass.data_link import InFrame
from windlass.dense_table import Span
from windlass.plan import Plan
from windlass_proto import own_readers
from windlass_proto.frames import Op
from windlass_proto.own_readers import Reading

if TYPE_CHECKING:
    from windlass.store import Store


def read(
    store: Store, reader: str, name: str, request: bytes, version: str, answer_bytes: int, timeout: float | None
) -> list[bytes]:
    """Ask every part of tensor or table `name`; see `Store.read`."""
    from windlass_proto.gen import control_pb2 as pb

    own_readers.check(reader, version, request, answer_bytes)
    member = store.member
    places = _places(store, name)
    found = member.control.find_reader(pb.FindReaderRequest(session=member.session, name=reader, version=version))
    raw = own_readers.to_bytes(Reading(reader, found.version, answer_bytes, bytes(request)))
    answers = [bytearray(own_readers.answer_room(answer_bytes)) for _ in places]
    spans = [
        Span(share, block, begin, end, InFrame((memoryview(raw),), len(raw)), InFrame((memoryview(room),), len(room)))
        for (share, block, begin, end), room in zip(places, answers, strict=True)
    ]
    plan = Plan([spans], (), lambda: list(map(own_readers.unpack_answer_untrusted, answers)), len(spans))
    answered: list[bytes] = store.ask(Op.READ, lambda: plan).result(timeout)
    return answered


def _places(store: Store, name: str) -> list[tuple[tuple[int, int], int, int, int]]:
    """Where the parts of a tensor or table lie: share, block, and segments from and to."""
    table = store.exchange.sparse_named(name)
    if table is not None:
        return [((table.spec.table_id, band.start), band.start, 0, 1) for band in table.bands()]
    table_id, number = store.exchange.place(name)
    layout = store.exchange.tables[table_id].layout
    return [((table_id, layout.blocks[b].vshard), b, s, s + 1) for b, s in layout.segments_of[number]]
