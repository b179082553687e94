"""What an entry says of the read that its gradient was made from: sent again it counts as at first, unsaid it is 0."""

from __future__ import annotations

import numpy as np

from tests.conformance.neighbour import answers
from tests.conformance.served import Served, Session, frame, push_entry
from windlass_proto.frames import EntryFlag, Op, Status, aligned
from windlass_proto.rule_specs import SGD
from windlass_proto.schedules import StalenessAware

ONES = np.ones(16, np.float32)


def test_a_push_has_the_rate_of_the_read_that_it_names() -> None:
    with Served() as served:
        spec = served.declare(16, rule=SGD(lr=StalenessAware(1.0)))
        raw = served.raw_link()
        with Session(spec, served.targets["tcp"]) as other:
            served.count(other.session)
            other.init(8 * ONES)
            raw.sendall(frame([push_entry(spec, 0, 0, op=Op.PULL, nbytes=0, tag=7)]))
            read = answers(raw, 1)[7].aux
            assert read > 0
            for _ in range(4):
                other.push_pull(ONES)
            assert served.weights()[0] == 4.0
            entry = push_entry(spec, 0, 1, op=Op.PUSH, aux=read)
            for due in (Status.OK, Status.DUPLICATE):  # a link broke, and the worker sends it again
                raw.sendall(frame([entry], ONES.tobytes()))
                assert answers(raw, 1)[1].status == due
                assert served.weights()[0] == 4.0 - 1 / 4
            rows = np.array([3], np.uint64).tobytes()
            values = rows + bytes(aligned(8) - 8) + np.ones(1, np.float32).tobytes()
            named = push_entry(spec, 0, 2, op=Op.PUSH, flags=EntryFlag.ROWS, aux=1 | read << 32, nbytes=len(values))
            raw.sendall(frame([named], values + bytes(-len(values) % 64)))
            assert answers(raw, 1)[2].status == Status.OK
            assert served.weights()[3] == np.float32(3.75) - np.float32(1 / 5)
            for seq, unknown in ((3, 0), (4, 1 << 60)):
                before = served.weights()[0]
                raw.sendall(frame([push_entry(spec, 0, seq, op=Op.PUSH, aux=unknown)], ONES.tobytes()))
                assert answers(raw, 1)[seq].status == Status.OK
                assert served.weights()[0] == before - 1.0
        raw.close()
        served.validate()
