"""Checkpoints on storage: a folder of parts and, written last, a manifest. The format is public: docs/checkpoints.md.

    step-000123/
        part-0-5f2a91c4.safetensors     what server 0 held: weights, slots and update counts by block, rows by band
        part-1-5f2a91c4.safetensors
        residual-0-5f2a91c4.safetensors what worker 0 kept back under codecs with feedback
        manifest.json                   what the parts are, what was declared, whose step, the user's state

Invariant: a folder without a whole manifest is no checkpoint. The manifest carries a digest of itself and one of each
part, so what is read back is what was written, or a CorruptionError that names the file. Blocks are those of the
group's layout (`layout`), a function of what was declared and not of the servers, so any number of servers can read
them. Rows of sparse tables lie in the bands of the servers that wrote them, and are found again by their ids.

A part may hold changes alone: it counts with the parts before it in the manifest, which lie in earlier folders. Of a
block that several parts hold the last one's is read; of a band, ids of a later part's `erased` go from what was read so
far, and its rows come in place of those.

A format's number grows when an older release could misread a newer folder; a reader reads every earlier one. A folder
says the lowest format that its contents need: 1 for dense tensors alone, 2 with sparse tables or with
hyper-parameters that were changed live, 3 with parts of earlier folders or tensors that are never cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import xxhash
from google.protobuf.message import DecodeError

from windlass_proto import group_specs, limits, rule_records, rule_specs, storage, table_specs
from windlass_proto.errors import CorruptionError, UsageError, WindlassError
from windlass_proto.gen import control_pb2
from windlass_proto.group_specs import GroupSpec
from windlass_proto.rule_records import RuleChange
from windlass_proto.table_specs import TableSpec

FORMAT_MAX: Final = 3
MANIFEST: Final = "manifest.json"
_FOLDER: Final = re.compile(r"step-(\d{6,18})")
_PART: Final = re.compile(r"part-(\d{1,5})-([0-9a-f]{8})\.safetensors")
_RESIDUAL: Final = re.compile(r"residual-\d{1,5}-[0-9a-f]{8}\.safetensors")


@dataclass(frozen=True)
class Group:
    """A dense group as it was declared; `deleted` names keep their place in its layout and hold nothing."""

    spec: GroupSpec
    deleted: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Part:
    """One file: its blocks as (group, block), its length and its digest.

    `bands` of sparse tables: (table, first vshard, the one after its last). `folder`: the name of the earlier
    checkpoint's folder that it lies in, if it is not this one's. `whole`: it needs no part before it.
    """

    file: str
    nbytes: int
    digest: str
    blocks: tuple[tuple[int, int], ...]
    bands: tuple[tuple[int, int, int], ...] = ()
    folder: str = ""
    whole: bool = True

    def path(self, folder: Path) -> Path:
        """Where it lies, if its manifest is in `folder`."""
        return (folder.parent / self.folder if self.folder else folder) / self.file

    @property
    def server(self) -> int:
        """The index of the server that wrote it."""
        return server_and_attempt(self.file)[0]

    @property
    def attempt(self) -> str:
        """Eight digits that the parts of one save have in common."""
        return server_and_attempt(self.file)[1]


@dataclass(frozen=True, slots=True)
class Residual:
    """One file: what worker `rank` kept back, an array for each tensor in its shape.

    A release that knows of none passes it by, and keeps nothing back at first.
    """

    rank: int
    file: str
    nbytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class Position:
    """How far a data set was read: of `batches` batches of the epoch, dealt to `workers`, each had `rounds`.

    `row`: so many rows of the epoch's order are used then. `passes` counts the iterations over the data set, from 1.
    """

    loader: str
    passes: int
    epoch: int
    rounds: int
    workers: int
    batches: int
    row: int

    @property
    def order(self) -> tuple[int, int, int]:
        """Later positions of one data set have a greater one."""
        return self.passes, self.epoch, self.rounds


@dataclass(frozen=True, slots=True)
class LiveChange:
    """A change of hyper-parameters that held, and the tensors and tables that it covered.

    Which numbers the tables had (`change.tables_to`) means nothing to another run.
    """

    change: RuleChange
    covers: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself. `step` counts from the run's beginning, over all its resumptions."""

    job: str
    store: str
    consistency: str
    step: int
    epoch: int
    windlass: str
    groups: tuple[Group, ...]
    parts: tuple[Part, ...]
    positions: tuple[Position, ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    tables: tuple[TableSpec, ...] = ()
    live: tuple[LiveChange, ...] = ()
    residuals: tuple[Residual, ...] = ()

    @property
    def format(self) -> int:
        """The lowest format that holds all of it."""
        if any(part.folder or not part.whole for part in self.parts) or any(g.spec.layout.whole for g in self.groups):
            return 3
        return 2 if self.tables or self.live else 1

    def files(self, folder: Path) -> dict[Path, int]:
        """The files that it names, if it is in `folder`, with their lengths."""
        parts = {part.path(folder): part.nbytes for part in self.parts}
        return parts | {folder / residual.file: residual.nbytes for residual in self.residuals}

    @cached_property
    def raw(self) -> bytes:
        """The bytes of manifest.json."""
        record: dict[str, Any] = {
            "format": self.format,
            "windlass": self.windlass,
            "job": self.job,
            "store": self.store,
            "consistency": self.consistency,
            "step": self.step,
            "epoch": self.epoch,
            "groups": [_group_record(group) for group in self.groups],
            "parts": [_part_record(part) for part in self.parts],
            "data": [asdict(position) for position in self.positions],
            "state": self.state,
        }
        if self.tables:
            record["tables"] = [_table_record(table) for table in self.tables]
        if self.live:
            record["live"] = [_live_record(live) for live in self.live]
        if self.residuals:
            record["residuals"] = [_residual_record(residual) for residual in self.residuals]
        return json.dumps({"digest": _digest(record), **record}, indent=1).encode() + b"\n"

    @cached_property
    def digest(self) -> str:
        """A digest of the whole manifest: two that agree on it read the same checkpoint."""
        return xxhash.xxh3_128_hexdigest(self.raw)


# ---- names -----------------------------------------------------------------------------------------------------------


def folder_name(step: int) -> str:
    """Names of later steps sort after those of earlier ones."""
    return f"step-{step:06d}"


def is_named_as_one(folder: Path) -> bool:
    """Does a folder have the name of a checkpoint?"""
    return _FOLDER.fullmatch(folder.name) is not None


def part_name(server: int, attempt: str) -> str:
    return f"part-{server}-{attempt}.safetensors"


def residual_name(rank: int, attempt: str) -> str:
    return f"residual-{rank}-{attempt}.safetensors"


def server_and_attempt(name: str) -> tuple[int, str]:
    """What `part_name` was made of."""
    found = _PART.fullmatch(check_part_name_untrusted(name))
    assert found is not None
    return int(found[1]), found[2]


def check_part_name_untrusted(name: str) -> str:
    """`name`, if it is one of a part: a file of its folder, and of no other kind.

    Raises:
        UsageError: it is not.
    """
    if not _PART.fullmatch(name):
        raise UsageError("a part of a checkpoint has another kind of name", file=name[:80])
    return name


def continues(manifest: Manifest, before: Manifest) -> bool:
    """Do groups and tables of `before`, a checkpoint of the same store, have the same numbers in `manifest`?"""
    if manifest.store != before.store:
        return False
    groups = [[_group_record(group) | {"deleted": []} for group in one.groups] for one in (before, manifest)]
    tables = [[_table_record(table) for table in one.tables] for one in (before, manifest)]
    return all(was == now[: len(was)] for was, now in (groups, tables))


def is_ours(name: str) -> bool:
    """Is it the name of a file that a checkpoint consists of, its manifest aside?"""
    return bool(_PART.fullmatch(name) or _RESIDUAL.fullmatch(name))


# ---- the manifest ----------------------------------------------------------------------------------------------------


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """With it the folder is a checkpoint. Its parts are on the disk already.

    Raises:
        UsageError: the user's state makes it too long.
        UnavailableError: it could not be written.
    """
    if len(manifest.raw) > limits.MANIFEST_BYTES_MAX:
        raise UsageError("a manifest is too long", bytes=len(manifest.raw), bytes_max=limits.MANIFEST_BYTES_MAX)
    storage.write_whole(folder / MANIFEST, lambda write_all: write_all(manifest.raw))
    storage.sync_folder(folder.parent)


def read_manifest_untrusted(folder: Path) -> Manifest:
    """The manifest of a checkpoint's folder.

    Raises:
        CorruptionError: it is missing, torn, altered, or of a later format.
    """
    path = folder / MANIFEST
    with storage.opened_untrusted(path, "a checkpoint has no manifest") as file:
        raw = file.read(limits.MANIFEST_BYTES_MAX + 1)
    try:
        record = json.loads(raw)
        said = record.pop("digest")
        found = _digest(record)
        if record["format"] > FORMAT_MAX:
            raise CorruptionError(
                "a checkpoint is of a later format",
                file=path,
                format=record["format"],
                format_max=FORMAT_MAX,
                next_move="Read it with the release that wrote it, or a later one.",
            )
        if said != found:
            raise CorruptionError("a manifest is not what was written", file=path, digest=found, expected=said)
        return _manifest_untrusted(record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, WindlassError) as cause:
        if isinstance(cause, CorruptionError):
            raise
        raise CorruptionError("a manifest cannot be read", file=path, reason=str(cause)[:200]) from cause


def _digest(record: Mapping[str, Any]) -> str:
    canonical = json.dumps(record, sort_keys=True, separators=(",", ":"))
    return xxhash.xxh3_128_hexdigest(canonical.encode())


def _manifest_untrusted(record: Mapping[str, Any]) -> Manifest:
    if not isinstance(record["state"], dict):
        raise TypeError("the state is not an object")
    groups = tuple(_group_untrusted(group, str(record["consistency"])) for group in record["groups"])
    tables = tuple(_table_untrusted(table) for table in record.get("tables", []))
    return Manifest(
        job=str(record["job"]),
        store=str(record["store"]),
        consistency=str(record["consistency"]),
        step=_count(record["step"]),
        epoch=_count(record["epoch"]),
        windlass=str(record["windlass"]),
        groups=groups,
        parts=tuple(_part_untrusted(part, groups, tables) for part in record["parts"]),
        positions=tuple(_position_untrusted(position) for position in record["data"]),
        state=record["state"],
        tables=tables,
        live=tuple(_live_untrusted(live) for live in record.get("live", [])),
        residuals=tuple(map(residual_untrusted, record.get("residuals", []))),
    )


def _count(number: Any) -> int:
    if type(number) is not int or not 0 <= number < 1 << 62:
        raise ValueError(f"{number!r} is not a count")
    return number


def _part_record(part: Part) -> dict[str, Any]:
    record = {"file": part.file, "bytes": part.nbytes, "xxh3_128": part.digest, "blocks": list(map(list, part.blocks))}
    record |= {"bands": list(map(list, part.bands))} if part.bands else {}
    record |= {"folder": part.folder} if part.folder else {}
    return record | ({} if part.whole else {"whole": False})


def _part_untrusted(part: Mapping[str, Any], groups: tuple[Group, ...], tables: tuple[TableSpec, ...]) -> Part:
    blocks = tuple((_count(group), _count(block)) for group, block in part["blocks"])
    if any(block >= len(groups[group].spec.layout.blocks) for group, block in blocks):
        raise ValueError("a part names a block that its group lacks")
    bands = tuple((_count(table), _count(begin), _count(end)) for table, begin, end in part.get("bands", []))
    if any(not begin < end <= tables[table].vshards for table, begin, end in bands):
        raise ValueError("a part names a band that its table lacks")
    file, folder = check_part_name_untrusted(part["file"]), str(part.get("folder", ""))
    if folder and not _FOLDER.fullmatch(folder):
        raise ValueError("a part lies in a folder that is no checkpoint's")
    whole = bool(part.get("whole", True))
    return Part(file, _count(part["bytes"]), str(part["xxh3_128"]), blocks, bands, folder, whole)


def _residual_record(residual: Residual) -> dict[str, Any]:
    return {
        "rank": residual.rank,
        "file": residual.file,
        "bytes": residual.nbytes,
        "xxh3_128": residual.digest,
    }


def residual_untrusted(record: Mapping[str, Any]) -> Residual:
    """Read one entry of a manifest's `residuals`.

    Raises:
        KeyError, TypeError, ValueError: it is none.
    """
    file = str(record["file"])
    if not _RESIDUAL.fullmatch(file):
        raise ValueError("a residual has another kind of name")
    return Residual(_count(record["rank"]), file, _count(record["bytes"]), str(record["xxh3_128"]))


def _position_untrusted(position: Mapping[str, Any]) -> Position:
    counts = {name: _count(position[name]) for name in ("passes", "epoch", "rounds", "workers", "batches", "row")}
    return Position(loader=str(position["loader"]), **counts)


def _group_record(group: Group) -> dict[str, Any]:
    layout = group.spec.layout
    return {
        "dtype": layout.dtype_name,
        "block_elements": layout.block_elements,
        **({"layout": "whole"} if layout.whole else {}),
        "reduce": "mean" if group.spec.mean else "sum",
        "rule": rule_specs.to_bytes(group.spec.rule).hex(),
        "rule_text": repr(group.spec.rule),
        "tensors": [
            {"name": t.name, "shape": list(t.shape), "lr_mult": t.lr_mult, "decay_mult": t.decay_mult}
            for t in layout.tensors
        ],
        "deleted": sorted(group.deleted),
    }


def _group_untrusted(record: Mapping[str, Any], consistency: str) -> Group:
    """Checked as what a peer declares is, in the mode that it was saved in: some rules are for some modes alone."""
    message = control_pb2.Group(
        dtype=record["dtype"],
        tensors=[control_pb2.Tensor(dtype=record["dtype"], **tensor) for tensor in record["tensors"]],
        block_elements=record["block_elements"],
        layout=record.get("layout", ""),
        rule=bytes.fromhex(record["rule"]),
        reduce=record["reduce"],
        consistency=consistency,
        vshards=2,
    )
    return Group(group_specs.from_message(message), frozenset(record["deleted"]))


def _live_record(live: LiveChange) -> dict[str, Any]:
    raw = rule_records.change_to_bytes(live.change)
    return {"change": raw.hex(), "change_text": live.change.in_words(), "covers": list(live.covers)}


def _live_untrusted(record: Mapping[str, Any]) -> LiveChange:
    change = rule_records.change_from_bytes_untrusted(bytes.fromhex(record["change"]))
    return LiveChange(change, tuple(map(str, record["covers"])))


def _table_record(table: TableSpec) -> dict[str, Any]:
    return {
        "name": table.name,
        "dim": table.dim,
        "dtype": table.dtype_name,
        "vshards": table.vshards,
        "reduce": "mean" if table.mean else "sum",
        "rule": rule_specs.to_bytes(table.rule).hex(),
        "rule_text": repr(table.rule),
        "table": table_specs.table_message(table).SerializeToString(deterministic=True).hex(),
        "table_text": table_specs.kind_in_words(table),
    }


def _table_untrusted(record: Mapping[str, Any]) -> TableSpec:
    """Checked as what a peer declares is."""
    try:
        table = control_pb2.Table.FromString(bytes.fromhex(record["table"]))
    except DecodeError as cause:
        raise ValueError("a table's declaration is none") from cause
    tensor = control_pb2.Tensor(name=record["name"], dtype=record["dtype"], shape=[record["dim"]], table=table)
    message = control_pb2.Group(
        dtype=record["dtype"],
        tensors=[tensor],
        rule=bytes.fromhex(record["rule"]),
        reduce=record["reduce"],
        consistency="bsp",
        vshards=record["vshards"],
    )
    return table_specs.from_message(message)


# ---- names in a part -------------------------------------------------------------------------------------------------


def weight_key(group: int, block: int) -> str:
    """The weights of a block, padding included: block.elements of the group's dtype."""
    return f"{group}.{block}.weight"


def slot_key(group: int, block: int, slot: str) -> str:
    """A slot of the rule, as long as the weights."""
    return f"{group}.{block}.slot.{slot}"


def shown_key(group: int, block: int) -> str:
    """Where weights come down as deltas: what the workers held of the block, as long as the weights."""
    return f"{group}.{block}.shown"


def updates_key(group: int, block: int) -> str:
    """int64 by segment: how many updates it has had; -1 where it holds nothing."""
    return f"{group}.{block}.updates"


def band_key(table: int, vshard: int, what: str) -> str:
    """Of the band that begins at `vshard`: "updates", int64, one element: how many it has had.

    In a part that is not whole, also "erased" (u64): ids of rows that went since the part before; where it is not
    there, the band is whole nevertheless. With admission or eviction also "now", int64, one element: the highest step
    applied; and "admit.tags" (u32) and "admit.counts" (u16), (vshards, counters).
    """
    return f"table.{table}.{vshard}.{what}"


def stretch_key(table: int, vshard: int, stretch: int, column: str) -> str:
    """A column of a stretch of a band's rows, counted from 0: "ids" (u64), "rows", or "slot." and a slot's name.

    With eviction also "touched" (u32) and "score" (float32).
    """
    return f"table.{table}.{vshard}.{stretch}.{column}"
