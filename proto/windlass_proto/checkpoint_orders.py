"""Orders: what a worker asks of one server for a checkpoint, as the payload of a CHECKPOINT entry.

    save      COPY  the server copies its blocks at the worker's clock     answered when everything is copied
              WRITE it says what it wrote                                  answered when the part is on the disk
    restore   STAGE it reads what its blocks need, beside what it serves   answered when that is whole, and steps rest
              APPLY it serves what it staged                               answered when it does
              DROP  it forgets what it staged

Invariant: the phases of one checkpoint carry one `key`, chosen at random by the worker; an order that comes again (a
link broke) finds what its first coming did. So a retry copies nothing twice.
"""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from windlass_proto import checkpoint_format, limits
from windlass_proto.errors import ProtocolError, WindlassError

ANSWER_BYTES: Final = 64
_ANSWER: Final = struct.Struct("<Q16s?")


class Phase(Enum):
    """What is to be done; see the module."""

    COPY = "copy"
    WRITE = "write"
    STAGE = "stage"
    APPLY = "apply"
    DROP = "drop"


class Save(NamedTuple):
    """How parts are made: the attempt in their names, and `base` and `tracks` of an `Order`."""

    attempt: str
    base: str = ""
    tracks: bool = False


class SavedPart(NamedTuple):
    """A part that is on the disk: its length, the XXH3-128 of all its bytes, and whether it needs no part before it."""

    nbytes: int
    digest: str
    whole: bool


@dataclass(frozen=True, slots=True)
class Order:
    """`tables`: those with a block on this server, as (number of the manifest's group, table id).

    `steps_before`: what a clock lacks of the steps that the restored values have had; schedules count those.
    `file` is the part to write (save); `manifest` the digest of the manifest to read (restore); a step's number
    `clock` 0 never waits. `base` names the save (by the attempt of its parts) beside whose parts this one's are read:
    what has not changed since may be left out. `tracks`: from now on, note what changes.
    """

    phase: Phase
    key: str
    store_id: int
    clock: int
    folder: str
    tables: tuple[tuple[int, int], ...]
    file: str = ""
    manifest: str = ""
    steps_before: int = 0
    base: str = ""
    tracks: bool = False


def to_bytes(order: Order) -> bytes:
    """The payload of an entry."""
    record = {
        "phase": order.phase.value,
        "key": order.key,
        "store": order.store_id,
        "clock": order.clock,
        "folder": order.folder,
        "tables": order.tables,
        "file": order.file,
        "manifest": order.manifest,
        "steps_before": order.steps_before,
        "base": order.base,
        "tracks": order.tracks,
    }
    return json.dumps(record).encode()


def from_bytes_untrusted(raw: bytes) -> Order:
    """Read an order.

    Raises:
        ProtocolError: it is none.
    """
    if len(raw) > limits.ORDER_BYTES_MAX:
        raise ProtocolError("an order is too long", bytes=len(raw), bytes_max=limits.ORDER_BYTES_MAX)
    try:
        record = json.loads(raw)
        tables = tuple((group, table) for group, table in record["tables"])
        numbers = (record["store"], record["clock"], *itertools.chain.from_iterable(tables))
        texts = (record["key"], record["folder"], record["file"], record["manifest"], record.get("base", ""))
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers):
            raise ValueError("an order's number is out of range")
        steps_before = record["steps_before"]
        if type(steps_before) is not int or abs(steps_before) >= 1 << 62:
            raise ValueError("an order's steps are out of range")
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            raise ValueError("an order's text is none")
        if record["file"]:
            checkpoint_format.check_part_name_untrusted(record["file"])
        if not (Path(record["folder"]).is_absolute() or "://" in record["folder"]):
            raise ValueError("an order's folder is not absolute")
        key, folder, file, manifest, base = texts
        store_id, clock = numbers[:2]
        return Order(
            Phase(record["phase"]), key[:64], store_id, clock, folder, tables, file, manifest, steps_before, base,
            record.get("tracks", False) is True,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError, WindlassError) as cause:
        raise ProtocolError("an order cannot be read", reason=str(cause)[:200]) from cause


def pack_answer(saved: SavedPart | None) -> bytes:
    """What a server answers with: of a part on the disk its length and digest, else zeros."""
    raw = _ANSWER.pack(saved.nbytes, bytes.fromhex(saved.digest), saved.whole) if saved is not None else b""
    return raw.ljust(ANSWER_BYTES, b"\0")


def unpack_answer(raw: bytes | bytearray) -> SavedPart:
    """What `pack_answer` made of a part."""
    nbytes, digest, whole = _ANSWER.unpack_from(raw)
    return SavedPart(nbytes, digest.hex(), whole)
