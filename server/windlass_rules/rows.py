"""Update rules on rows: the kernel of a rule, run on the rows that a push names and on no others.

    for each i: the rule's step on row numbers[i] with the gradient gscale * g[i]

Invariant: a row's step is the dense kernel's on that row, bit for bit; rows that are not named keep weights and slots
(the lazy reading of momentum and moments, as in torch.optim.SparseAdam). `step` counts the updates of the band, not of
the row, so Adam's bias corrections are those of the table. Rules that step whole rows have no other kernel; their slots
may hold one value a row.

Rows lie anywhere in memory that is larger than any cache, so each is asked for some rows before it is used; and a run
of them is brought together in cache, stepped as one, and taken back. A kernel called for each row of 16 float32 spent
its time on the ends of its loops: SGD made 27 M rows a second among 100,000 and makes 69 so, Adagrad 14 and 25 (one
core; 100,000 rows a call; best of 40).

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

from windlass_proto import kernel_cache, memory, row_moves
from windlass_proto.ids import AHEAD, NONE, prefetch
from windlass_proto.row_moves import copy_row
from windlass_proto.rule_specs import RuleSpec
from windlass_rules import reduce, row_sums
from windlass_rules.registry import known_dtype, step_scalars, variant_of
from windlass_rules.rule import RowKernel, Slot, Variant, Vector

_NONE: Final = np.uint32(NONE)
# 64 KiB of float32 an array: they stay in the second cache. With 2,048 SGD made 52 M rows a second, with these 69.
_NEAR_ELEMENTS: Final = 16 * 1024
_BUILDING = threading.Lock()
_SCRATCH = threading.local()
_READY: dict[tuple[str, np.dtype[Any]], Callable[..., None]] = {}


@dataclass(frozen=True, slots=True)
class RowRule:
    """What a server needs to apply a rule to rows."""

    variant: Variant
    dtype: np.dtype[Any]
    kernel: Callable[..., None] = field(repr=False)

    @property
    def slots(self) -> tuple[Slot, ...]:
        """What is kept beside the rows."""
        return self.variant.slots

    def update(
        self,
        arrays: tuple[Vector, ...],
        numbers: npt.NDArray[np.uint32],
        dim: int,
        g: Vector,
        gscale: float,
        scalars: Vector,
    ) -> None:
        """One step on each row of `numbers`, which are different, or NONE and passed over.

        Args:
            arrays: the rows and then each slot's, each as wide as it says for `dim`.
            g: as many rows as `numbers`, one after the other.
        """
        widths = (dim, *(slot.width(dim) for slot in self.slots))
        near = _near(max(1, _NEAR_ELEMENTS // dim), widths, self.dtype)
        self.kernel(arrays, widths, near, near[1:], numbers, dim, g, gscale, scalars)

    def scalars(self, spec: RuleSpec, step: int, clock: int = 0, *, lr_mult: float = 1.0) -> Vector:
        """The numbers of 1-based `step`; schedules follow the clock."""
        return step_scalars(self.variant.name, self.dtype, spec, step, lr_mult, 1.0, clock)


def _near(rows: int, widths: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Vector, ...]:
    """Warm arrays of this thread."""
    known: dict[Any, tuple[Vector, ...]] | None = getattr(_SCRATCH, "near", None)
    if known is None:
        known = _SCRATCH.near = {}
    key = (rows, widths, dtype)
    if key not in known:
        known.clear()  # a thread mostly serves one table
        known[key] = tuple(memory.aligned_zeros(rows * width, dtype) for width in widths)
    return known[key]


def build_rows(spec: RuleSpec, dtype: npt.DTypeLike) -> RowRule:
    """The row kernel of `spec` for rows of `dtype`; as `build`, it compiles where this machine has not. Thread-safe.

    Raises:
        UsageError: the rule has no kernel for the dtype.
    """
    kind = known_dtype(spec, dtype)
    module, variant, _ = variant_of(spec)
    reduce.build(kind)
    with _BUILDING:
        key = (variant.name, kind)
        if key not in _READY:
            _READY[key] = _compiled(module, variant, kind)
        return RowRule(variant, kind, _READY[key])


def _compiled(module: ModuleType, variant: Variant, dtype: np.dtype[Any]) -> Callable[..., None]:
    # Numba's cache compares this file alone: a changed rule must not find the code of the old one.
    digest = zlib.crc32("".join(map(inspect.getsource, (module, row_sums, row_moves))).encode())
    return kernel_cache.compiled(*on_rows(variant, dtype), dtype, f"rows-{variant.name}-{digest:08x}")


def on_rows(variant: Variant, dtype: np.dtype[Any]) -> tuple[Callable[..., None], list[Any]]:
    """What is compiled for a variant: `update_rows`, and its Numba signature."""
    vector = kernel_cache.vector_type(dtype)
    readable = kernel_cache.vector_type(dtype, readonly=True)
    numba_types: Any = types
    slots = numba_types.UniTuple(vector, len(variant.slots)) if variant.slots else numba_types.Tuple(())
    numbers = types.Array(types.uint32, 1, "C", readonly=True)
    scalar = kernel_cache.scalar_type(dtype)
    arrays = numba_types.UniTuple(vector, 1 + len(variant.slots))
    widths = numba_types.UniTuple(types.intp, 1 + len(variant.slots))
    signature = types.void(arrays, widths, arrays, slots, numbers, types.intp, readable, scalar, readable)
    register_jitable(error_model="numpy")(variant.kernel)
    step = variant.kernel if variant.by_row else _by_element(variant)
    return _on_rows(step), [signature]


@register_jitable(error_model="numpy")
def _bring(array: Vector, numbers: Any, dim: int, near: Vector) -> None:
    """Rows `numbers` of `array` into `near`, one after the other."""
    n = numbers.size
    line = 64 // array.itemsize
    for i in range(n):
        if i + AHEAD < n and numbers[i + AHEAD] != _NONE:
            for j in range(0, dim, line):
                prefetch(array, np.int64(numbers[i + AHEAD]) * dim + j)
        if numbers[i] != _NONE:
            copy_row(array, np.int64(numbers[i]) * dim, near, i * dim, dim)


@register_jitable(error_model="numpy")
def _take_back(near: Vector, numbers: Any, dim: int, array: Vector) -> None:
    """What `_bring` brought, to where it came from."""
    for i in range(numbers.size):
        if numbers[i] != _NONE:
            copy_row(near, i * dim, array, np.int64(numbers[i]) * dim, dim)


def _by_element(variant: Variant) -> RowKernel:
    """A dense kernel as a row kernel, with a name of its own: see `kernel_cache.compiled`."""
    kernel = variant.kernel

    def step(w: Vector, slots: tuple[Vector, ...], _dim: int, g: Vector, gscale: float, scalars: Vector) -> None:
        kernel(w, slots, 0, g, gscale, scalars)

    kernel_cache.call_after(step, variant.name)
    register_jitable(error_model="numpy")(step)
    return step


def _on_rows(step: RowKernel) -> Callable[..., None]:
    """`step` on rows that are brought together in cache and taken back."""

    def update_rows(
        arrays: tuple[Vector, ...],
        widths: tuple[int, ...],
        near: tuple[Vector, ...],
        near_slots: tuple[Vector, ...],
        numbers: Any,
        dim: int,
        g: Vector,
        gscale: float,
        scalars: Vector,
    ) -> None:
        n = numbers.size
        if g.size != n * dim:
            raise IndexError("an update's rows and gradients differ in number")
        held = near[0].size // dim
        for begin in range(0, n, held):
            run = numbers[begin : begin + held]
            for k in range(len(arrays)):
                _bring(arrays[k], run, widths[k], near[k])
            step(near[0], near_slots, dim, g[begin * dim : (begin + run.size) * dim], gscale, scalars)
            for k in range(len(arrays)):
                _take_back(near[k], run, widths[k], arrays[k])

    return update_rows
