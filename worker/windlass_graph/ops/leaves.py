"""Where graphs begin: variables and constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from windlass_graph.op import FLAT, REQUIRED, Attrs, Op, Run, enter
from windlass_graph.tensor_type import UNKNOWN, TensorType


def _constant_type(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    array = attrs["value"].array
    return (TensorType(array.shape, None if attrs["weak"] else array.dtype.name),)


def _fill(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    outs[0][...] = xp.asarray(attrs["value"].array)


def _unbound(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    raise AssertionError("variables are fed, not computed")


enter(
    Op(
        "variable",
        (),
        lambda attrs, ins: (UNKNOWN,),
        _unbound,
        FLAT,
        attrs={"auxiliary": False},
        doc="Where values come into a graph.",
    ),
    Op(
        "constant",
        (),
        _constant_type,
        _fill,
        FLAT,
        attrs={"value": REQUIRED, "weak": False},
        doc="An array that never changes; a weak one takes the dtype of what it meets.",
    ),
)
