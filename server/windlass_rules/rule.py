"""What one update rule says about itself: its slots, its kernel and the numbers a step hands to the kernel.

Invariant: a kernel is a pure function of its arguments, in IEEE `+ - * / sqrt` alone, element by element,
so a block may be cut anywhere and any CPU gives the same bits. Everything that depends on the step (bias
corrections, decayed rates) is computed once, in float64 and outside of the kernel, by `step_numbers`.

Kernels are plain Python functions here. They run as they stand (slowly) and are what `kernel_cache` compiles.
They hold no number but what comes in: a literal is a float64 to Numba, and would widen a float32 loop.

`cut(x)` in a module's equations is x, cut to [-clip_value, clip_value] where the rule has one. In kernels it is
`min(max(x, -clip), clip)` with `clip = scalars[0]`, infinite without a clip_value: x stands first, so that a NaN
stays one (both are two packed instructions, and the bound costs no pass over memory).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.floating[Any]]
"""One dimension, contiguous, starting on 64 bytes; float32 or float64, the same for every array of a call."""

Kernel: TypeAlias = Callable[..., None]
"""`kernel(w, slots, begin, g, gscale, scalars, out=None)`.

Applies one step to w[begin : begin + g.size] and the same range of every slot, with the gradient
gscale * g, and also writes the new weights to `out` (of g's size) when it is given. `scalars` is made by
`RuleKernels.scalars`: the bound of clipping, then what `step_numbers` gave. `g` and `scalars` may be
read-only. Raises IndexError, before anything is written, when the range leaves the block or a size
differs.
"""


RowKernel: TypeAlias = Callable[..., None]
"""`kernel(w, slots, dim, g, gscale, scalars)`.

Applies one step to the g.size / dim whole rows at the front of w, one after the other; of a slot that has one value a
row, to as many of its first values. Arrays may be longer. Raises IndexError, before anything is written, when one is
shorter.
"""


class Per(enum.Enum):
    """What a slot holds one value for."""

    ELEMENT = "element"
    ROW = "row"
    WORKER = "worker"
    """An element, for each worker: the weight as the worker that pushes last saw it. A kernel reads it only."""


@dataclass(frozen=True, slots=True)
class Slot:
    """State that a rule keeps, in the weight's dtype; `fill` is its value before step 1."""

    name: str
    fill: float
    per: Per = Per.ELEMENT

    def width(self, dim: int) -> int:
        """How many values it has for a row of `dim`."""
        return 1 if self.per is Per.ROW else dim


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel of a rule, with what it keeps and how a step's numbers for it are made.

    step_numbers(spec, step, lr, weight_decay): lr and weight_decay are the spec's times the tensor's
    multipliers.

    A rule that scales its step by norms has `measure`, which goes first: a kernel with the arguments of `kernel` but
    for `out`, and at the end the lanes of two sums of squares (`norms`); and `trust(spec, w2, u2, weight_decay)`, which
    makes of the sums what lr is multiplied by.

    A variant that steps whole rows (`by_row`) has a `RowKernel`, for sparse tables alone.
    """

    name: str
    slots: tuple[Slot, ...]
    kernel: Kernel | RowKernel
    step_numbers: Callable[[Any, int, float, float], tuple[float, ...]]
    by_row: bool = False
    measure: Kernel | None = None
    trust: Callable[[Any, float, float, float], float] | None = None


def clipped(spec: Any, g: Vector) -> Vector:
    """`g` cut to the bounds of `spec`; for oracles."""
    return g if spec.clip_value is None else np.clip(g, -spec.clip_value, spec.clip_value)
