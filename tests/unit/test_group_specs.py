"""Declarations from the wire: whole and within limits, or refused before anything is allocated."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_proto import group_specs, limits, rule_specs
from windlass_proto.consistency import Consistency
from windlass_proto.errors import ProtocolError
from windlass_proto.gen import control_pb2 as pb
from windlass_proto.table_specs import TableSpec

RULE = rule_specs.SGD(lr=0.5)


def message(**fields: Any) -> pb.Group:
    tensors = fields.pop("tensors", [tensor("w", 10, 100), tensor("b", 3, lr_mult=2.0)])
    given: dict[str, Any] = {
        "table_id": 7,
        "store_id": 3,
        "dtype": "float32",
        "block_elements": 16384,
        "rule": rule_specs.to_bytes(RULE),
        "reduce": "mean",
        "consistency": "ssp:4",
        "vshards": 256,
    } | fields
    return pb.Group(tensors=tensors, **given)


def tensor(name: str, *shape: int, lr_mult: float = 1.0, decay_mult: float = 1.0) -> pb.Tensor:
    return pb.Tensor(name=name, dtype="float32", shape=shape, lr_mult=lr_mult, decay_mult=decay_mult)


def test_a_declaration_arrives_as_it_was_made() -> None:
    spec = group_specs.from_bytes_untrusted(message().SerializeToString())
    assert isinstance(spec, group_specs.GroupSpec)
    assert (spec.store_id, spec.layout.table_id, spec.rule, spec.mean) == (3, 7, RULE, True)
    assert spec.consistency == Consistency.parse("ssp:4")
    assert [(t.name, t.shape, t.lr_mult) for t in spec.layout.tensors] == [("w", (10, 100), 1.0), ("b", (3,), 2.0)]
    assert not group_specs.from_message(message(reduce="sum")).mean


def test_a_layout_arrives_as_it_was_placed() -> None:
    whole = group_specs.from_message(message(layout="whole", homes=[200]))
    assert (whole.layout.whole, [block.vshard for block in whole.layout.blocks]) == (True, [200])
    assert group_specs.from_message(message(layout="whole")).layout.whole, "a checkpoint says nothing of places"
    assert not group_specs.from_message(message()).layout.whole


def test_equal_bytes_make_equal_specs() -> None:
    raw = message().SerializeToString()
    assert group_specs.from_bytes_untrusted(raw) == group_specs.from_bytes_untrusted(raw)
    assert group_specs.from_bytes_untrusted(raw) != group_specs.from_message(message(reduce="sum"))


@pytest.mark.parametrize(
    "fields",
    [
        {"dtype": "float8"},
        {"dtype": ""},
        {"consistency": "bsp:k=0"},
        {"consistency": "ssp:" + "9" * 5000},
        {"reduce": "max"},
        {"reduce": ""},
        {"rule": b""},
        {"rule": b"\xff" * 100},
        {"block_elements": 0},
        {"block_elements": 1000},
        {"block_elements": limits.BLOCK_ELEMENTS_FLOOR // 2},
        {"block_elements": limits.BLOCK_ELEMENTS_MAX * 2},
        {"vshards": 0},
        {"vshards": 3},
        {"vshards": 1 << 17},
        {"tensors": []},
        {"tensors": [tensor("w", 2**63, 2**63)]},
        {"tensors": [tensor("w", *[2**60] * 32)]},
        {"tensors": [tensor("w", *[1] * 33)]},
        {"tensors": [tensor(f"t{i}", 2**32) for i in range(5)]},
        {"tensors": [tensor("w", 2**27)], "block_elements": 1024},
        {"tensors": [tensor("w", 3, lr_mult=math.nan)]},
        {"tensors": [tensor("w", 3, decay_mult=math.inf)]},
        {"tensors": [tensor("w" * 257, 3)]},
        {"tensors": [tensor("\u00e9" * 129, 3)]},
        {"tensors": [tensor("w", 3), tensor("w", 4)]},
        {"layout": "halves"},
        {"homes": [1]},
        {"layout": "whole", "homes": [1, 2]},
        {"layout": "whole", "homes": [256]},
        {"layout": "whole", "tensors": [tensor("w", 1 << 24)]},
    ],
)
def test_a_declaration_out_of_its_limits_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        group_specs.from_bytes_untrusted(message(**fields).SerializeToString())


def test_a_declaration_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(ProtocolError, match="too long"):
        group_specs.from_bytes_untrusted(bytes(limits.SPEC_BYTES_MAX + 1))


def test_the_largest_group_has_as_many_blocks_as_its_bound_allows() -> None:
    spec = group_specs.from_message(message(tensors=[tensor("w", 2**26)], block_elements=1024))
    assert spec.layout.flat_elements // 1024 == limits.BLOCKS_MAX


@settings(max_examples=500)
@given(raw=st.binary(max_size=200), at=st.integers(0, 120), noise=st.binary(min_size=1, max_size=8), keep=st.booleans())
def test_declaration_fuzz_raises_protocol_errors_only(raw: bytes, at: int, noise: bytes, keep: bool) -> None:
    if keep:
        raw = message().SerializeToString()
        raw = raw[:at] + noise + raw[at + len(noise) :]
    try:
        spec = group_specs.from_bytes_untrusted(raw)
    except ProtocolError:
        return
    if isinstance(spec, TableSpec):
        assert spec.dim <= limits.ROW_ELEMENTS_MAX
        return
    assert spec.layout.flat_elements * 4 <= 2 * limits.ARENA_BYTES_MAX
    assert len(spec.layout.tensors) <= limits.TENSORS_MAX
