"""Live rules: the versions of a store's hyper-parameters that this worker has heard of.

Invariant: versions rise, and the steps that they hold from never fall. The scheduler's updates come in the watch
thread, answers to calls in the caller's; readers see one tuple or the next, whole.
"""

from __future__ import annotations

import threading

from windlass_proto import rule_records
from windlass_proto.rule_records import DECLARED, RuleRecord

_KEPT = 128
"""A worker that is behind others stamps with older versions: more than the steps it may have open."""


class LiveRules:
    """One store's records, the newest last."""

    def __init__(self) -> None:
        self.records: tuple[RuleRecord, ...] = ()
        self._learning = threading.Lock()

    def learn(self, raw: bytes) -> None:
        """The scheduler says a record; empty if nothing was changed, and maybe one that is known."""
        if not raw:
            return
        record = rule_records.from_bytes_untrusted(raw)
        with self._learning:
            if not self.records or self.records[-1] < record:
                self.records = (*self.records[1 - _KEPT :], record)

    def newest(self) -> RuleRecord:
        """What a change would be made to."""
        return self.records[-1] if self.records else DECLARED

    def at(self, clock: int) -> RuleRecord:
        """What holds in step `clock`, as far as it is known."""
        return next((record for record in reversed(self.records) if record.since <= clock), DECLARED)
