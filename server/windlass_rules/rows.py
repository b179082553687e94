"""Update rules on rows: the kernel of a rule, run on the rows that a push names and on no others.

    for each i: the rule's step on row numbers[i] with the gradient gscale * g[i]

Invariant: a row's step is the dense kernel's on that row, bit for bit; rows that are not named keep weights and slots
(the lazy reading of momentum and moments, as in torch.optim.SparseAdam). `step` counts the updates of the band, not of
the row, so Adam's bias corrections are those of the table.

Rows lie anywhere in memory that is larger than any cache: each is asked for some rows before it is used. Among 4 M rows
of 16 float32 Adagrad took 2.1 M rows a second without that, 9.5 with it.

Where we differ: a dense momentum buffer holds the whole gradient after step 1, dampened or not; a row first touched
later starts from a buffer of zeros, dampened.
"""

from __future__ import annotations

import inspect
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import register_jitable

from windlass_proto import kernel_cache
from windlass_proto.errors import UsageError
from windlass_proto.ids import AHEAD, NONE, prefetch
from windlass_proto.rule_specs import RuleSpec, rule_name
from windlass_rules.registry import DTYPES, RULE_MODULES, RuleKernels, build
from windlass_rules.rule import Kernel, Variant, Vector

_NONE: Final = np.uint32(NONE)
_BUILDING = threading.Lock()
_READY: dict[tuple[str, np.dtype[Any]], Kernel] = {}


@dataclass(frozen=True, slots=True)
class RowRule:
    """What a server needs to apply a rule to rows.

    update(arrays, slots, numbers, dim, g, gscale, scalars): one step on each row of `numbers` (u32; NONE is passed
    over), with `g` as many rows, one after the other; `arrays` is the rows' array and then those of `slots`. `dense`
    has the rule's slots and scalars.
    """

    dense: RuleKernels
    update: Callable[..., None] = field(repr=False)

    def scalars(self, spec: RuleSpec, step: int) -> Vector:
        """The numbers of 1-based `step`."""
        return self.dense.scalars(spec, step)


def build_rows(spec: RuleSpec, dtype: npt.DTypeLike) -> RowRule:
    """The row kernel of `spec` for rows of `dtype`; as `build`, it compiles where this machine has not. Thread-safe.

    Raises:
        UsageError: the rule has no kernel for rows, or none for the dtype.
    """
    dense = build(spec, dtype)
    kind = np.dtype(dtype)
    if kind not in DTYPES:
        raise UsageError(f"{rule_name(spec)} has no kernels for rows of this dtype", dtype=kind.name)
    module = RULE_MODULES[type(spec)]
    variant: Variant = module.variant(spec)
    with _BUILDING:
        key = (variant.name, kind)
        if key not in _READY:
            _READY[key] = _compiled(module, variant, kind)
        return RowRule(dense, _READY[key])


def _compiled(module: ModuleType, variant: Variant, dtype: np.dtype[Any]) -> Kernel:
    vector = kernel_cache.vector_type(dtype)
    readable = kernel_cache.vector_type(dtype, readonly=True)
    numba_types: Any = types
    slots = numba_types.UniTuple(vector, len(variant.slots)) if variant.slots else numba_types.Tuple(())
    numbers = types.Array(types.uint32, 1, "C", readonly=True)
    scalar = kernel_cache.scalar_type(dtype)
    arrays = numba_types.UniTuple(vector, 1 + len(variant.slots))
    signature = types.void(arrays, slots, numbers, types.intp, readable, scalar, readable)
    # Numba's cache compares this file alone: a changed rule must not find the code of the old one.
    digest = zlib.crc32(inspect.getsource(module).encode())
    return kernel_cache.compiled(_on_rows(variant.kernel), [signature], dtype, f"rows-{variant.name}-{digest:08x}")


def _on_rows(kernel: Kernel) -> Kernel:
    """The dense kernel over rows, one call a row, which the compiler inlines."""
    register_jitable(error_model="numpy")(kernel)

    def update_rows(
        arrays: tuple[Vector, ...],
        slots: tuple[Vector, ...],
        numbers: Any,
        dim: int,
        g: Vector,
        gscale: float,
        scalars: Vector,
    ) -> None:
        rows = arrays[0]
        n = numbers.size
        if g.size != n * dim:
            raise IndexError("an update's rows and gradients differ in number")
        line = 64 // rows.itemsize
        for i in range(n):
            if i + AHEAD < n and numbers[i + AHEAD] != _NONE:
                ahead = np.int64(numbers[i + AHEAD]) * dim
                for array in arrays:
                    for j in range(0, dim, line):
                        prefetch(array, ahead + j)
            if numbers[i] != _NONE:
                kernel(rows, slots, np.int64(numbers[i]) * dim, g[i * dim : (i + 1) * dim], gscale, scalars)

    return update_rows
