"""Live rules: the newest rule record of each store, which says what was changed since its tensors were declared.

A change makes the next version; nothing else is decided here. Who may change, and that the same call of all workers is
one change, is agreed on in `agreement_core`.

Invariant (`validate`): a store's versions are counted from 1 without a gap, and the step that they hold from never
falls. What is not stored has not been seen by anybody.

Owner: the loop that drives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

from windlass_proto import rule_records
from windlass_proto.errors import InvariantError
from windlass_proto.rule_records import DECLARED, RuleChange, RuleRecord
from windlass_scheduler.effects import Effect, Persist, Record, Say


@dataclass(frozen=True, slots=True)
class Change:
    """`rank` changes hyper-parameters of a store from its step `step` on; a record replaces all that held before."""

    store_id: int
    store: str
    job: str
    rank: int
    step: int
    change: RuleChange | RuleRecord


@dataclass(frozen=True, slots=True)
class RuleChanged:
    """Every worker of the job is to know the store's newest record."""

    store_id: int
    job: str
    record: RuleRecord


_PREFIX: Final = "live/"


class LiveRules:
    """`step(event) -> effects`; a refused request raises and changes nothing."""

    def __init__(self) -> None:
        self._records: dict[int, RuleRecord] = {}

    def newest(self, store_id: int) -> RuleRecord:
        return self._records.get(store_id, DECLARED)

    def newest_bytes(self, store_id: int) -> bytes:
        """Empty if nothing was changed."""
        record = self._records.get(store_id)
        return b"" if record is None else rule_records.to_bytes(record)

    def following(self, event: Change) -> RuleRecord:
        """The version that `event` would make.

        Raises:
            UsageError: it would be too long.
        """
        newest = self.newest(event.store_id)
        if isinstance(event.change, RuleRecord):
            return rule_records.with_changes(newest, event.change.changes, event.step)
        return rule_records.with_change(newest, event.change, event.step)

    def step(self, event: Change) -> list[Effect]:
        record = self.following(event)
        self._records[event.store_id] = record
        words = event.change.in_words() or "what was declared"
        text = f"rank {event.rank} set {words} in store {event.store} from step {record.since} on"
        return [
            Persist(f"{_PREFIX}{event.store_id}", {"record": rule_records.to_bytes(record).hex()}),
            RuleChanged(event.store_id, event.job, record),
            Say("set", text, event.job),
        ]

    def forget(self, store_id: int) -> list[Effect]:
        """The store is gone, its job over."""
        return [Persist(f"{_PREFIX}{store_id}", None)] if self._records.pop(store_id, None) is not None else []

    def restore(self, records: Mapping[str, Record]) -> None:
        for key, record in records.items():
            raw = bytes.fromhex(cast("str", record["record"]))
            self._records[int(key.removeprefix(_PREFIX))] = rule_records.from_bytes_untrusted(raw)

    def validate(self) -> None:
        for store_id, record in self._records.items():
            if record.version < 1:
                raise InvariantError("a store's live rules have no version", store_id=store_id, version=record.version)
