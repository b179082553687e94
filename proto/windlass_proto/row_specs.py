"""Rules that step whole rows of a sparse table: row-wise Adagrad, and Adagrad and FTRL with a penalty on rows.

They keep one accumulator a row, so a row has one rate; a dense tensor has no rows, and they are refused for it.

Invariant: as in `rule_specs`, a spec that exists is valid and never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from windlass_proto.arguments import refused_in_words
from windlass_proto.hyper_parameters import require_not_negative, require_positive, require_shared
from windlass_proto.schedules import Rate


@refused_in_words
@dataclass(frozen=True, slots=True)
class RowWiseAdagrad:
    """Adagrad with one sum a row, of the means of its squared gradients: a table costs its rows and little more.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        lr_decay: step t uses lr / (1 + (t - 1) * lr_decay), >= 0.
        weight_decay: L2 penalty added to the gradient, >= 0.
        initial_accumulator_value: the sum before the first step, >= 0.
        eps: added to the root of the sum, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-2
    lr_decay: float = 0.0
    weight_decay: Rate = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    clip_value: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_not_negative(self, "lr_decay", "initial_accumulator_value", "eps")


@refused_in_words
@dataclass(frozen=True, slots=True)
class GroupAdagrad:
    """Row-wise Adagrad with a group lasso: rows that gradients do not hold up become exactly 0.

    Args:
        lr: learning rate, >= 0, or a schedule of it.
        l21: penalty on the length of a row, times the root of its dim, >= 0.
        weight_decay: L2 penalty added to the gradient, >= 0.
        initial_accumulator_value: the sum before the first step, >= 0.
        eps: added to the root of the sum, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before weight decay; None: it is not.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 1e-2
    l21: float = 0.0
    weight_decay: Rate = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    clip_value: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_not_negative(self, "l21", "initial_accumulator_value", "eps")


@refused_in_words
@dataclass(frozen=True, slots=True)
class GroupFTRL:
    """FTRL-Proximal with one rate a row, and penalties on values (l1), on their squares (l2) and on whole rows (l21).

    Args:
        lr: the paper's alpha, >= 0.
        beta: added to the root of the sum of squares, > 0.
        l1: L1 penalty, >= 0.
        l2: L2 penalty, >= 0.
        l21: penalty on the length of a row, times the root of its dim, >= 0.
        clip_value: the gradient is cut to [-clip_value, clip_value] before it is used; None: it is not.

    Raises:
        UsageError: if a value is not a finite number in its range.
    """

    lr: Rate = 0.1
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    l21: float = 0.0
    clip_value: float | None = None

    def __post_init__(self) -> None:
        require_shared(self)
        require_positive(self, "beta")
        require_not_negative(self, "l1", "l2", "l21")

    @property
    def weight_decay(self) -> float:
        """What a tensor's decay_mult multiplies."""
        return self.l2
