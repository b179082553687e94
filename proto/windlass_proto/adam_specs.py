"""Adam and its relatives: rules with running means of the gradient and of its size.

Invariant: as in `rule_specs`, a spec that exists is valid and never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from windlass_proto.arguments import refused_in_words
from windlass_proto.hyper_parameters import (
    require_betas,
    require_flag,
    require_not_negative,
    require_positive,
    require_shared,
)
from windlass_proto.schedules import Rate


@refused_in_words
@dataclass(frozen=True, slots=True)
class Adam:
    """Adam, with weight decay (if any) added to the gradient.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        betas: share of the first and of the second moment kept each step, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: L2 penalty added to the gradient, >= 0.
        amsgrad: divide by the largest second moment so far, which is a third vector of state.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: Rate = 0.0
    amsgrad: bool = False
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_betas(self)
        require_not_negative(self, "eps")
        require_flag(self, "amsgrad")


@refused_in_words
@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay: the weight shrinks by lr * weight_decay, the moments never see it.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        betas: share of the first and of the second moment kept each step, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: share of the weight lost a step, in units of lr, >= 0.
        amsgrad: divide by the largest second moment so far, which is a third vector of state.
        clip_value: the gradient is cut to [-clip_value, clip_value] before it is used; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: Rate = 1e-2
    amsgrad: bool = False
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_betas(self)
        require_not_negative(self, "eps")
        require_flag(self, "amsgrad")


@refused_in_words
@dataclass(frozen=True, slots=True)
class NAdam:
    """Adam with Nesterov's momentum, whose share grows over the first steps.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        betas: share of the first and of the second moment kept each step, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: L2 penalty added to the gradient, or decoupled as in AdamW, >= 0.
        momentum_decay: at step t momentum has its full share but for 0.5 * 0.96^(t * momentum_decay), >= 0.
        decoupled_weight_decay: whether weight_decay shrinks the weight instead of entering the gradient.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: Rate = 0.0
    momentum_decay: float = 4e-3
    decoupled_weight_decay: bool = False
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_betas(self)
        require_not_negative(self, "eps", "momentum_decay")
        require_flag(self, "decoupled_weight_decay")


@refused_in_words
@dataclass(frozen=True, slots=True)
class Adamax:
    """Adam with a decaying maximum of the gradient's size in place of the second moment's root.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        betas: share of the mean and of the maximum kept each step, each in [0, 1).
        eps: added to the gradient's size, >= 0.
        weight_decay: L2 penalty added to the gradient, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 2e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
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
class AdaBelief:
    """Adam that divides by how far gradients lie from their running mean, not by their size.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        betas: share of the mean and of the mean squared distance kept each step, each in [0, 1).
        eps: added to the distance each step and to its root, > 0.
        weight_decay: L2 penalty added to the gradient, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-16
    weight_decay: Rate = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_betas(self)
        require_positive(self, "eps")


@refused_in_words
@dataclass(frozen=True, slots=True)
class FTML:
    """Follow the moving leader: FTRL that forgets, with Adam's rates.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        betas: share of earlier steps and of the second moment kept each step, each in [0, 1).
        eps: added to the root of the second moment, > 0.
        weight_decay: L2 penalty added to the gradient, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.
        clip_norm: a tensor's gradient longer than this is scaled down to it, before clip_value; None: it is not.
        clip_global_norm: the same of all tensors of one init taken together. One of the two at most.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 2.5e-3
    betas: tuple[float, float] = (0.6, 0.999)
    eps: float = 1e-8
    weight_decay: Rate = 0.0
    clip_value: float | None = None
    clip_norm: float | None = None
    clip_global_norm: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_betas(self)
        require_positive(self, "eps")
