"""What a server must know to hold a dense group: layout, rule, reduction, consistency.

Invariant: a spec that parses is whole and within limits; two sides with equal bytes compute the same layout.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError

from windlass_proto import limits, rule_specs, table_specs, transfer_specs
from windlass_proto.consistency import Consistency
from windlass_proto.errors import ProtocolError, WindlassError
from windlass_proto.gen import control_pb2
from windlass_proto.layout import GroupLayout, TensorSpec, check_whole, dtype_named, layout_named
from windlass_proto.rule_specs import RuleSpec
from windlass_proto.table_specs import TableSpec
from windlass_proto.transfer_specs import PLAIN, Transfer


@dataclass(frozen=True)
class GroupSpec:
    """A dense group as declared. `lazy`: only the rows that a step's pushes name are updated."""

    store_id: int
    layout: GroupLayout
    rule: RuleSpec
    mean: bool
    consistency: Consistency
    transfer: Transfer = PLAIN
    lazy: bool = False
    job: str = field(default="", compare=False)

    @property
    def table_id(self) -> int:
        return self.layout.table_id


def from_message(group: control_pb2.Group) -> GroupSpec:
    """Read a declared group.

    Raises:
        ProtocolError: if a field is out of its range.
    """
    try:
        dtype_named(group.dtype)
        spec = GroupSpec(
            store_id=group.store_id,
            layout=GroupLayout(
                table_id=group.table_id,
                dtype_name=group.dtype,
                tensors=tuple(_tensor(tensor) for tensor in group.tensors),
                block_elements=group.block_elements,
                vshards=group.vshards,
                whole=layout_named(group.layout) == "whole",
                homes=tuple(group.homes),
            ),
            rule=rule_specs.from_bytes_untrusted(group.rule),
            mean=group.reduce != "sum",
            consistency=Consistency.parse(group.consistency),
            job=group.job,
            transfer=transfer_specs.from_bytes_untrusted(group.transfer),
            lazy=group.lazy,
        )
        rule_specs.check_dense(spec.rule, spec.consistency)
        if spec.lazy:
            rule_specs.check_lazy(spec.rule, group.dtype)
        transfer_specs.check(spec.transfer, dtype=group.dtype, rule=spec.rule)
        transfer_specs.check_mode(spec.transfer, spec.consistency)
        for tensor in spec.layout.tensors if spec.layout.whole else ():
            check_whole(tensor.name, tensor.elements, group.dtype)
    except WindlassError as cause:
        raise ProtocolError("a group's declaration cannot be used", reason=str(cause)) from cause
    _check(spec, group)
    return spec


def from_bytes_untrusted(raw: bytes) -> GroupSpec | TableSpec:
    """Read a declared group or table from its protobuf bytes.

    Raises:
        ProtocolError: if they are not one.
    """
    if len(raw) > limits.SPEC_BYTES_MAX:
        raise ProtocolError("a declaration is too long", bytes=len(raw), bytes_max=limits.SPEC_BYTES_MAX)
    try:
        group = control_pb2.Group.FromString(raw)
    except DecodeError as cause:
        raise ProtocolError("a declaration cannot be read", reason=str(cause)) from cause
    return table_specs.from_message(group) if table_specs.is_table(group) else from_message(group)


def _tensor(tensor: control_pb2.Tensor) -> TensorSpec:
    return TensorSpec(tensor.name, tuple(tensor.shape), tensor.lr_mult, tensor.decay_mult)


def _check(spec: GroupSpec, group: control_pb2.Group) -> None:
    block, vshards = group.block_elements, group.vshards
    if group.reduce not in ("mean", "sum"):
        raise ProtocolError("a group's reduction is not known", reduce=group.reduce[:64])
    if block & (block - 1) or not limits.BLOCK_ELEMENTS_FLOOR <= block <= limits.BLOCK_ELEMENTS_MAX:
        raise ProtocolError("a block size is not a power of two within the limits", block_elements=block)
    if vshards & (vshards - 1) or not 1 <= vshards <= 1 << 16:
        raise ProtocolError("a number of vshards is not a power of two", vshards=vshards)
    if not 1 <= len(group.tensors) <= limits.TENSORS_MAX:
        raise ProtocolError("a group has too many tensors or none", tensors=len(group.tensors))
    if len({tensor.name for tensor in group.tensors}) != len(group.tensors):
        raise ProtocolError("two tensors of a group have one name")
    elements = 0
    for tensor in spec.layout.tensors:
        elements += math.prod(tensor.shape)
        if not (math.isfinite(tensor.lr_mult) and math.isfinite(tensor.decay_mult)):
            raise ProtocolError("a multiplier is not finite", tensor=tensor.name)
        if len(tensor.name.encode()) > limits.NAME_BYTES_MAX or len(tensor.shape) > 32:
            raise ProtocolError("a tensor's name or shape is too long", tensor=tensor.name[:64])
    if elements * spec.layout.dtype.itemsize > limits.ARENA_BYTES_MAX:
        raise ProtocolError("a group is too large", elements=elements)
    blocks = len(spec.layout.block_begins) - 1
    homes = spec.layout.homes
    if homes and (not spec.layout.whole or len(homes) != blocks or max(homes) >= vshards):
        raise ProtocolError("a group's blocks are not placed as they are cut", homes=len(homes), blocks=blocks)
    if blocks > limits.BLOCKS_MAX:
        raise ProtocolError("a group has too many blocks", blocks=blocks, blocks_max=limits.BLOCKS_MAX)
