"""Ops that draw random numbers: dropout, and samples of distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from windlass_graph.op import FLAT, REQUIRED, Attrs, Op, Run, enter
from windlass_graph.tensor_type import TensorType
from windlass_proto.errors import UsageError


def _dropped_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (ins[0], TensorType(ins[0].shape, ins[0].dtype))


def _drop(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    out, mask = outs
    if not attrs["training"] or attrs["p"] == 0:
        mask.fill(1)
        out[...] = ins[0]
        return
    kept = 1 - attrs["p"]
    mask[...] = xp.asarray(run.rng.random(mask.shape, "float32")) < kept
    mask *= mask.dtype.type(1 / kept)
    xp.multiply(ins[0], mask, out=out)


def _refuse(attrs: Attrs) -> None:
    if not 0 <= attrs["p"] < 1:
        raise UsageError("dropout's p is a share to drop", next_move="Give 0 <= p < 1.", p=attrs["p"])


def _sample_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(attrs["shape"], attrs["dtype"]),)


def _uniform(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = xp.asarray(run.rng.uniform(attrs["low"], attrs["high"], outs[0].shape))


def _normal(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = xp.asarray(run.rng.normal(attrs["mean"], attrs["std"], outs[0].shape))


_SAMPLE = {"shape": REQUIRED, "dtype": "float32"}

enter(
    Op(
        "dropout",
        ("x",),
        _dropped_types,
        _drop,
        (lambda b: b.g * b.outs[1],),
        attrs={"p": 0.5, "training": None},
        random=True,
        check=_refuse,
        doc="in training: each element 0 with probability p, else over 1 - p",
    ),
    Op(
        "random_uniform",
        (),
        _sample_types,
        _uniform,
        FLAT,
        attrs={**_SAMPLE, "low": 0.0, "high": 1.0},
        random=True,
        doc="a sample of [low, high)",
    ),
    Op(
        "random_normal",
        (),
        _sample_types,
        _normal,
        FLAT,
        attrs={**_SAMPLE, "mean": 0.0, "std": 1.0},
        random=True,
        doc="a sample of a normal distribution",
    ),
)
