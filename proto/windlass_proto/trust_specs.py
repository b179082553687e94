"""LAMB and LARS: rules that scale each tensor's step by its norms, so that a large batch moves no layer too far.

They take norms of whole tensors, so where a tensor is cut over servers, its step waits for all of its parts.

Invariant: as in `rule_specs`, a spec that exists is valid and never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from windlass_proto.arguments import refused_in_words
from windlass_proto.hyper_parameters import (
    require_betas,
    require_not_negative,
    require_positive,
    require_share,
    require_shared,
)
from windlass_proto.schedules import Rate


@refused_in_words
@dataclass(frozen=True, slots=True)
class LAMB:
    """Adam's direction, scaled so that each tensor moves by lr times its own norm.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        betas: share of the first and of the second moment kept each step, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: share of the weight added to the direction before it is scaled, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before it is used; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-6
    weight_decay: Rate = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_betas(self)
        require_not_negative(self, "eps")


@refused_in_words
@dataclass(frozen=True, slots=True)
class LARS:
    """SGD with momentum, whose rate is scaled for each tensor to trust_coefficient times weight norm by gradient norm.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        momentum: share of the buffer kept each step, in [0, 1).
        weight_decay: L2 penalty added to the gradient, >= 0.
        trust_coefficient: which part of its norm a tensor moves by at lr = 1, > 0.
        eps: added to the norm that is divided by, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 0.1
    momentum: float = 0.9
    weight_decay: Rate = 0.0
    trust_coefficient: float = 1e-3
    eps: float = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_share(self, "momentum")
        require_positive(self, "trust_coefficient")
        require_not_negative(self, "eps")
