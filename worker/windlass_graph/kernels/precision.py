"""Forward functions whose loops know float32 and float64, for operands of every dtype.

Invariant: within `forward` all float arrays, and all numbers that are no indices, have one dtype: that of the first
output, or float32 where that one is float16. What is of it already is handed on as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from windlass_graph.op import Attrs, Forward, Run


def in_one_precision(forward: Forward, *, indices: tuple[int, ...] = ()) -> Forward:
    """`forward` behind conversions; the inputs at `indices` are left as they are."""

    @functools.wraps(forward)
    def converted(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        wanted = "float64" if outs[0].dtype == "float64" else "float32"
        given = [array if i in indices else array.astype(wanted, copy=False) for i, array in enumerate(ins)]
        made = [
            array if array.dtype == wanted or array.dtype.kind != "f" else xp.empty(array.shape, wanted)
            for array in outs
        ]
        forward(xp, attrs, given, made, run)
        for array, filled in zip(outs, made, strict=True):
            if filled is not array:
                array[...] = filled

    return converted
