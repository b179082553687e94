"""Layers of recurrent networks over all their steps: `rnn`, `lstm` and `gru`, each in one direction.

Data are `(steps, batch, features)`; what comes out is `(steps, batch, units)`, and of an `lstm` also the last cell.
Layers are stacked, and directions joined, by `windlass_graph.recurrent`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from windlass_graph import functions as F
from windlass_graph.kernels.precision import in_one_precision
from windlass_graph.op import REQUIRED, Attrs, Backward, Missing, Op, Run, enter
from windlass_graph.tensor_type import ContradictionError, Shape, TensorType, as_float, promoted
from windlass_proto.errors import UsageError

GATES: Final = {"rnn": 1, "lstm": 4, "gru": 3}
"""How many are stacked in the rows of a weight."""

_WEIGHTS: Final = ("i2h_weight", "h2h_weight", "i2h_bias", "h2h_bias")
_ONCE: Final = Missing("a recurrent layer is differentiated once; written step by step it has gradients of any order")


def _check(attrs: Attrs) -> None:
    if attrs["units"] < 1:
        raise UsageError("a layer has units", next_move="Give at least 1.", units=attrs["units"])
    if attrs.get("activation", "tanh") not in ("tanh", "relu"):
        raise UsageError("this is no activation of an rnn", next_move="Known: tanh, relu.", got=attrs["activation"])


def _states(kind: str) -> tuple[str, ...]:
    return ("h", "c") if kind == "lstm" else ("h",)


def _inputs(kind: str) -> Callable[[Attrs], tuple[str, ...]]:
    return lambda attrs: ("x", *_WEIGHTS, *(_states(kind) if attrs["use_state"] else ()))


def _shapes(kind: str, attrs: Attrs, x: TensorType) -> list[Shape]:
    """Of all inputs but the data."""
    if x.shape is not None and (len(x.shape) != 3 or x.shape[0] == 0):
        raise ContradictionError(f"data of {x}: they are (steps, batch, features), with a step at least")
    batch, features = (None, None) if x.shape is None else x.shape[1:]
    units = attrs["units"]
    stacked = GATES[kind] * units
    states: list[Shape] = [(batch, units)] * (len(_states(kind)) if attrs["use_state"] else 0)
    return [(stacked, features), (stacked, units), (stacked,), (stacked,), *states]


def _complete(kind: str) -> Callable[[Attrs, Sequence[TensorType]], Sequence[TensorType]]:
    def complete(attrs: Attrs, ins: Sequence[TensorType]) -> Sequence[TensorType]:
        dtype = as_float(ins[0].dtype)
        shapes = _shapes(kind, attrs, ins[0])
        return [ins[0], *(TensorType(s, each.dtype or dtype) for s, each in zip(shapes, ins[1:], strict=True))]

    return complete


def _types(kind: str) -> Callable[[Attrs, Sequence[TensorType]], tuple[TensorType, ...]]:
    """`out`, for an lstm the last cell; then `gates` and `cells` for the gradient."""

    def types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
        names = _inputs(kind)(attrs)
        for name, shape, each in zip(names[1:], _shapes(kind, attrs, ins[0]), ins[1:], strict=True):
            if each.shape is not None and (
                len(each.shape) != len(shape)
                or any(a != b for a, b in zip(each.shape, shape, strict=True) if None not in (a, b))
            ):
                raise ContradictionError(f"{name} of {each.shape} where {shape} is needed")
        dtype = as_float(promoted([each.dtype for each in ins]))
        steps, batch = (None, None) if ins[0].shape is None else ins[0].shape[:2]
        out = TensorType((steps, batch, attrs["units"]), dtype)
        gates = TensorType((steps, batch, GATES[kind] * attrs["units"]), dtype)
        last = (TensorType((batch, attrs["units"]), dtype),) if kind == "lstm" else ()
        cells = TensorType((0, batch, attrs["units"]), dtype) if kind == "rnn" else out
        return (out, *last, gates, cells)

    return types


def _gradient_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    """By x, the four weights, h and c."""
    x, w, u, out = ins[2:6]
    state = TensorType(None if out.shape is None else out.shape[1:], out.dtype)
    bias = TensorType(None if w.shape is None else w.shape[:1], out.dtype)
    shaped = [TensorType(each.shape, out.dtype) for each in (x, w, u)]
    return (*shaped, bias, bias, state, state)


def _begin(xp: Any, attrs: Attrs, like: Any, given: Sequence[Any]) -> tuple[Any, Any]:
    """The states before the first step; zeros where none are given, and where a kind has no c."""
    zeros = xp.zeros((like.shape[1], attrs["units"]), like.dtype)
    return (given[0] if given else zeros), (given[1] if len(given) > 1 else zeros)


def _layer(xp: Any, attrs: Attrs, kind: str, w: Any, u: Any) -> Any:
    from windlass_graph.kernels.recurrent import Layer

    return Layer(kind, w, u, attrs["reverse"], attrs.get("activation", "tanh"), xp)


def _forward(kind: str) -> Any:
    def forward(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        from windlass_graph.kernels import recurrent

        x, w, u, w_bias, u_bias = ins[:5]
        h, c = _begin(xp, attrs, x, ins[5:])
        out, gates, cells = outs[0], outs[-2], outs[-1]
        layer = _layer(xp, attrs, kind, w, u)
        recurrent.run(layer, x, w_bias, u_bias, h, c, out, gates, cells)
        if kind == "lstm":
            outs[1][...] = cells[layer.steps(len(x))[-1]]

    return in_one_precision(forward)


def _backward(kind: str) -> Any:
    def backward(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
        from windlass_graph.kernels import recurrent

        to_out, to_c, x, w, u, out, gates, cells = ins[:8]
        h, c = _begin(xp, attrs, x, ins[8:])
        last = to_c if kind == "lstm" else 0
        given = (to_out, last, x, h, c, out, gates, cells)
        recurrent.gradient(_layer(xp, attrs, kind, w, u), *given, recurrent.Gradients(*outs))

    return in_one_precision(backward)


def _gradient(kind: str) -> Callable[[Backward, int], Any]:
    def all_of_them(b: Backward) -> Any:
        to_c = b.grads[1] if kind == "lstm" else b.grads[0]
        return F.function(f"{kind}_gradient")(
            b.grads[0], to_c, *b.ins[:3], b.outs[0], b.outs[-2], b.outs[-1], *b.ins[5:], **b.attrs
        )

    return lambda b, index: b.shared(all_of_them)[index]


def _gradient_inputs(kind: str) -> Callable[[Attrs], tuple[str, ...]]:
    given = ("by_out", "by_c", "x", "i2h_weight", "h2h_weight", "out", "gates", "cells")
    return lambda attrs: (*given, *(_states(kind) if attrs["use_state"] else ()))


_DOCS: Final = {
    "rnn": "h = tanh(W x + b + U h + d) over all steps, or relu",
    "lstm": "a layer of long short-term memory over all steps, gates i, f, g, o; also the last cell",
    "gru": "a layer of gated recurrent units over all steps, gates r, z, n",
}

for _kind in GATES:
    _attrs = {"units": REQUIRED, "reverse": False, "use_state": False}
    if _kind == "rnn":
        _attrs["activation"] = "tanh"
    enter(
        Op(
            _kind,
            _inputs(_kind),
            _types(_kind),
            _forward(_kind),
            _gradient(_kind),
            attrs=_attrs,
            complete=_complete(_kind),
            parameters=frozenset(_WEIGHTS),
            visible=2 if _kind == "lstm" else 1,
            check=_check,
            doc=_DOCS[_kind],
        ),
        Op(
            f"{_kind}_gradient",
            _gradient_inputs(_kind),
            _gradient_types,
            _backward(_kind),
            _ONCE,
            attrs=_attrs,
            visible=7,
            check=_check,
            doc=f"the gradients of {_kind} by its data, its weights and its states",
        ),
    )
