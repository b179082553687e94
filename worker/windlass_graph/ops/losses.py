"""The softmax family and losses with gradients of their own.

`softmax_output` and `make_loss` follow MXNet's: what comes back from their gradient is the loss's, whatever gradient
reaches them from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from windlass_graph import functions as F
from windlass_graph.op import FLAT, Attrs, Backward, Missing, Op, Run, enter
from windlass_graph.ops.elementwise import floats
from windlass_graph.ops.indexing import checked_indices
from windlass_graph.tensor_type import ContradictionError, TensorType, as_float
from windlass_proto.errors import UsageError

_AXIS = {"axis": -1}


def _float_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(ins[0].shape, as_float(ins[0].dtype)),)


def _has_loops(xp: Any, axis: int, *arrays: Any) -> bool:
    """Whether the compiled loops over rows take them: on the host, by the last axis, in one precision."""
    dtype, rank = arrays[0].dtype, arrays[0].ndim
    alike = xp is np and axis in (-1, rank - 1) and rank > 0 and arrays[0].size > 0
    return alike and dtype.char in "fd" and all(each.dtype == dtype for each in arrays)


def _softmax(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    axis, out = attrs["axis"], outs[0]
    [x] = floats(ins[:1], out.dtype)
    if _has_loops(xp, axis, x, out):
        from windlass_graph.kernels.softmax import softmax

        softmax(x.reshape(-1, out.shape[-1]), out.reshape(-1, out.shape[-1]), run.threads)
        return
    xp.subtract(x, x.max(axis=axis, keepdims=True), out=out)
    xp.exp(out, out=out)
    out /= out.sum(axis=axis, keepdims=True)


def _log_softmax(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    axis, out = attrs["axis"], outs[0]
    [x] = floats(ins[:1], out.dtype)
    if _has_loops(xp, axis, x, out):
        from windlass_graph.kernels.softmax import log_softmax

        log_softmax(x.reshape(-1, out.shape[-1]), out.reshape(-1, out.shape[-1]), run.threads)
        return
    xp.subtract(x, x.max(axis=axis, keepdims=True), out=out)
    out -= xp.log(xp.exp(out).sum(axis=axis, keepdims=True))


def _softmax_rule(b: Backward) -> Any:
    axis = b.attrs["axis"]
    return b.out * (b.g - F.sum(b.g * b.out, axis=axis, keepdims=True))


def _log_softmax_rule(b: Backward) -> Any:
    axis = b.attrs["axis"]
    return b.g - F.exp(b.out) * F.sum(b.g, axis=axis, keepdims=True)


def _labelled_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    scores, labels = ins
    dtype = as_float(scores.dtype)
    if scores.shape is None:
        return (TensorType(labels.shape, dtype), TensorType(None, dtype))
    if not scores.shape:
        raise ContradictionError("scores have no axis of classes")
    rows = scores.shape[:-1]
    if labels.shape is not None and (
        len(labels.shape) != len(rows)
        or any(a != b for a, b in zip(rows, labels.shape, strict=True) if None not in (a, b))
    ):
        raise ContradictionError(f"scores of {scores.shape} need labels of {rows}, not {labels.shape}")
    return (TensorType(rows, dtype), TensorType(scores.shape, dtype))


def _labelled_complete(attrs: Attrs, ins: Sequence[TensorType]) -> Sequence[TensorType]:
    scores, labels = ins
    if scores.shape is None or labels.shape is not None:
        return ins
    return [scores, TensorType(scores.shape[:-1], labels.dtype)]


def _cross_entropy(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    loss, log_p = outs
    _log_softmax(xp, {"axis": -1}, ins, [log_p], run)
    rows = log_p.reshape(-1, log_p.shape[-1])
    labels = checked_indices(xp, ins[1].reshape(-1), rows.shape[1], "labels")
    loss.reshape(-1)[...] = -rows[xp.arange(len(rows)), labels]


def _cross_entropy_rule(b: Backward) -> Any:
    by_loss = F.cross_entropy_gradient(b.g, b.outs[1], b.y)
    onward = b.grads[1]  # of the log probabilities, which a gradient of the gradient reaches
    if onward is None:
        return by_loss
    return by_loss + onward - F.exp(b.outs[1]) * F.sum(onward, axis=-1, keepdims=True)


def _entropy_gradient(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    g, log_p, labels = ins
    out = outs[0]
    rows = out.reshape(-1, out.shape[-1])
    wide = checked_indices(xp, labels.reshape(-1), rows.shape[1], "labels")
    if _has_loops(xp, -1, log_p, g, out):
        from windlass_graph.kernels.softmax import cross_entropy_gradient

        cross_entropy_gradient(g.reshape(-1), log_p.reshape(rows.shape), wide, rows, run.threads)
        return
    xp.exp(log_p, out=out)
    rows[xp.arange(len(rows)), wide] -= 1
    rows *= g.reshape(-1, 1)


def _entropy_gradient_rule(b: Backward, index: int) -> Any:
    p = F.exp(b.y)
    if index == 0:
        by_score = b.g * (p - F.one_hot_like(b.ins[2], b.y))
        return F.sum(by_score, axis=-1)
    return b.g * F.expand_dims(b.x, axis=-1) * p


def _one_hot_like(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0].fill(0)
    rows = outs[0].reshape(-1, outs[0].shape[-1])
    rows[xp.arange(len(rows)), ins[0].reshape(-1).astype("int64")] = 1


def _softmax_output(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    _softmax(xp, {"axis": -1}, ins, outs, run)


def _softmax_output_rule(b: Backward) -> Any:
    return F.softmax_output_gradient(b.out, b.y, **b.attrs)


def _output_gradient(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    out = outs[0]
    out[...] = ins[0]
    rows = out.reshape(-1, out.shape[-1])
    rows[xp.arange(len(rows)), ins[1].reshape(-1).astype("int64")] -= 1
    scale = attrs["grad_scale"] / (len(rows) if attrs["normalization"] == "batch" else 1)
    if scale != 1:
        out *= out.dtype.type(scale)


def _same_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (ins[0],)


def _copy(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = ins[0]


_SCALES = {"grad_scale": 1.0, "normalization": "null"}


def _refuse_normalization(attrs: Attrs) -> None:
    if attrs["normalization"] not in ("null", "batch"):
        raise UsageError("this is no normalization", next_move="Known: null, batch.", got=attrs["normalization"])


enter(
    Op(
        "softmax",
        ("x",),
        _float_types,
        _softmax,
        (_softmax_rule,),
        attrs=_AXIS,
        inplace=(0,),
        doc="exp(x) / sum(exp(x)) over an axis",
    ),
    Op(
        "log_softmax",
        ("x",),
        _float_types,
        _log_softmax,
        (_log_softmax_rule,),
        attrs=_AXIS,
        inplace=(0,),
        doc="log(softmax(x)) over an axis",
    ),
    Op(
        "softmax_cross_entropy",
        ("scores", "labels"),
        _labelled_types,
        _cross_entropy,
        (_cross_entropy_rule, FLAT),
        complete=_labelled_complete,
        inplace=(0,),
        doc="-log(softmax(scores)[label]) for each row; labels are class indices",
    ),
    Op(
        "cross_entropy_gradient",
        ("g", "log_p", "labels"),
        lambda attrs, ins: (ins[1],),
        _entropy_gradient,
        (lambda b: _entropy_gradient_rule(b, 0), lambda b: _entropy_gradient_rule(b, 1), FLAT),
        inplace=(1,),
        doc="g * (exp(log_p) - one_hot(labels))",
    ),
    Op(
        "one_hot_like",
        ("labels", "like"),
        lambda attrs, ins: (ins[1],),
        _one_hot_like,
        FLAT,
        unread=(1,),
        doc="1 at each row's label, else 0, in the shape of `like`",
    ),
    Op(
        "softmax_output",
        ("scores", "label"),
        lambda attrs, ins: (_labelled_types(attrs, ins)[1],),
        _softmax_output,
        (_softmax_output_rule, FLAT),
        attrs=_SCALES,
        complete=_labelled_complete,
        parameters=frozenset({"label"}),
        check=_refuse_normalization,
        inplace=(0,),
        doc="softmax(scores); its gradient is that of the cross entropy with `label`, whatever comes from outside",
    ),
    Op(
        "softmax_output_gradient",
        ("p", "labels"),
        _same_types,
        _output_gradient,
        Missing("it stands for the gradient of a loss that is never computed; use softmax_cross_entropy"),
        attrs=_SCALES,
        check=_refuse_normalization,
        inplace=(0,),
        doc="(p - one_hot(labels)) * grad_scale, over the number of rows if normalization is batch",
    ),
    Op(
        "make_loss",
        ("x",),
        _same_types,
        _copy,
        (lambda b: F.ones_like(b.x) * b.attrs["grad_scale"],),
        attrs={"grad_scale": 1.0},
        view=True,
        doc="x as a loss: its gradient is grad_scale, whatever comes from outside",
    ),
)
