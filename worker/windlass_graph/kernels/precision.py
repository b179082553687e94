"""Forward functions whose loops know float32 and float64 and the host's memory, for operands of every dtype and device.

Invariant: within `forward` all float arrays, and all numbers that are no indices, have one dtype: that of the first
output, or float32 where that one is float16. What is of it already is handed on as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from windlass_graph.op import Attrs, Forward, Run


def in_one_precision(forward: Forward, *, indices: tuple[int, ...] = (), device: bool = False) -> Forward:
    """`forward` behind conversions; the inputs at `indices` are left as they are.

    Unless it says that it can compute on a `device`, arrays there go through the host's memory: slow, and right.
    """

    @functools.wraps(forward)
    def converted(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        if xp is not np and not device:
            _through_host(converted, xp, attrs, ins, outs, run)
            return
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


def _through_host(forward: Forward, xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    scratch = None if run.scratch is None else np.empty(run.scratch.shape, np.uint8)
    made = [np.empty(array.shape, array.dtype) for array in outs]
    forward(np, attrs, [array.get() for array in ins], made, Run(run.rng, scratch, run.threads))
    for array, filled in zip(outs, made, strict=True):
        array[...] = xp.asarray(filled)
