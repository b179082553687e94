"""Scaled dot product attention: Vaswani et al., "Attention is all you need", 2017, section 3.2.1.

    p   = softmax(q k^T * scale), over the keys that a query may see
    out = p v

Any leading axes are batches; `windlass_graph.attention` makes heads one of them. The gradient is written with other
ops and holds to any order. A query that may see no key gets zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from windlass_graph import functions as F
from windlass_graph.kernels.precision import in_one_precision
from windlass_graph.op import FLAT, Attrs, Backward, Op, Run, enter, lookup
from windlass_graph.tensor_type import ContradictionError, TensorType, as_float, broadcast, promoted
from windlass_proto.errors import UsageError


def _check(attrs: Attrs) -> None:
    if attrs["scale"] is not None and not attrs["scale"] > 0:
        raise UsageError("scale multiplies the scores", next_move="Give more than 0.", scale=attrs["scale"])


def _inputs(attrs: Attrs) -> tuple[str, ...]:
    return ("q", "k", "v", "mask") if attrs["use_mask"] else ("q", "k", "v")


def _types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    dtype = as_float(promoted([each.dtype for each in ins[:3]]))
    shapes = [each.shape for each in ins[:3]]
    if any(shape is None for shape in shapes):
        return (TensorType(None, dtype), TensorType(None, dtype))
    q, k, v = (shape for shape in shapes if shape is not None)
    if min(map(len, (q, k, v))) < 2 or len({len(q), len(k), len(v)}) > 1:
        raise ContradictionError("queries, keys and values are (..., steps, features) with axes alike")
    for what, one, other in (
        ("features of queries and keys", q[-1:], k[-1:]), ("steps of keys and values", k[-2:-1], v[-2:-1]),
        ("batches of queries and keys", q[:-2], k[:-2]), ("batches of keys and values", k[:-2], v[:-2]),
    ):  # fmt: skip
        if any(a != b for a, b in zip(one, other, strict=True) if None not in (a, b)):
            raise ContradictionError(f"{what} differ: {one} and {other}")
    p = (*q[:-2], q[-2], k[-2])
    if attrs["use_mask"] and broadcast([ins[3].shape, p]) not in (p, None):
        raise ContradictionError(f"a mask of {ins[3]} for scores of {p}")
    return (TensorType((*q[:-1], v[-1]), dtype), TensorType(p, dtype))


def _scale(attrs: Attrs, features: int) -> float:
    return 1 / math.sqrt(features) if attrs["scale"] is None else attrs["scale"]


def _attend(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    q, k, v = ins[:3]
    out, p = outs
    xp.matmul(q, k.swapaxes(-1, -2), out=p)
    p *= p.dtype.type(_scale(attrs, q.shape[-1]))
    if attrs["use_mask"]:
        xp.copyto(p, -xp.inf, where=ins[3] == 0)
    if attrs["causal"]:
        xp.copyto(p, -xp.inf, where=xp.arange(p.shape[-1]) > xp.arange(p.shape[-2])[:, None])
    unseen = p.max(axis=-1, keepdims=True) == -xp.inf if attrs["use_mask"] or attrs["causal"] else None
    lookup("softmax").forward(xp, {"axis": -1}, [p], [p], run)
    if unseen is not None:
        xp.copyto(p, 0, where=unseen)
    xp.matmul(p, v, out=out)


def _by_scores(b: Backward) -> Any:
    """The gradient by q k^T."""
    features = None if b.x.type.shape is None else b.x.type.shape[-1]
    if features is None and b.attrs["scale"] is None:
        raise UsageError(
            "the gradient of attention needs to know how many features there are",
            next_move="Give the shape of q, or scale=.",
        )
    p = b.outs[1]
    by_p = F.matmul(b.g, b.ins[2], transpose_y=True)
    if b.grads[1] is not None:
        by_p = by_p + b.grads[1]
    return p * (by_p - F.sum(by_p * p, axis=-1, keepdims=True)) * _scale(b.attrs, features or 1)


enter(
    Op(
        "attention",
        _inputs,
        _types,
        in_one_precision(_attend, indices=(3,)),
        (
            lambda b: F.matmul(b.shared(_by_scores), b.y),
            lambda b: F.matmul(b.shared(_by_scores), b.x, transpose_x=True),
            lambda b: F.matmul(b.outs[1], b.g, transpose_x=True),
            FLAT,
        ),
        attrs={"scale": None, "causal": False, "use_mask": False},
        check=_check,
        doc="softmax(q k^T * scale) v over the last two axes; scale is 1 / sqrt(features) where none is given",
    ),
)
