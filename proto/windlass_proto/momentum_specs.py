"""SGD and the rules nearest to it: with momentum, along signs, compensated for delay, and plain accumulation.

Invariant: as in `rule_specs`, a spec that exists is valid and never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from windlass_proto.arguments import refused_in_words
from windlass_proto.errors import UsageError
from windlass_proto.hyper_parameters import (
    require_betas,
    require_finite,
    require_flag,
    require_not_negative,
    require_positive,
    require_share,
    require_shared,
)
from windlass_proto.schedules import Rate


@refused_in_words
@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent, with momentum (Polyak or Nesterov) if `momentum` is not 0.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        momentum: share of the buffer kept each step, >= 0.
        dampening: share of the gradient kept out of the buffer, finite.
        weight_decay: L2 penalty added to the gradient, >= 0.
        nesterov: look ahead along the buffer; needs momentum > 0 and dampening = 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range, or values contradict.
    """

    lr: Rate
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: Rate = 0.0
    nesterov: bool = False
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_finite(self, "dampening")
        require_not_negative(self, "momentum")
        require_flag(self, "nesterov")
        if self.nesterov and (self.momentum <= 0 or self.dampening != 0):
            raise UsageError(
                "Nesterov momentum needs momentum > 0 and dampening = 0",
                momentum=self.momentum,
                dampening=self.dampening,
                next_move="Set both so, or nesterov=False.",
            )


@refused_in_words
@dataclass(frozen=True, slots=True)
class Signum:
    """A step of size lr along the sign of the momentum; without momentum this is signSGD.

    Args:
        lr: size of every step, or a schedule of it, >= 0.
        momentum: share of the running mean of gradients kept each step, in [0, 1).
        weight_decay: share of the weight lost a step, in units of lr, >= 0 (decoupled).
        clip_value: the gradient is cut to [-clip_value, clip_value] before it enters the mean; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-2
    momentum: float = 0.9
    weight_decay: Rate = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_share(self, "momentum")


@refused_in_words
@dataclass(frozen=True, slots=True)
class Lion:
    """A step of size lr along the sign of a mean of momentum and gradient, with decoupled weight decay.

    Args:
        lr: size of every step, or a schedule of it, >= 0; a third to a tenth of what AdamW takes.
        betas: share of the momentum in the step's direction, and share of it kept each step, in [0, 1).
        weight_decay: share of the weight lost a step, in units of lr, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before it is used; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-4
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: Rate = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_betas(self)


@refused_in_words
@dataclass(frozen=True, slots=True)
class DCASGD:
    """SGD for late gradients: each is corrected by how far the weights moved since its worker last saw them.

    For "asp" and "ssp:N". Servers keep a copy of the tensors for each worker until its session ends.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        compensation: the paper's lambda, >= 0; 0 is plain asynchronous SGD. With `adaptive` about 2 is usual.
        adaptive: divide the compensation by the root of a running mean of squared gradients.
        alpha: share of that mean kept each step, in [0, 1).
        eps: added to that mean under its root, > 0.
        weight_decay: L2 penalty added to the compensated gradient, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before it is used; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-2
    compensation: float = 0.04
    adaptive: bool = False
    alpha: float = 0.95
    eps: float = 1e-7
    weight_decay: Rate = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_not_negative(self, "compensation")
        require_flag(self, "adaptive")
        require_share(self, "alpha")
        require_positive(self, "eps")


@refused_in_words
@dataclass(frozen=True, slots=True)
class Sum:
    """What is pushed is added: w = w + scale * gradient. For counters, statistics and means of weights.

    Args:
        scale: what a pushed value is multiplied by, finite; a tensor's lr_mult multiplies it once more.
        clip_value: what is pushed is cut to [-clip_value, clip_value] before scale; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    scale: float = 1.0
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_finite(self, "scale")

    @property
    def lr(self) -> float:
        """What a tensor's lr_mult multiplies."""
        return self.scale

    @property
    def weight_decay(self) -> float:
        """None: decay_mult changes nothing."""
        return 0.0
