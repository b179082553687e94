"""Rule records: what was changed live in a store, as immutable versions that travel ahead of the pushes they are for.

Invariant: a record says all that differs from what was declared, so the newest alone is enough; its bytes are at most
`RECORD_BYTES_MAX`. Versions are counted by the scheduler, from 1, and `since` never falls with them. Records compare by
version; version 0, `DECLARED`, changes nothing.

A change names tensors by a pattern, and only those of tables that were declared when it was made: what is declared
later is as declared. The scheduler makes records (`with_change`), workers and servers read them.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from windlass_proto import limits, rule_specs, schedules
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import rules_pb2
from windlass_proto.rule_specs import RuleSpec
from windlass_proto.schedules import Schedule

RECORD_BYTES_MAX: Final = 1024
"""It goes ahead of a push on every link, and again after a reconnect; a change of lr takes 40 bytes."""

VERSION_MAX: Final = (1 << 32) - 1

Value = float | tuple[float, float] | Schedule


@dataclass(frozen=True, slots=True)
class RuleChange:
    """Hyper-parameters by name, sorted, for the tensors that `names` matches in tables up to `tables_to`."""

    names: str
    tables_to: int
    values: tuple[tuple[str, Value], ...]

    def covers(self, other: RuleChange) -> bool:
        """Does it hold wherever `other` does?"""
        return self.names in ("*", other.names) and self.tables_to >= other.tables_to

    def in_words(self) -> str:
        said = ", ".join(f"{name}={value}" for name, value in self.values)
        return said if self.names == "*" else f"{said} for {self.names}"


@dataclass(frozen=True, slots=True)
class RuleRecord:
    """One version; `since` is the first step it holds from."""

    version: int
    since: int
    changes: tuple[RuleChange, ...] = field(default=(), repr=False)

    def __lt__(self, other: RuleRecord) -> bool:
        return self.version < other.version

    def rule_of(self, table_id: int, tensor: str, declared: RuleSpec) -> RuleSpec:
        """The rule of a tensor that was declared with `declared`.

        Raises:
            UsageError: a change that matches the tensor does not fit its rule.
        """
        rule = declared
        for change in self.changes:
            if table_id <= change.tables_to and fnmatch.fnmatchcase(tensor, change.names):
                rule = rule_specs.changed(rule, dict(change.values))
        return rule

    def in_words(self) -> str:
        return "; ".join(change.in_words() for change in self.changes)


DECLARED: Final = RuleRecord(0, 0)


def change_of(names: str, tables_to: int, values: Mapping[str, Any]) -> RuleChange:
    """A change as a caller gives it; whether it fits a rule is that rule's to say.

    Raises:
        UsageError: a value is neither a number, nor two, nor a schedule.
    """
    return RuleChange(names, tables_to, tuple((name, _value(name, values[name])) for name in sorted(values)))


def with_change(record: RuleRecord, change: RuleChange, step: int) -> RuleRecord:
    """The version after `record`: `change` holds from `step` on, or from where `record` does if that is later.

    Raises:
        UsageError: the record would be too long.
    """
    kept = []
    names = {name for name, _ in change.values}
    for earlier in record.changes:
        values = earlier.values
        if change.covers(earlier):
            values = tuple((name, value) for name, value in values if name not in names)
        if values:
            kept.append(RuleChange(earlier.names, earlier.tables_to, values))
    following = RuleRecord(record.version + 1, max(record.since, step), (*kept, change))
    to_bytes(following)
    return following


def with_changes(record: RuleRecord, changes: tuple[RuleChange, ...], step: int) -> RuleRecord:
    """The version after `record`: `changes`, and nothing of what held before, hold as in `with_change`.

    Raises:
        UsageError: the record would be too long.
    """
    following = RuleRecord(record.version + 1, max(record.since, step), changes)
    to_bytes(following)
    return following


def to_bytes(record: RuleRecord) -> bytes:
    """The message RuleRecord; equal records give equal bytes.

    Raises:
        UsageError: it takes more than RECORD_BYTES_MAX.
    """
    message = rules_pb2.RuleRecord(version=record.version, since=record.since)
    for change in record.changes:
        message.changes.add().CopyFrom(_change_message(change))
    raw = message.SerializeToString(deterministic=True)
    if len(raw) > RECORD_BYTES_MAX:
        raise UsageError(
            "the hyper-parameters of a store that were changed live take too many bytes",
            bytes=len(raw),
            bytes_max=RECORD_BYTES_MAX,
            next_move='Use fewer patterns; names="*" replaces what was set for single tensors.',
        )
    return raw


def change_to_bytes(change: RuleChange) -> bytes:
    """The message RuleChange."""
    return _change_message(change).SerializeToString(deterministic=True)


def from_bytes_untrusted(raw: bytes) -> RuleRecord:
    """Read a record.

    Raises:
        ProtocolError: it is too long, is none, or holds values that none may have.
    """
    message = _parsed(rules_pb2.RuleRecord(), raw)
    if not 1 <= message.version <= VERSION_MAX or message.since > schedules.STEPS_MAX:
        raise ProtocolError("a rule record is not one", version=message.version, since=message.since)
    return RuleRecord(message.version, message.since, tuple(_change_untrusted(c) for c in message.changes))


def change_from_bytes_untrusted(raw: bytes) -> RuleChange:
    """Read a change.

    Raises:
        ProtocolError: it is too long, is none, or holds values that none may have.
    """
    return _change_untrusted(_parsed(rules_pb2.RuleChange(), raw))


def _parsed(message: Any, raw: bytes) -> Any:
    if len(raw) > RECORD_BYTES_MAX:
        raise ProtocolError("a rule record is too long", bytes=len(raw), bytes_max=RECORD_BYTES_MAX)
    try:
        message.ParseFromString(bytes(raw))
    except DecodeError as cause:
        raise ProtocolError("a rule record could not be read", reason=str(cause)[:200]) from cause
    _refuse_unknown_fields(message)
    return message


def _change_message(change: RuleChange) -> rules_pb2.RuleChange:
    message = rules_pb2.RuleChange(names=change.names, tables_to=change.tables_to)
    for name, value in change.values:
        if isinstance(value, Schedule):
            message.values.add(name=name, schedule=schedules.to_message(value))
        else:
            message.values.add(name=name, numbers=value if isinstance(value, tuple) else [value])
    return message


def _change_untrusted(message: rules_pb2.RuleChange) -> RuleChange:
    _refuse_unknown_fields(message)
    if not 1 <= len(message.names.encode()) <= limits.NAME_BYTES_MAX or not message.values:
        raise ProtocolError("a change of hyper-parameters has no names or no values", names=message.names[:64])
    values: dict[str, Any] = {}
    for value in message.values:
        _refuse_unknown_fields(value)
        if value.HasField("schedule") == bool(value.numbers) or value.name in values:
            raise ProtocolError("a hyper-parameter has no value or several", name=value.name[:64])
        if value.HasField("schedule"):
            values[value.name] = schedules.from_message_untrusted(value.schedule)
        else:
            values[value.name] = tuple(value.numbers) if len(value.numbers) > 1 else value.numbers[0]
    try:
        return change_of(message.names, message.tables_to, values)
    except UsageError as cause:
        raise ProtocolError("a hyper-parameter holds a value that none may have", reason=str(cause)) from cause


def _refuse_unknown_fields(message: Any) -> None:
    if len(UnknownFieldSet(message)):
        raise ProtocolError("a rule record holds fields this release does not know")


def _value(name: str, value: Any) -> Value:
    if isinstance(value, Schedule):
        return value
    pair = isinstance(value, tuple | list) and len(value) == 2
    numbers = value if pair else (value,)
    if any(isinstance(number, bool | str | bytes) or not hasattr(number, "__float__") for number in numbers):
        raise UsageError("a hyper-parameter is set to what is no number", name=name, got=repr(value)[:80])
    found = tuple(float(number) for number in numbers)
    if not all(map(math.isfinite, found)):
        raise UsageError("a hyper-parameter is set to what is not finite", name=name, got=repr(value)[:80])
    return (found[0], found[1]) if pair else found[0]
