"""Identities: for each op that has any, when another value stands for its outputs.

    RULES[op name](node) -> values, or None

Invariant: the replacement is of the same type and equal bit for bit, with two exceptions, which are stated: `x + 0` and
sums over axes of 1 are `x`, so that a -0.0 stays -0.0; `x ** 2` is `x * x`, the one of the two that is rounded as it
should be. A rule looks at types, attributes, constants and at what an input is made of, and makes nodes of the table's
ops alone. What a node took only the shape or dtype of (`broadcast_like`, `cast_like`) it takes no longer, and so need
not wait for.

This is the one module beside the op table that knows ops by name: a table of identities is read best in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from windlass_graph.build import make
from windlass_graph.node import NO_LABELS, Constant, Node, Value
from windlass_graph.op import lookup
from windlass_graph.ops.reductions import axes_of
from windlass_graph.ops.shapes import axis_order
from windlass_graph.tensor_type import ContradictionError

Rule = Callable[[Node], Sequence[Value] | None]
_FLOATS: Final = ("float16", "float32", "float64")


def simpler(node: Node) -> Sequence[Value] | None:
    """What stands for a node's outputs; None if nothing simpler is known."""
    if node.op.view:
        return _view(node)
    rule = RULES.get(node.op.name)
    found = rule(node) if rule is not None else None
    if found is None and node.op.elementwise and len(node.inputs) > 1:
        return _absorbed(node)
    return found


def constant_like(node: Node, array: Any, name: str) -> Value:
    """A constant that takes a node's place."""
    op = lookup("constant")
    attrs = op.filled({"value": Constant(np.asarray(array))})
    return Value(Node(op, (), attrs, name, node.where, op.infer(attrs, ()), NO_LABELS), 0)


def _instead(node: Node, op: str, inputs: Sequence[Value], **attrs: Any) -> list[Value]:
    """Another op under the node's name."""
    entry = lookup(op)
    return [Value(make(entry, inputs, entry.filled(attrs), node.name, node.labels, node.where), 0)]


def _if_same_type(node: Node, value: Value) -> list[Value] | None:
    return [value] if value.type == node.types[0] else None


def _number(value: Value) -> float | int | bool | None:
    """The one number that every element of a constant is; None if there is none."""
    if value.node.op.name == "broadcast_to":
        return _number(value.node.inputs[0])
    if value.node.op.name != "constant":
        return None
    array = value.node.attrs["value"].array
    if array.size == 0 or not (array.size == 1 or (array == array.flat[0]).all()):
        return None
    found: float | int | bool = array.flat[0].item()
    return found


# Shapes.
def _view(node: Node) -> list[Value] | None:
    """A view of a view is a view of what lies below, and none if that has the shape."""
    source = node.inputs[0]
    while source.node.op.view and source.type.dtype == source.node.inputs[0].type.dtype:
        source = source.node.inputs[0]
    if source.type == node.types[0]:
        return [source]
    shape = node.types[0].known_shape
    if 0 in shape or source.type.dtype != node.types[0].dtype:
        return None  # 0 in an attribute of reshape keeps an axis
    if node.op.name == "reshape" and source == node.inputs[0] and node.attrs["shape"] == shape:
        return None
    return _instead(node, "reshape", [source], shape=shape)


def _broadcast_like(node: Node) -> list[Value] | None:
    return _if_same_type(node, node.inputs[0]) or _instead(
        node, "broadcast_to", node.inputs[:1], shape=node.types[0].known_shape
    )


def _sum_to_like(node: Node) -> list[Value] | None:
    """A sum over the axes that were broadcast, in another shape."""
    grad, target = node.inputs[0], node.types[0].known_shape
    if grad.type == node.types[0]:
        return [grad]
    if 0 in grad.type.known_shape or 0 in target or grad.type.dtype not in _FLOATS:
        return None
    if grad.type.size == node.types[0].size:
        return _instead(node, "reshape", [grad], shape=target)
    extra = len(grad.type.known_shape) - len(target)
    pairs = zip(target, grad.type.known_shape[extra:], strict=True)
    axes = (*range(extra), *(extra + i for i, (to, of) in enumerate(pairs) if to == 1 and of != 1))
    entry = lookup("sum")
    total = make(entry, [grad], entry.filled({"axis": axes}), f"{node.name}_sum", where=node.where)
    return _instead(node, "reshape", [Value(total, 0)], shape=target)


def _transpose(node: Node) -> list[Value] | None:
    """Two orders in a row are one; an order that moves axes of 1 alone is a view."""
    source = node.inputs[0]
    order = axis_order(node.attrs, len(source.type.known_shape))
    while source.node.op.name == "transpose":
        inner = axis_order(source.node.attrs, len(order))
        order, source = tuple(inner[i] for i in order), source.node.inputs[0]
    shape = source.type.known_shape
    moved = [axis for axis in order if shape[axis] != 1]
    if order == tuple(range(len(order))):
        return [source]
    if moved == sorted(moved) and 0 not in shape:
        return _instead(node, "reshape", [source], shape=node.types[0].known_shape)
    if source == node.inputs[0]:
        return None
    return _instead(node, "transpose", [source], axes=order)


def _slice(node: Node) -> list[Value] | None:
    return _if_same_type(node, node.inputs[0])


def _part(node: Node) -> list[Value] | None:
    """A part of known place is a slice, and needs none of the other parts."""
    axis, index = node.attrs["axis"], node.attrs["index"]
    sizes = [value.type.known_shape[axis] for value in node.inputs[1:]]
    begin = sum(sizes[:index])
    return _instead(node, "slice_axis", node.inputs[:1], axis=axis, begin=begin, end=begin + sizes[index])


def _concat(node: Node) -> list[Value] | None:
    return [node.inputs[0]] if len(node.inputs) == 1 else None


def _reduction(node: Node) -> list[Value] | None:
    """A reduction over axes of 1 is a view."""
    shape, target = node.inputs[0].type.known_shape, node.types[0].known_shape
    gone = axes_of(node.attrs["axis"], len(shape))
    if any(shape[i] != 1 for i in gone) or 0 in target or node.inputs[0].type.dtype != node.types[0].dtype:
        return None
    return _instead(node, "reshape", node.inputs, shape=target)


# Numbers.
def _filled(number: int) -> Rule:
    def rule(node: Node) -> list[Value] | None:
        one = constant_like(node, np.asarray(number, node.types[0].dtype), f"{node.name}_value")
        return _instead(node, "broadcast_to", [one], shape=node.types[0].known_shape)

    return rule


def _count(node: Node) -> list[Value] | None:
    shape = node.inputs[0].type.known_shape
    count = np.prod([shape[i] for i in axes_of(node.attrs["axis"], len(shape))], dtype=np.int64)
    return [constant_like(node, count.astype(node.types[0].dtype), node.name)]


def _neutral(number: int, *, either: bool) -> Rule:
    """The other operand of one that changes nothing."""

    def rule(node: Node) -> list[Value] | None:
        x, y = node.inputs
        if _number(y) == number and x.type == node.types[0]:
            return [x]
        if either and _number(x) == number and y.type == node.types[0]:
            return [y]
        return None

    return rule


def _power(node: Node) -> list[Value] | None:
    x, y = node.inputs
    exponent = _number(y)
    if x.type != node.types[0] or exponent not in (1, 2) or isinstance(exponent, bool):
        return None
    return [x] if exponent == 1 else _instead(node, "square", [x])


def _negative(node: Node) -> list[Value] | None:
    inner = node.inputs[0].node
    return [inner.inputs[0]] if inner.op.name == "negative" else None


def _cast(node: Node) -> list[Value] | None:
    """A cast to the dtype that is there; one after a cast to a wider float, which lost nothing."""
    source, inner = node.inputs[0], node.inputs[0].node
    if source.type == node.types[0]:
        return [source]
    if inner.op.name == "cast":
        first, middle = inner.inputs[0].type.dtype, source.type.dtype
        if first in _FLOATS and middle in _FLOATS and _FLOATS.index(first) < _FLOATS.index(middle):
            return _instead(node, "cast", inner.inputs, dtype=node.types[0].dtype)
    return None


def _cast_like(node: Node) -> list[Value] | None:
    return _instead(node, "cast", node.inputs[:1], dtype=node.types[0].dtype)


def _dropout(node: Node) -> list[Value] | None:
    """Without training nothing is dropped."""
    if node.attrs["training"] and node.attrs["p"] > 0:
        return None
    one = constant_like(node, np.asarray(1, node.types[1].dtype), f"{node.name}_one")
    entry = lookup("broadcast_to")
    attrs = entry.filled({"shape": node.types[1].known_shape})
    return [node.inputs[0], Value(make(entry, [one], attrs, f"{node.name}_mask", where=node.where), 0)]


def _absorbed(node: Node) -> list[Value] | None:
    """An op that broadcasts by itself takes what was broadcast for it; of a constant of one number, that number."""
    inputs = [_narrow(value, f"{node.name}_number{index}") for index, value in enumerate(node.inputs)]
    for index, value in enumerate(node.inputs):
        if inputs[index] != value and not _fits(node, [*inputs[: index + 1], *node.inputs[index + 1 :]]):
            inputs[index] = value
    if inputs == list(node.inputs):
        return None
    return [Value(make(node.op, inputs, node.attrs, node.name, node.labels, node.where), 0)]


def _narrow(value: Value, name: str) -> Value:
    """What broadcasts to a value, as far as that can be seen; a constant made for it has this name."""
    if value.node.op.name == "broadcast_to":
        return value.node.inputs[0]
    if value.node.op.name == "constant" and value.type.size > 1 and _number(value) is not None:
        array = value.node.attrs["value"].array
        return constant_like(value.node, array.reshape(-1)[0].astype(value.type.dtype), name)
    return value


def _fits(node: Node, inputs: Sequence[Value]) -> bool:
    try:
        return node.op.infer(node.attrs, [value.type for value in inputs]) == node.types
    except ContradictionError:
        return False


RULES: Final[Mapping[str, Rule]] = {
    "add": _neutral(0, either=True),
    "subtract": _neutral(0, either=False),
    "multiply": _neutral(1, either=True),
    "divide": _neutral(1, either=False),
    "power": _power,
    "negative": _negative,
    "cast": _cast,
    "cast_like": _cast_like,
    "zeros_like": _filled(0),
    "ones_like": _filled(1),
    "count_like": _count,
    "broadcast_to": lambda node: _if_same_type(node, node.inputs[0]),
    "broadcast_like": _broadcast_like,
    "sum_to_like": _sum_to_like,
    "sum": _reduction,
    "mean": _reduction,
    "max": _reduction,
    "min": _reduction,
    "prod": _reduction,
    "transpose": _transpose,
    "slice_axis": _slice,
    "part_like": _part,
    "concat": _concat,
    "dropout": _dropout,
}
