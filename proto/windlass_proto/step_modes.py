"""Step modes: which consistency mode each step of a store is in.

A mode holds from a step on, the same one on every server and worker; steps before it stay in theirs, whenever they
come. So what is said of a push or a pull is said by the step it belongs to, not by when it arrives: a pull at clock c
waits for the step closed last, c - 1.

Invariant: the steps from which modes hold rise; what was declared holds before the first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from windlass_proto import rule_records
from windlass_proto.consistency import Consistency

if TYPE_CHECKING:
    from windlass_proto.gen import control_pb2


class ModeChange(NamedTuple):
    """From step `clock` on `consistency` holds.

    `stamp`: the version of hyper-parameters that came with it, which no such step is applied without; None if none did.
    """

    clock: int
    consistency: Consistency
    stamp: Any = None


def changes_of(messages: Iterable[control_pb2.StepMode]) -> tuple[ModeChange, ...]:
    """What a roster's message says of modes."""
    return tuple(
        ModeChange(
            message.clock,
            Consistency.parse(message.consistency),
            rule_records.from_bytes_untrusted(message.record) if message.record else None,
        )
        for message in messages
    )


class StepModes:
    """Immutable. `changes` are in order; many are dropped oldest first, when no step before them can come any more."""

    __slots__ = ("_newest", "changes", "declared")

    def __init__(self, declared: Consistency, changes: tuple[ModeChange, ...] = ()) -> None:
        self.declared = declared
        self.changes = changes
        self._newest = changes[-1] if changes else ModeChange(0, declared)

    def at(self, clock: int) -> Consistency:
        """The mode of step `clock`."""
        if clock >= self._newest.clock or not self.changes:
            return self._newest.consistency
        return next((m.consistency for m in reversed(self.changes) if m.clock <= clock), self.declared)

    def stamp(self, clock: int, stamp: Any) -> Any:
        """`stamp`, or a newer one that came with a mode which holds in step `clock`."""
        for change in self.changes:
            if change.clock <= clock and change.stamp is not None and stamp < change.stamp:
                stamp = change.stamp
        return stamp

    def next_after(self, clock: int) -> int | None:
        """The first step after `clock` from which another mode holds."""
        return next((change.clock for change in self.changes if change.clock > clock), None)

    @property
    def newest(self) -> ModeChange:
        """The mode that holds at last, and from which step on."""
        return self._newest
