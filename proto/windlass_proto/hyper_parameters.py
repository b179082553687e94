"""Checks of a rule's hyper-parameters: each makes the value a float (or a bool) or refuses it by name.

A spec calls them from `__post_init__`, so that one that exists is valid; an int or a NumPy scalar is kept as
the float it equals, so that equal rules have equal bytes. What every rule has in common (`lr`,
`weight_decay`, clipping) is checked in one place, `require_shared`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Final

from windlass_proto.errors import UsageError
from windlass_proto.schedules import Plateau, Schedule, StalenessAware

CLIPS: Final = ("clip_value", "clip_norm", "clip_global_norm")
"""What a gradient may be bounded by."""

SCHEDULED: Final = ("lr", "weight_decay")
"""Hyper-parameters that may be a schedule instead of a number."""


def require_shared(spec: Any) -> None:
    """What rules have in common: rates are >= 0 or schedules, bounds of clipping None or > 0.

    `clip_norm` bounds the norm of each tensor's gradient, `clip_global_norm` that of all tensors of one `init` together
    (what `torch.nn.utils.clip_grad_norm_` does): where the norm is larger, the gradient is scaled down to it, before
    `clip_value` cuts what is left. One of the two at most.
    """
    named = [field.name for field in dataclasses.fields(spec)]
    require_not_negative(spec, *(name for name in ("lr", "weight_decay") if name in named))
    bounds = [name for name in named if name in CLIPS and getattr(spec, name) is not None]
    require_positive(spec, *bounds)
    if {"clip_norm", "clip_global_norm"} <= set(bounds):
        raise UsageError(
            f"{type(spec).__name__} takes clip_norm or clip_global_norm",
            clip_norm=spec.clip_norm,
            clip_global_norm=spec.clip_global_norm,
            next_move="Bound each tensor's gradient, or all of them together.",
        )


def require_finite(spec: Any, *names: str) -> None:
    """Each named field is a finite number, or a schedule where one may be."""
    for name in names:
        object.__setattr__(spec, name, _finite(spec, name, getattr(spec, name)))


def require_not_negative(spec: Any, *names: str) -> None:
    """Each named field is a finite number >= 0, or a schedule where one may be."""
    require_finite(spec, *names)
    for name in names:
        if type(getattr(spec, name)) is float and getattr(spec, name) < 0:
            raise _refusal(spec, name, f"{name} >= 0")


def require_positive(spec: Any, *names: str) -> None:
    """Each named field is a finite number > 0."""
    require_finite(spec, *names)
    for name in names:
        if getattr(spec, name) <= 0:
            raise _refusal(spec, name, f"{name} > 0")


def require_share(spec: Any, *names: str) -> None:
    """Each named field is a number in [0, 1): the part of a running mean that a step keeps."""
    require_finite(spec, *names)
    for name in names:
        if not 0 <= getattr(spec, name) < 1:
            raise _refusal(spec, name, f"{name} in [0, 1)")


def require_flag(spec: Any, *names: str) -> None:
    """Each named field is True or False."""
    for name in names:
        if not isinstance(getattr(spec, name), bool):
            raise UsageError(f"{type(spec).__name__} takes {name}=True or False", **{name: repr(getattr(spec, name))})


def require_betas(spec: Any) -> None:
    """`betas` is a pair of numbers in [0, 1)."""
    rule = type(spec).__name__
    try:
        beta1, beta2 = spec.betas
    except (TypeError, ValueError) as cause:
        raise UsageError(f"{rule} takes betas=(beta1, beta2)", betas=spec.betas) from cause
    betas = (_finite(spec, "betas", beta1), _finite(spec, "betas", beta2))
    if not all(0 <= beta < 1 for beta in betas):
        raise _refusal(spec, "betas", "betas in [0, 1)")
    object.__setattr__(spec, "betas", betas)


def _refusal(spec: Any, name: str, wanted: str) -> UsageError:
    return UsageError(
        f"{type(spec).__name__} takes {wanted}", **{name: getattr(spec, name)}, next_move=f"Change {name}."
    )


def _finite(spec: Any, name: str, value: object) -> Any:
    if isinstance(value, Schedule) and name in SCHEDULED:
        if isinstance(value, Plateau | StalenessAware) and name != "lr":
            raise UsageError(
                f"{type(spec).__name__} takes such a schedule as lr, and as nothing else",
                **{name: repr(value)[:80]},
                next_move="Give it to lr; a decoupled decay goes down with lr.",
            )
        return value
    try:
        if isinstance(value, (bool, str, bytes)):
            raise TypeError("not a number")
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError) as cause:
        or_schedule = " or a schedule" if name in SCHEDULED else ""
        wanted = f"{type(spec).__name__} takes a number{or_schedule} as {name}"
        raise UsageError(wanted, **{name: repr(value)}) from cause
    if not math.isfinite(number):
        raise UsageError(f"{type(spec).__name__} takes a finite {name}", **{name: number}, next_move=f"Change {name}.")
    return number
