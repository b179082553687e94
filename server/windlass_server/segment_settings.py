"""What segments of a block are updated with: a rule as it is live, and the numbers that its kernel gets.

Neighbours that share a setting are stepped by one call of the kernel.

Invariant: a setting's numbers are those of the update it was asked for last. Its block's share's lock guards it.
"""

from __future__ import annotations

from windlass_proto import rule_specs
from windlass_proto.rule_specs import RuleSpec
from windlass_proto.schedules import share_at
from windlass_rules import RuleKernels
from windlass_rules.registry import trust_of
from windlass_server.dense_memory import Vector


class Setting:
    """What the segments of a block that share it are updated with, and the numbers of their latest update."""

    __slots__ = ("clock", "decay_mult", "lr_mult", "rule", "scalars", "scheduled", "staleness", "update")

    def __init__(self, rule: RuleSpec, lr_mult: float, decay_mult: float) -> None:
        self.rule = rule
        self.lr_mult = lr_mult
        self.decay_mult = decay_mult
        self.scheduled = rule_specs.is_scheduled(rule)
        self.update = self.clock = self.staleness = -1
        self.scalars: Vector | None = None

    def at(self, kernels: RuleKernels, update: int, clock: int, staleness: int = 0) -> Vector:
        """The kernel's numbers; segments of a block ask for the same ones one after the other."""
        if (
            self.scalars is None
            or self.update != update
            or (self.scheduled and (self.clock, self.staleness) != (clock, staleness))
        ):
            self.scalars = self._scaled(kernels, update, clock, staleness, 1.0)
            self.update, self.clock, self.staleness = update, clock, staleness
        return self.scalars

    def trusting(
        self, kernels: RuleKernels, update: int, clock: int, staleness: int, sums: tuple[float, ...]
    ) -> Vector:
        """The kernel's numbers for a tensor with these norms."""
        trust = trust_of(self.rule, sums, decay_mult=self.decay_mult, clock=clock)
        return self._scaled(kernels, update, clock, staleness, trust)

    def _scaled(self, kernels: RuleKernels, update: int, clock: int, staleness: int, trust: float) -> Vector:
        lr_mult = self.lr_mult * trust * share_at(getattr(self.rule, "lr", None), staleness)
        return kernels.scalars(self.rule, update, lr_mult=lr_mult, decay_mult=self.decay_mult, clock=clock)


def equal_settings(settings: list[Setting], at: int, end: int) -> int:
    """Where the run of segments from `at` that share a setting ends."""
    first = settings[at]
    if settings[at:end].count(first) == end - at:
        return end
    stop = at + 1
    while stop < end and settings[stop] is first:
        stop += 1
    return stop
