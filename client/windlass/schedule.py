"""Schedules for `lr` and `weight_decay` of any update rule; servers evaluate them, counted in steps.

wl.optim.Adam(lr=wl.schedule.Cosine(1e-3, warmup=100, steps=2000))
"""

from typing import TYPE_CHECKING, Any

from windlass_proto.arguments import unknown_name
from windlass_proto.schedules import (
    Chain,
    Constant,
    Cosine,
    InverseSqrt,
    MultiStep,
    Plateau,
    Polynomial,
    Schedule,
    StalenessAware,
    Step,
    WarmUp,
)

__all__ = [
    "Chain",
    "Constant",
    "Cosine",
    "InverseSqrt",
    "MultiStep",
    "Plateau",
    "Polynomial",
    "Schedule",
    "StalenessAware",
    "Step",
    "WarmUp",
]

if not TYPE_CHECKING:  # type checkers say it by themselves

    def __getattr__(name: str) -> Any:
        raise unknown_name("windlass.schedule", name, __all__)
