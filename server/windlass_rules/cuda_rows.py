"""Programs over rows of arrays on a device: rows brought together, put back where they belong, stepped by a rule.

    packed   | row 3 | row 7 | row 8 |        whole   ... row 3 ... row 7 | row 8 ...

Runs that move rows have fields `numbers` (of rows), `width`, `whole` and `packed`; a run's size is that of its part of
`packed`.

Invariant: numbers of one launch are different, so no two threads write one element. Values that are moved are not
computed with: float32 and float64 as they are, to the bit. Steps have the bits of `windlass_rules.rows`.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from windlass_proto.ids import NONE
from windlass_rules.cuda_loops import ElementLoop
from windlass_rules.cuda_row_loops import RowLoop
from windlass_rules.cuda_source import CudaSource, Field, identifier, program
from windlass_rules.rule import Variant

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


@functools.cache
def step_source(variant: Variant, dtype: np.dtype[Any]) -> CudaSource:
    """The twin of `rows.RowRule.update`: one step on each row that is named, or passed over as `NONE`.

    Runs have fields `w`, `slot0` ..., `numbers` (u32), `dim`, `g`, `gscale`, and `number0` ..., which are
    `RowRule.scalars`. A run's size is that of its gradients, or, of a rule that steps whole rows, how many rows it has.

    Raises:
        UsageError: the kernel has a form that has no twin.
    """
    number = "run.numbers[i]" if variant.by_row else "run.numbers[i / dim]"
    names = ["const u64 dim = run.dim;", "const real gscale = run.gscale;"]
    body = [f"const u64 row = {number};", f"if (row == {NONE:#x}u)", "    continue;"]
    if variant.by_row:
        by_row = RowLoop(variant)
        numbers = by_row.numbers
        body += by_row.body
    else:
        loop = ElementLoop(variant.kernel)
        numbers = loop.numbers
        names += ["real *__restrict__ w = run.w;", *loop.names]
        at = ["const real g_i = run.g[i];", "const u64 at = row * dim + i % dim;"]
        body += [*at, "{", "    const u64 i = at;", *(f"    {line}" for line in loop.body), "}"]
    fields: list[Field] = [
        ("w", "real *", "u8"),
        *((f"slot{k}", "real *", "u8") for k in range(len(variant.slots))),
        ("numbers", "const u32 *", "u8"),
        ("dim", "u64", "u8"),
        ("g", "const real *", "u8"),
        ("gscale", "real", "real"),
        *((f"number{k}", "real", "real") for k in range(numbers)),
    ]
    return program(f"step_rows_{identifier(variant)}_{dtype.name}", dtype, fields, names, body)
