"""The open step of a store: what this worker has pushed in it, its weight, and what it is stamped with.

Invariant: `clock` is the number of steps this worker has closed; it grows by one with each mark, and between steps it
may jump to a later step that others have come to. What is pushed in a step, and its mark, carry one weight and one
stamp. Nothing is pushed to a tensor after the push that says it is the step's last. The store's lock guards all but
`reached`, which the pump raises.
"""

from __future__ import annotations

from collections.abc import Iterable

from windlass.data_link import InFrame
from windlass.pump import Mark
from windlass.window_core import Stamp
from windlass_proto import rule_records
from windlass_proto.errors import UsageError
from windlass_proto.rule_records import RuleRecord


class OpenStep:
    """See the module. `store` is the store's name, for errors."""

    def __init__(self, store: str, store_id: int) -> None:
        self.store = store
        self.store_id = store_id
        self.clock = 0
        self.depth = 0  # of `with store.step()` blocks
        self.reached = 0  # the step that is open where a push of ours came late
        self.pushed = False
        self.finished: set[str] = set()  # tensors whose last push of this step was made
        self.stamp: Stamp | None = None
        self._weight: float | None = None
        self._stamped = -1  # the step that `stamp` was chosen for

    @property
    def weight(self) -> float:
        """This worker's weight in the mean of its last step."""
        return 1.0 if self._weight is None else self._weight

    # ---- events ------------------------------------------------------------------------------------------------------

    def weigh(self, weight: float) -> None:
        """What is pushed in this step has `weight`.

        Raises:
            UsageError: it is no positive number, or the step has another already.
        """
        if not 0.0 < weight < 1e30:
            raise UsageError("a weight is not a positive number", weight=weight, next_move="Pass weight=len(batch).")
        if self.pushed and self._weight != weight:
            raise UsageError(
                "pushes of one step have different weights",
                store=self.store,
                first=self._weight,
                now=weight,
                next_move="A worker has one weight in a step's mean: pass the same to each push of it.",
            )
        self._weight = weight

    def reach(self, clock: int) -> None:
        """Others have come to step `clock` without this worker: its next step is that one."""
        self.reached = max(self.reached, clock)

    def jump(self, servers: tuple[int, ...]) -> Mark | None:
        """Go on with the step that others have come to; the mark that says so to `servers`, if it is a later one."""
        if self.reached <= self.clock:
            return None
        self.clock = self.reached
        return Mark(self.store_id, self.clock - 1, servers, stamp=self.stamp)

    def stamp_with(self, record: RuleRecord | None) -> None:
        """Choose the step's stamp: one for all it pushes and for its mark, whatever comes meanwhile."""
        self._stamped = self.clock
        if record is not None and record.version > (self.stamp.version if self.stamp is not None else 0):
            raw = rule_records.to_bytes(record)
            self.stamp = Stamp(record.version, self.clock, InFrame((memoryview(raw),), len(raw)), len(raw))

    def unstamp(self) -> None:
        """A change may hold from this step on: choose again."""
        self._stamped = -1

    def close(self, servers: tuple[int, ...]) -> Mark:
        """The step ends; its mark goes to `servers`."""
        mark = Mark(self.store_id, self.clock, servers, stamp=self.stamp)
        self.clock += 1
        self.pushed = False
        self.finished.clear()
        return mark

    # ---- questions ---------------------------------------------------------------------------------------------------

    @property
    def is_stamped(self) -> bool:
        """Has this step's stamp been chosen?"""
        return self._stamped == self.clock

    def check_unfinished(self, names: Iterable[str]) -> None:
        """These may be pushed.

        Raises:
            UsageError: the last push of one of them was made in this step.
        """
        again = sorted(self.finished.intersection(names))
        if again:
            raise UsageError(
                "a tensor was pushed again in a step after its push_pull, which is a step's last push of it",
                store=self.store,
                step=self.clock,
                tensors=", ".join(again[:5]),
                next_move="Push what comes before with push, and the last part with push_pull.",
            )

    def check_nothing_pushed(self, call: str, *, inside: bool = False) -> None:
        """`call` belongs between two steps.

        Raises:
            UsageError: this one has pushes, or (`inside`) is a block that has not ended.
        """
        if self.pushed or inside:
            raise UsageError(
                f"{call} was called inside a step",
                store=self.store,
                step=self.clock,
                next_move="Close the step with update, push_pull or pull before.",
            )

    def check_no_block(self, call: str) -> None:
        """`call` closes a step, so it has no place in a block that does.

        Raises:
            UsageError: it was called in `with store.step()`.
        """
        if self.depth:
            raise UsageError(
                f"{call} was called inside `with store.step()`",
                store=self.store,
                next_move="Use push or push_pull inside the block, and wait after it.",
            )
