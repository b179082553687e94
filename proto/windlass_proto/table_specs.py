"""What a server must know to hold a sparse table, and where its rows lie.

The key space of a table is that of its name: two clusters, or two runs, place and initialise the row of an id alike.
Servers own runs of vshards; a *band* is the part of such a run that lies in one of `limits.BANDS` equal parts of the
key space. A band is a share: one lock, one order of operations, one entry of a push, however many vshards it has. (One
entry a vshard would be 256 for a push of 256 ids.) Each vshard in it keeps an index of its own, so a band may be cut
where ownership changes: both parts inherit its order.

Invariant: a spec that parses is whole and within limits; two sides with equal bytes compute the same bands.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import xxhash

from windlass_proto import init_specs, life_specs, limits, row_codecs, rule_specs, transfer_specs
from windlass_proto.codec_specs import CodecSpec
from windlass_proto.consistency import Consistency
from windlass_proto.errors import ProtocolError, UsageError, WindlassError
from windlass_proto.gen import control_pb2
from windlass_proto.init_specs import InitSpec
from windlass_proto.layout import DTYPES, HALVES, dtype_named
from windlass_proto.life_specs import AdmitSpec, Evictions
from windlass_proto.rule_specs import RuleSpec
from windlass_proto.transfer_specs import PLAIN, Transfer


@dataclass(frozen=True)
class TableSpec:
    """A sparse table as declared."""

    store_id: int
    table_id: int
    name: str
    dim: int
    dtype_name: str
    init: InitSpec
    bytes_max: int
    rule: RuleSpec
    mean: bool
    consistency: Consistency
    vshards: int
    admit: AdmitSpec | None = None
    evict: Evictions = ()
    transfer: Transfer = PLAIN
    job: str = field(default="", compare=False)
    quota_bytes: int = field(default=0, compare=False)

    @cached_property
    def dtype(self) -> np.dtype[np.floating]:
        """Of a worker's arrays."""
        return DTYPES[self.dtype_name]

    @cached_property
    def held(self) -> np.dtype[np.floating]:
        """Of rows and slots on servers: half types have float32 masters."""
        return DTYPES["float32" if self.dtype_name in HALVES else self.dtype_name]

    @property
    def up(self) -> CodecSpec | None:
        """What rows of a push travel in; None: as they are held."""
        return self.transfer.up or row_codecs.of_dtype(self.dtype_name)

    @property
    def down(self) -> CodecSpec | None:
        """What rows that are asked for travel in."""
        return self.transfer.down or row_codecs.of_dtype(self.dtype_name)

    @cached_property
    def seed(self) -> int:
        """What ids are mixed with."""
        return seed_of(self.name)

    def rows_max(self, held: int, state: int) -> int:
        """Rows that `held` vshards have room for under a rule that keeps `state` values a row; at least one."""
        life = limits.ROW_LIFE_BYTES if self.evict else 0
        row = (self.dim + state) * self.held.itemsize + limits.ROW_OVERHEAD_BYTES + life
        return max(1, self.bytes_max * held // self.vshards // row)


def seed_of(name: str) -> int:
    """The seed of the table called `name`."""
    return xxhash.xxh3_64_intdigest(name.encode())


def bands(owned: range, vshards: int) -> list[range]:
    """The bands of a run of vshards that one server owns."""
    width = max(1, vshards // limits.BANDS)
    borders = [owned.start, *range((owned.start // width + 1) * width, owned.stop, width), owned.stop]
    return [range(begin, end) for begin, end in itertools.pairwise(borders) if begin < end]


def is_table(group: control_pb2.Group) -> bool:
    """Is this declared group a sparse table?"""
    return any(tensor.HasField("table") for tensor in group.tensors)


def from_message(group: control_pb2.Group) -> TableSpec:
    """Read a declared table.

    Raises:
        ProtocolError: if a field is out of its range.
    """
    try:
        dtype_named(group.dtype)
        if len(group.tensors) != 1 or group.reduce not in ("mean", "sum"):
            raise ProtocolError("a sparse table shares its group", tensors=len(group.tensors), reduce=group.reduce[:64])
        tensor = group.tensors[0]
        check_table(tensor)
        admit, evict = life_specs.from_message(tensor.table)
        if group.vshards & (group.vshards - 1) or not 1 <= group.vshards <= 1 << 16:
            raise ProtocolError("a number of vshards is not a power of two", vshards=group.vshards)
        rule = rule_specs.from_bytes_untrusted(group.rule)
        rule_specs.check_rows(rule)
        transfer = transfer_specs.from_bytes_untrusted(group.transfer)
        check_transfer(transfer, dtype=group.dtype, dim=tensor.shape[0], rule=rule)
        return TableSpec(
            store_id=group.store_id,
            table_id=group.table_id,
            name=tensor.name,
            dim=tensor.shape[0],
            dtype_name=group.dtype,
            init=init_specs.from_message(tensor.table.init),
            bytes_max=tensor.table.bytes_max,
            rule=rule,
            mean=group.reduce != "sum",
            consistency=Consistency.parse(group.consistency),
            vshards=group.vshards,
            job=group.job,
            quota_bytes=group.quota_bytes,
            admit=admit,
            evict=evict,
            transfer=transfer,
        )
    except WindlassError as cause:
        raise ProtocolError("a table's declaration cannot be used", reason=str(cause)) from cause


def check_transfer(transfer: Transfer, *, dtype: str, dim: int, rule: RuleSpec) -> None:
    """Can rows of `dim` values of `dtype` under `rule` travel so?

    Raises:
        UsageError: they cannot; what can is named.
    """
    transfer_specs.check(transfer, dtype=dtype, rule=rule)
    if transfer.up is not None:
        row_codecs.check(transfer.up, dim)
    if transfer.down is not None and not transfer.down.exact:
        raise UsageError(
            "rows of a table come down as they are or as halves",
            codec_down=transfer.down,
            next_move="Use codec_down=wl.codec.Float16() or BFloat16().",
        )


def check_table(tensor: control_pb2.Tensor) -> None:
    """A declared table's own fields are within limits.

    Raises:
        ProtocolError: if one is not.
    """
    if len(tensor.shape) != 1 or not 1 <= tensor.shape[0] <= limits.ROW_ELEMENTS_MAX:
        shape = "x".join(map(str, tensor.shape[:8]))
        raise ProtocolError("a table's rows have a wrong size", dim=shape, dim_max=limits.ROW_ELEMENTS_MAX)
    if not 1 <= tensor.table.bytes_max <= limits.TABLE_BYTES_MAX:
        raise ProtocolError(
            "a table's bytes_max is out of range", bytes_max=tensor.table.bytes_max, most=limits.TABLE_BYTES_MAX
        )
    if not 1 <= len(tensor.name.encode()) <= limits.NAME_BYTES_MAX:
        raise ProtocolError("a table needs a name of 1 to 256 bytes", name=tensor.name[:64])
    init_specs.from_message(tensor.table.init)
    life_specs.from_message(tensor.table)


def table_message(spec: TableSpec) -> control_pb2.Table:
    """What is declared of a table beside its name, dim, dtype and rule."""
    message = control_pb2.Table(init=init_specs.to_message(spec.init), bytes_max=spec.bytes_max)
    life_specs.add_to(message, spec.admit, spec.evict)
    return message


def kind_in_words(spec: TableSpec) -> str:
    """What a table's rows are, for errors."""
    return f"{spec.dtype_name} rows of {spec.dim}, {spec.init}"


def in_words(table: bytes) -> str:
    """What a table's declaration says beside its dim, for errors; "a dense tensor" for no bytes."""
    if not table:
        return "a dense tensor"
    message = control_pb2.Table.FromString(table)
    life = life_specs.in_words(*life_specs.from_message(message))
    said = f"a table of {init_specs.from_message(message.init)}, bytes_max={message.bytes_max}"
    return f"{said}, {life}" if life else said
