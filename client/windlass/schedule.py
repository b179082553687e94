"""Schedules for `lr` and `weight_decay` of any update rule; servers evaluate them, counted in steps.

wl.optim.Adam(lr=wl.schedule.Cosine(1e-3, warmup=100, steps=2000))
"""

from windlass_proto.schedules import (
    Chain,
    Constant,
    Cosine,
    InverseSqrt,
    MultiStep,
    Plateau,
    Polynomial,
    Schedule,
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
    "Step",
    "WarmUp",
]
