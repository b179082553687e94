"""Programs that bring rows of an array together on a device, and put them back where they belong.

    packed   | row 3 | row 7 | row 8 |        whole   ... row 3 ... row 7 | row 8 ...

Runs have fields `numbers` (of rows), `width`, `whole` and `packed`; a run's size is that of its part of `packed`.

Invariant: numbers of one launch are different, so no two threads write one element. Values are moved, not computed
with: float32 and float64 as they are, to the bit.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from windlass_rules.cuda_source import CudaSource, Field, program

_FIELDS: Final[list[Field]] = [
    ("numbers", "const u64 *", "u8"),
    ("width", "u64", "u8"),
    ("whole", "real *", "u8"),
    ("packed", "real *", "u8"),
]
_AT: Final = "const u64 at = run.numbers[i / run.width] * run.width + i % run.width;"


@functools.cache
def gather_source(dtype: np.dtype[Any]) -> CudaSource:
    """`packed` becomes the rows of `whole` that are named."""
    return program(f"gather_rows_{dtype.name}", dtype, _FIELDS, [], [_AT, "run.packed[i] = run.whole[at];"])


@functools.cache
def scatter_source(dtype: np.dtype[Any]) -> CudaSource:
    """The rows of `whole` that are named become those of `packed`."""
    return program(f"scatter_rows_{dtype.name}", dtype, _FIELDS, [], [_AT, "run.whole[at] = run.packed[i];"])
