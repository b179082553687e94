"""One op on arrays, at once: types inferred, outputs allocated, the forward function called."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from windlass_graph.build import check_arity, fresh_name, misfit
from windlass_graph.device import Device, stream
from windlass_graph.node import caller_line
from windlass_graph.observation import WATCH, Ran, settle
from windlass_graph.op import Attrs, Op, Run
from windlass_graph.tensor_type import ContradictionError, TensorType


def evaluate(
    op: Op, attrs: Attrs, ins: Sequence[Any], known: Sequence[TensorType], device: Device
) -> tuple[list[Any], tuple[TensorType, ...]]:
    """All outputs of `op`, and their types. `ins` are C-contiguous arrays of the device's kind, of the types `known`.

    Raises:
        UsageError: the inputs do not fit the op.
    """
    types = inferred(op, attrs, known)
    xp = device.xp
    if op.view:
        return [ins[0].reshape(types[0].shape)], types
    outs = [xp.empty(each.known_shape, each.dtype) for each in types]
    scratch = None
    if op.scratch is not None:
        scratch = xp.empty(op.scratch(attrs, known), "uint8")
    run = Run(stream(device), scratch)
    if WATCH.observers:
        _observed(op, attrs, ins, outs, run, device)
    else:
        op.forward(xp, attrs, ins, outs, run)
    return outs, types


def _observed(op: Op, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run, device: Device) -> None:
    observers = WATCH.observers
    before = time.perf_counter_ns()
    op.forward(device.xp, attrs, ins, outs, run)
    settle(device)
    after = time.perf_counter_ns()
    nbytes = sum(out.nbytes for out in outs)
    event = Ran("op", op.name, op.name, caller_line(), outs, nbytes, device, before, after)
    for each in observers:
        each.ran(event)


def inferred(op: Op, attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    """The outputs' types, which are known as the inputs' are."""
    check_arity(op, len(ins), attrs)
    try:
        return op.infer(attrs, ins)
    except ContradictionError as cause:
        shown = ", ".join(str(each) for each in ins)
        raise misfit(op, fresh_name(op.name), shown, str(cause), caller_line()) from None
