"""Shapes and dtypes of a whole graph from those of some variables.

Invariant: facts only grow. Forward steps tell outputs from inputs, `complete` of an op tells inputs (a layer's weights)
from the rest, until nothing new is learned; the walk ends since each value can learn only finitely much.
"""

from __future__ import annotations

from collections.abc import Mapping

from windlass_graph.build import constant, make, misfit, variable
from windlass_graph.graph import Graph
from windlass_graph.node import Node, Value
from windlass_graph.op import Op
from windlass_graph.tensor_type import ContradictionError, TensorType, unified
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError

Types = dict[Value, TensorType]


def infer(graph: Graph, known: Mapping[str, TensorType]) -> Types:
    """What can be told of every value; `known` are variables by name.

    Raises:
        UsageError: a name is unknown, or facts contradict each other; the node, its inputs and its line are said.
    """
    names = [node.name for node in graph.variables]
    for name in known:
        if name not in names:
            raise UsageError(f"the graph has no variable {name!r}", next_move=did_you_mean(name, names))
    types: Types = {Value(node, i): type_ for node in graph.nodes for i, type_ in enumerate(node.types)}
    for node in graph.variables:
        if node.name in known:
            _learn(types, Value(node, 0), known[node.name], node)
    new = True
    while new:
        new = False
        for node in graph.nodes:
            new |= not node.is_variable and _step(types, node)
    return types


def _step(types: Types, node: Node) -> bool:
    """Learn what one node tells of its inputs and outputs; whether anything was new."""
    if node.op.name == "constant":
        return False
    ins = [types[value] for value in node.inputs]
    new = False
    try:
        if node.op.complete is not None and not all(each.is_known for each in ins):
            completed = node.op.complete(node.attrs, ins)
            for value, found in zip(node.inputs, completed, strict=True):
                new |= _learn(types, value, found, node)
            ins = [types[value] for value in node.inputs]
        if node.op.same_shape or (node.op.elementwise and len(ins) == 1):
            new |= _learn(types, node.inputs[0], TensorType(types[Value(node, 0)].shape), node)
            ins = [types[value] for value in node.inputs]
        for i, found in enumerate(node.op.infer(node.attrs, ins)):
            new |= _learn(types, Value(node, i), found, node)
    except ContradictionError as cause:
        raise _contradicted(types, node, node.op, str(cause)) from None
    return new


def _learn(types: Types, value: Value, found: TensorType, node: Node) -> bool:
    before = types[value]
    if before == found:
        return False
    try:
        types[value] = unified(before, found)
    except ContradictionError:
        raise _contradicted(types, node, node.op, f"{value} is {before} and must be {found}") from None
    return types[value] != before


def _contradicted(types: Types, node: Node, op: Op, what: str) -> UsageError:
    shown = ", ".join(f"{value}: {types[value]}" for value in node.inputs)
    return misfit(op, node.name, shown, what, node.where)


def typed(graph: Graph, known: Mapping[str, TensorType], dtype: str = "float32") -> Graph:
    """The same graph with every type known; dtypes that nothing tells are `dtype`.

    Raises:
        UsageError: a shape cannot be told; the variables whose shapes are missing are named.
    """
    types = infer(graph, known)
    defaults = {
        node.name: TensorType(types[Value(node, 0)].shape, types[Value(node, 0)].dtype or dtype)
        for node in graph.variables
    }
    types = infer(graph, defaults)
    missing = [node.name for node in graph.variables if not types[Value(node, 0)].is_known]
    if missing:
        raise UsageError(
            "shapes of variables cannot be told", next_move="Give their shapes.", variables=", ".join(missing)
        )

    def rebuild(node: Node, inputs: tuple[Value, ...]) -> list[Value]:
        now = tuple(types[Value(node, i)] for i in range(len(node.types)))
        if inputs == node.inputs and now == node.types:
            return [Value(node, i) for i in range(len(now))]
        if node.is_variable:
            auxiliary = bool(node.attrs["auxiliary"])
            made = variable(node.name, now[0], auxiliary=auxiliary, labels=node.labels, where=node.where)
        elif node.op.name == "constant":
            made = constant(node.attrs["value"].array, now[0].dtype or dtype, node.name)
        else:
            made = make(node.op, inputs, node.attrs, node.name, node.labels, node.where)
        return [Value(made, i) for i in range(len(now))]

    return graph.rewritten(rebuild)
