"""Norms that rules take: which, over what, in which order. `windlass_proto.gradient_norms` sums up.

Invariant: the phases of a rule follow from its spec alone, so every server takes the same ones in the same order.
"""

from __future__ import annotations

import enum

from windlass_proto import gradient_norms
from windlass_proto.gradient_norms import CHUNK, EIGHTH, LANES, Lanes, add_squares, build_squares, folded
from windlass_proto.rule_specs import TRUST_RULES, RuleSpec

__all__ = [
    "CHUNK",
    "EIGHTH",
    "LANES",
    "Lanes",
    "Norm",
    "add_squares",
    "build_squares",
    "clipping_divisor",
    "folded",
    "phases",
]


class Norm(enum.Enum):
    """A phase of a rule: which norms it takes, over what."""

    CLIP_TENSOR = "the gradient of each tensor"
    CLIP_GLOBAL = "the gradients of all tensors"
    TRUST = "the weights of each tensor, and what they would be moved by"

    @property
    def is_global(self) -> bool:
        return self is Norm.CLIP_GLOBAL

    @property
    def sums(self) -> int:
        """How many sums of squares it takes."""
        return 2 if self is Norm.TRUST else 1


def phases(spec: RuleSpec) -> tuple[Norm, ...]:
    """The norms that a step of `spec` needs, in the order in which they are taken."""
    found = []
    if getattr(spec, "clip_norm", None) is not None:
        found.append(Norm.CLIP_TENSOR)
    if getattr(spec, "clip_global_norm", None) is not None:
        found.append(Norm.CLIP_GLOBAL)
    if isinstance(spec, TRUST_RULES):
        found.append(Norm.TRUST)
    return tuple(found)


def clipping_divisor(spec: RuleSpec, norm: Norm, square_sum: float, divisor: float) -> float:
    """`gradient_norms.clipping_divisor` with the bound that `spec` has for `norm`."""
    bound: float = getattr(spec, "clip_norm" if norm is Norm.CLIP_TENSOR else "clip_global_norm")
    return gradient_norms.clipping_divisor(bound, square_sum, divisor)
