"""Ops over sequences: the loss of connectionist temporal classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from windlass_graph import functions as F
from windlass_graph.kernels.precision import in_one_precision
from windlass_graph.op import FLAT, Attrs, Backward, Missing, Op, Run, enter
from windlass_graph.tensor_type import ContradictionError, TensorType, as_float
from windlass_proto.errors import UsageError


def _loss_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    x, labels, *lengths = ins
    if x.shape is not None and len(x.shape) != 3:
        raise ContradictionError(f"scores of {x}: they are (steps, batch, classes)")
    if labels.shape is not None and len(labels.shape) != 2:
        raise ContradictionError(f"labels of {labels}: they are (batch, labels), padded to one length")
    batch = None if x.shape is None else x.shape[1]
    for each in (labels, *lengths):
        if each.shape is not None and batch is not None and each.shape[:1] not in ((batch,), (None,)):
            raise ContradictionError(f"{each} for a batch of {batch}")
    dtype = as_float(x.dtype)
    return (TensorType((batch,), dtype), TensorType(x.shape, dtype))


def _checked(xp: Any, attrs: Attrs, ins: Sequence[Any]) -> list[Any]:
    """Labels and lengths as int32. Those of a GPU are looked at too, and waited for: kernels write where they say.

    Raises:
        UsageError: a length is longer than its axis, or a label is no class or the blank.
    """
    steps, _, classes = ins[0].shape
    labels, input_lengths, label_lengths = (np.asarray(array if xp is np else array.get()) for array in ins[1:])
    for name, lengths, longest in (
        ("input_lengths", input_lengths, steps), ("label_lengths", label_lengths, labels.shape[1])
    ):  # fmt: skip
        if lengths.size and not (lengths.min() >= 0 and lengths.max() <= longest):
            raise UsageError(
                f"{name} lie outside their axis", next_move="Give 0 to its length.", got=lengths.tolist(), axis=longest
            )
    used = labels[np.arange(labels.shape[1]) < label_lengths.reshape(-1, 1)]
    if used.size and not (used.min() >= 0 and used.max() < classes and not np.any(used == attrs["blank"])):
        raise UsageError(
            "a label of ctc_loss is no class, or is the blank",
            next_move="Labels are classes other than the blank.",
            smallest=int(used.min()),
            largest=int(used.max()),
            classes=classes,
            blank=attrs["blank"],
        )
    return [array.astype("int32") for array in ins[1:]]


def _loss(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_ctc
    from windlass_graph.kernels.ctc import ctc

    if not 0 <= attrs["blank"] < ins[0].shape[2]:
        raise UsageError("the blank is a class", next_move="Give 0 to classes - 1.", blank=attrs["blank"])
    labels, input_lengths, label_lengths = _checked(xp, attrs, ins)
    if xp is np:
        ctc(ins[0], labels, input_lengths, label_lengths, outs[0], outs[1], attrs["blank"], run.threads)
    else:
        device_ctc.ctc(xp, ins[0], labels, input_lengths, label_lengths, outs[0], outs[1], attrs["blank"])


def _loss_rule(b: Backward) -> Any:
    return F.ctc_loss_gradient(b.g, b.outs[1])


def _scaled(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    xp.multiply(ins[1], ins[0].reshape(-1, 1), out=outs[0])


enter(
    Op(
        "ctc_loss",
        ("x", "labels", "input_lengths", "label_lengths"),
        _loss_types,
        in_one_precision(_loss, indices=(1, 2, 3)),
        (_loss_rule, FLAT, FLAT, FLAT),
        attrs={"blank": 0},
        doc="-log of the probability that softmax(x) spells the labels, x of (steps, batch, classes)",
    ),
    Op(
        "ctc_loss_gradient",
        ("g", "by_x"),
        lambda attrs, ins: (TensorType(ins[1].shape, as_float(ins[1].dtype)),),
        _scaled,
        (
            lambda b: F.sum(b.g * b.y, axis=(0, 2)),
            Missing("the loss of connectionist temporal classification is differentiated once"),
        ),
        doc="the gradient of each sequence's loss by its scores, times g",
    ),
)
