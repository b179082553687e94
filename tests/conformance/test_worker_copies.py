"""What delay compensation measures with: a copy of the weights for each worker, as it last saw them, until it ends."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conformance.served import TABLE, Served, Session
from windlass_proto.errors import ProtocolError, UnavailableError
from windlass_proto.frames import Op
from windlass_proto.rule_specs import DCASGD
from windlass_server.dense import DenseGroup

N = 40_000  # three blocks
RULE = DCASGD(lr=1.0, compensation=1.0)


def held(served: Served) -> int:
    """How many vectors as long as the weights the server holds."""
    group = served.node.groups[TABLE]
    assert isinstance(group, DenseGroup)
    return group.nbytes // (4 * group.spec.layout.flat_elements)


def ones(value: float = 1.0) -> np.ndarray:
    return np.full(N, value, np.float32)


@pytest.mark.parametrize("link", ["tcp", "shm"])
def test_a_worker_is_compensated_from_its_latest_answer_and_forgotten_with_its_session(link: str) -> None:
    with Served() as served:
        spec = served.declare(N, rule=RULE)
        with Session(spec, served.targets[link]) as one, Session(spec, served.targets[link]) as other:
            served.count(one.session, other.session)
            one.init(ones(8.0))
            assert held(served) == 1
            one.pull()
            assert held(served) == 2
            assert one.push_pull(ones())[0] == 7.0  # seen at 8, and so is the weight
            other.pull()
            assert held(served) == 3
            assert one.push_pull(ones())[0] == 6.0  # seen at 7
            other.ask(Op.PUSH, ones()).result(30.0)
            assert served.weights()[0] == 6.0 - (1.0 + (6.0 - 7.0))  # seen at 7, at 6 by now
            other.ask(Op.PUSH, ones(2.0)).result(30.0)
            assert served.weights()[0] == 6.0 - (2.0 + 4.0 * (6.0 - 7.0))  # a push is no sight
            served.ingress.end_session(other.session, "left")
            assert held(served) == 2
            assert (served.weights() == 8.0).all()
            served.validate()


def test_who_pushes_before_it_has_seen_anything_is_not_compensated() -> None:
    with Served() as served:
        spec = served.declare(N, rule=RULE)
        with Session(spec, served.targets["tcp"]) as one, Session(spec, served.targets["tcp"]) as late:
            served.count(one.session)
            one.init(ones(8.0))
            one.push_pull(ones())
            served.count(one.session, late.session)
            late.ask(Op.PUSH, ones()).result(30.0)
            assert (served.weights() == 6.0).all()
            one.push_pull(ones())  # at 6, seen at 7: 1 + (6 - 7) = 0
            late.ask(Op.PUSH, ones()).result(30.0)  # at 6, first seen at 7 when it pushed
            assert (served.weights() == 6.0).all()


def test_assigned_values_begin_every_workers_copy_anew() -> None:
    with Served() as served:
        spec = served.declare(N, rule=RULE)
        with Session(spec, served.targets["tcp"]) as one, Session(spec, served.targets["tcp"]) as other:
            served.count(one.session, other.session)
            one.init(ones(8.0))
            other.pull()
            one.ask(Op.ASSIGN, ones(100.0)).result(30.0)
            other.ask(Op.PUSH, ones()).result(30.0)
            assert (served.weights() == 99.0).all()


def test_a_worker_for_whose_copy_there_is_no_room_is_refused_when_it_declares() -> None:
    with Served() as served:
        spec = served.declare(N, rule=RULE)
        served.node.memory_bytes = int(2.5 * 4 * N)
        served.node.declare(spec)
        with Session(spec, served.targets["tcp"]) as one:
            served.count(one.session)
            one.init(ones())
            one.pull()
            with pytest.raises(UnavailableError, match="no memory for a table"):
                served.node.declare(spec)


def test_delay_compensation_under_bsp_is_refused_from_the_wire() -> None:
    from windlass_proto import group_specs, rule_specs
    from windlass_proto.gen import control_pb2 as pb

    group = pb.Group(
        store_id=3, table_id=7, dtype="float32", block_elements=1 << 17, vshards=256, reduce="mean",
        rule=rule_specs.to_bytes(RULE), consistency="bsp",
        tensors=[pb.Tensor(name="w", shape=[4], lr_mult=1.0, decay_mult=1.0)],
    )  # fmt: skip
    with pytest.raises(ProtocolError, match="under bsp none does"):
        group_specs.from_message(group)
    group.consistency = "asp"
    assert group_specs.from_message(group).rule == RULE
