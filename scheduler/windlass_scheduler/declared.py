"""What is declared in stores, as values, and how it is stored.

A declaration is the new names of one `Declare` call: groups of tensors, one group a dtype. Who may change
these values, and when, is decided in `declaration_core`; a waiting call is not stored, its caller asks again
after a restart.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, cast

from windlass_proto.layout import TensorSpec
from windlass_scheduler.effects import Persist, Record

STORE_PREFIX: Final = "store/"
DECLARATION_PREFIX: Final = "declaration/"


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as declared; `table` is what makes it a sparse table (a message Table), empty for a dense one."""

    spec: TensorSpec
    dtype: str
    table: bytes = b""


@dataclass(frozen=True, slots=True)
class Group:
    """The dense tensors of one declaration that share a dtype, or one sparse table; one table id."""

    table_id: int
    store_id: int
    dtype: str
    tensors: tuple[TensorSpec, ...]
    block_elements: int
    rule: bytes
    reduce: str
    table: bytes = b""
    transfer: bytes = b""
    lazy: bool = False
    layout: str = "blocks"
    homes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A call that waits for a declaration to be sealed, or for its grant."""

    waiter: int
    session: bytes
    rank: int


@dataclass(slots=True)
class Declaration:
    """`rank` declared it first; `rule_text` is the rule in words, for errors.

    Deleted tensors stay in their group, whose layout is fixed, but their names are free.
    """

    declaration_id: int
    store_id: int
    rank: int
    rule_text: str
    groups: tuple[Group, ...]
    sealed: bool = False
    grantee: bytes = b""
    waiting: dict[bytes, Waiting] = field(default_factory=dict)
    deleted: frozenset[str] = frozenset()
    dense_bytes: int = 0

    def names(self) -> frozenset[str]:
        """Its tensors that are not deleted."""
        return frozenset(spec.name for group in self.groups for spec in group.tensors) - self.deleted


@dataclass(frozen=True, slots=True)
class Call:
    """A distinct `Declare` call: its names (less those deleted), its step, and the rank that made it first."""

    names: frozenset[str]
    step: int
    rank: int


@dataclass(slots=True)
class Store:
    store_id: int
    job: str
    name: str
    consistency: str
    rank: int
    owner_of: dict[str, int] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    calls_made: dict[bytes, set[int]] = field(default_factory=dict)


def store_record(store: Store) -> Persist:
    return Persist(
        f"{STORE_PREFIX}{store.store_id}",
        {
            "store_id": store.store_id,
            "job": store.job,
            "name": store.name,
            "consistency": store.consistency,
            "rank": store.rank,
            "calls": [[sorted(call.names), call.step, call.rank] for call in store.calls],
        },
    )


def read_store(record: Record) -> Store:
    calls = cast("list[tuple[list[str], int, int]]", record["calls"])
    return Store(
        store_id=cast("int", record["store_id"]),
        job=cast("str", record["job"]),
        name=cast("str", record["name"]),
        consistency=cast("str", record["consistency"]),
        rank=cast("int", record["rank"]),
        calls=[Call(frozenset(names), step, rank) for names, step, rank in calls],
    )


def declaration_record(declaration: Declaration) -> Persist:
    return Persist(
        f"{DECLARATION_PREFIX}{declaration.declaration_id}",
        {
            "declaration_id": declaration.declaration_id,
            "store_id": declaration.store_id,
            "rank": declaration.rank,
            "rule_text": declaration.rule_text,
            "sealed": declaration.sealed,
            "dense_bytes": declaration.dense_bytes,
            "grantee": declaration.grantee.hex(),
            "deleted": sorted(declaration.deleted),
            "groups": [
                {
                    "table_id": group.table_id,
                    "dtype": group.dtype,
                    "tensors": [[s.name, list(s.shape), s.lr_mult, s.decay_mult] for s in group.tensors],
                    "block_elements": group.block_elements,
                    "rule": group.rule.hex(),
                    "reduce": group.reduce,
                    "table": group.table.hex(),
                    "transfer": group.transfer.hex(),
                    "lazy": group.lazy,
                    "layout": group.layout,
                    "homes": list(group.homes),
                }
                for group in declaration.groups
            ],
        },
    )


def read_declaration(record: Record) -> Declaration:
    store_id = cast("int", record["store_id"])
    groups = []
    for group in cast("list[dict[str, object]]", record["groups"]):
        tensors = cast("list[tuple[str, list[int], float, float]]", group["tensors"])
        groups.append(
            Group(
                table_id=cast("int", group["table_id"]),
                store_id=store_id,
                dtype=cast("str", group["dtype"]),
                tensors=tuple(TensorSpec(name, tuple(shape), lr, decay) for name, shape, lr, decay in tensors),
                block_elements=cast("int", group["block_elements"]),
                rule=bytes.fromhex(cast("str", group["rule"])),
                reduce=cast("str", group["reduce"]),
                table=bytes.fromhex(cast("str", group.get("table", ""))),
                transfer=bytes.fromhex(cast("str", group.get("transfer", ""))),
                lazy=cast("bool", group.get("lazy", False)),
                layout=cast("str", group.get("layout", "blocks")),
                homes=tuple(cast("list[int]", group.get("homes", []))),
            )
        )
    return Declaration(
        declaration_id=cast("int", record["declaration_id"]),
        store_id=store_id,
        rank=cast("int", record["rank"]),
        rule_text=cast("str", record["rule_text"]),
        groups=tuple(groups),
        sealed=cast("bool", record["sealed"]),
        grantee=bytes.fromhex(cast("str", record["grantee"])),
        deleted=frozenset(cast("list[str]", record.get("deleted", []))),
        dense_bytes=cast("int", record.get("dense_bytes", 0)),
    )
