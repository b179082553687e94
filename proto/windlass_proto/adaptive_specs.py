"""Rules that divide by the root of accumulated squared gradients: Adagrad, Adadelta, RMSprop and FTRL.

Invariant: as in `rule_specs`, a spec that exists is valid and never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from windlass_proto.arguments import refused_in_words
from windlass_proto.hyper_parameters import (
    require_flag,
    require_not_negative,
    require_positive,
    require_share,
    require_shared,
)
from windlass_proto.schedules import Rate


@refused_in_words
@dataclass(frozen=True, slots=True)
class Adagrad:
    """Adagrad: each parameter's rate falls with the sum of its squared gradients.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        lr_decay: step t uses lr / (1 + (t - 1) * lr_decay), >= 0.
        weight_decay: L2 penalty added to the gradient, >= 0.
        initial_accumulator_value: the sum before the first step, >= 0.
        eps: added to the root of the sum, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-2
    lr_decay: float = 0.0
    weight_decay: Rate = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_not_negative(self, "lr_decay", "initial_accumulator_value", "eps")


@refused_in_words
@dataclass(frozen=True, slots=True)
class Adadelta:
    """Adadelta: steps in the size of earlier steps, so that no rate needs to be chosen.

    Args:
        lr: what the step is multiplied by, >= 0.
        rho: share of the running means of squares kept each step, in [0, 1).
        eps: added to both means under their roots, > 0; it sets the size of the first steps.
        weight_decay: L2 penalty added to the gradient, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1.0
    rho: float = 0.9
    eps: float = 1e-6
    weight_decay: Rate = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_share(self, "rho")
        require_positive(self, "eps")


@refused_in_words
@dataclass(frozen=True, slots=True)
class RMSprop:
    """RMSprop: gradients divided by the root of a running mean of their squares.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        alpha: share of the mean of squares kept each step, in [0, 1).
        eps: added to the root, >= 0.
        weight_decay: L2 penalty added to the gradient, >= 0.
        momentum: share of the buffer of divided gradients kept each step, >= 0; 0: there is no buffer.
        centered: divide by the root of the variance instead, which keeps a running mean of gradients as well.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-2
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: Rate = 0.0
    momentum: float = 0.0
    centered: bool = False
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_share(self, "alpha")
        require_not_negative(self, "eps", "momentum")
        require_flag(self, "centered")


@refused_in_words
@dataclass(frozen=True, slots=True)
class FTRL:
    """FTRL-Proximal: Adagrad's rates with an L1 penalty that makes weights exactly 0.

    Args:
        lr: the paper's alpha, >= 0.
        beta: added to the root of the sum of squares, > 0.
        l1: L1 penalty, >= 0.
        l2: L2 penalty, >= 0; a tensor's decay_mult multiplies it.
        clip_value: the gradient is cut to [-clip_value, clip_value] before it is used; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 0.1
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_positive(self, "beta")
        require_not_negative(self, "l1", "l2")

    @property
    def weight_decay(self) -> float:
        """What a tensor's decay_mult multiplies."""
        return self.l2
