"""What scripts read of a cluster's state."""

from __future__ import annotations

import json

from windlass.status_fields import fields_of
from windlass_proto import rule_specs
from windlass_proto.gen import control_pb2 as pb
from windlass_proto.rule_specs import Adam


def reply() -> pb.StatusReply:
    spec = Adam(lr=0.5)
    group = pb.Group(table_id=7, tensors=[pb.Tensor(name="w", shape=[2, 1 << 40])], rule=rule_specs.to_bytes(spec))
    return pb.StatusReply(
        generation=1 << 53,
        members=[pb.MemberStatus(role=pb.ROLE_WORKER, figures={"pushes": 3.0})],
        stores=[pb.StoreStatus(store="main", groups=[group])],
    )


def test_numbers_are_numbers_and_enums_are_words() -> None:
    fields = fields_of(reply())
    assert fields["generation"] == 1 << 53
    assert fields["members"][0]["role"] == "worker"
    assert fields["members"][0]["figures"] == {"pushes": 3.0}
    assert fields["stores"][0]["groups"][0]["tensors"][0]["shape"] == [2, 1 << 40]


def test_a_rule_is_shown_as_its_spec_and_other_bytes_in_hexadecimal() -> None:
    assert fields_of(reply())["stores"][0]["groups"][0]["rule"] == repr(Adam(lr=0.5))
    assert fields_of(pb.LeaveRequest(session=b"\x01\xff"))["session"] == "01ff"


def test_every_field_is_there_and_json_takes_it() -> None:
    fields = fields_of(pb.StatusReply())
    assert fields.keys() == {field.name for field in pb.StatusReply.DESCRIPTOR.fields}
    assert fields_of(pb.StoreStatus())["roster"] is None
    assert json.loads(json.dumps(fields_of(reply()))) == fields_of(reply())
