"""A step on one whole tensor with all phases of its rule, as a server makes it where nothing is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto.rule_specs import RuleSpec
from windlass_rules import RuleKernels, norms
from windlass_rules.norms import Norm
from windlass_rules.registry import RULE_MODULES, trust_of
from windlass_rules.rule import Vector

Wide = npt.NDArray[np.float64]


def step_whole(
    kernels: RuleKernels, spec: RuleSpec, w: Vector, slots: tuple[Vector, ...], g: Vector, gscale: float, step: int
) -> None:
    """One step with the gradient gscale * g."""
    divisor, lr_mult = 1.0, 1.0
    for norm in norms.phases(spec):
        lanes = np.zeros(norm.sums * norms.LANES)
        if norm is Norm.TRUST:
            assert kernels.measure is not None
            kernels.measure(w, slots, 0, g, gscale / divisor, kernels.scalars(spec, step), lanes)
            lr_mult = trust_of(spec, norms.folded(lanes), decay_mult=1.0, clock=0)
        else:
            assert kernels.squares is not None
            kernels.squares(g, gscale, lanes)
            divisor = norms.clipping_divisor(spec, norm, norms.folded(lanes)[0], 1.0)
    kernels.update(w, slots, 0, g, gscale / divisor, kernels.scalars(spec, step, lr_mult=lr_mult))


def clipped_by_norm(spec: Any, gradients: Sequence[Wide]) -> list[Wide]:
    """The gradients of all tensors of one `init` after `clip_norm` or `clip_global_norm`; an oracle."""
    if spec.clip_norm is not None:
        return [g * min(1.0, spec.clip_norm / max(1e-300, float(np.linalg.norm(g)))) for g in gradients]
    if spec.clip_global_norm is not None:
        length = float(np.sqrt(sum(float((g**2).sum()) for g in gradients)))
        return [g * min(1.0, spec.clip_global_norm / max(1e-300, length)) for g in gradients]
    return list(gradients)


def oracle_step(spec: RuleSpec, w: Wide, slots: tuple[Wide, ...], g: Wide, step: int) -> tuple[Wide, tuple[Wide, ...]]:
    """The same in float64, from the rule's equations."""
    (clipped,) = clipped_by_norm(spec, [g])
    found: tuple[Wide, tuple[Wide, ...]] = RULE_MODULES[type(spec)].oracle(spec, w, slots, clipped, step)
    return found
