"""Changes of a graph: nodes added, removed, replaced.

Invariant: a change gives another graph, in which every node that the change does not reach is the same object, so what
is known of those, their compiled form and their arrays, stays. A changed graph has passed inference node by node and
carries each name once. It has no cycle, since nodes are made after their inputs: what stands in for a node may use the
node, and only those that read the node before are led to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from windlass_graph.build import reserve_names
from windlass_graph.graph import Graph, kept
from windlass_graph.node import Node, Value
from windlass_graph.op import lookup
from windlass_graph.symbol import Symbol
from windlass_graph.tensor_type import ContradictionError, unified
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError

Change = Symbol | Callable[[Any], Any]


def replaced(graph: Graph, name: str, by: Change | str, attrs: dict[str, Any]) -> Graph:
    """See `Graph.replace`."""
    target = graph.node(name)
    reserve_names(node.name for node in graph.nodes)
    if isinstance(by, str):
        new = _as_op(target, by, attrs)
    elif attrs:
        raise UsageError(
            "attributes belong to an op", next_move="Give the op's name before them.", got=", ".join(attrs)
        )
    else:
        new = _values(by, Symbol([Value(target, i) for i in range(target.op.visible)]), f"the place of {name!r}")
    used = _used(graph, target)
    if used and max(used) >= len(new):
        raise UsageError(
            f"output {max(used)} of {name!r} is still used",
            next_move="Give as many outputs as the node has.",
            outputs_given=len(new),
        )

    def rewrite(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        if node is target:
            return [*new, *(Value(node, i) for i in range(len(new), len(node.types)))]
        return kept(node, inputs)

    return graph.rewritten(rewrite).checked()


def with_outputs(graph: Graph, new: Change) -> Graph:
    """See `Graph.add`."""
    values = _values(new, graph.symbol, "further outputs")
    return Graph([*graph.outputs, *values]).checked()


def inserted_after(graph: Graph, name: str, change: Change, output: int | str, only: Sequence[str] | None) -> Graph:
    """See `Graph.add`."""
    target = graph.node(name)
    if not isinstance(output, int) or not 0 <= output < target.op.visible:
        raise UsageError(f"{name!r} has no output {output}", outputs=target.op.visible)
    value = Value(target, output)
    readers = [node.name for node in graph.nodes if value in node.inputs]
    for reader in only or ():
        if reader not in readers:
            raise UsageError(f"{reader!r} does not read {value}", next_move=did_you_mean(reader, readers))
    reserve_names(node.name for node in graph.nodes)
    [new] = _values(change, Symbol([value]), f"after {name!r}", count=1)

    def rewrite(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        if only is None and node is target:
            return [new if i == output else Value(node, i) for i in range(len(node.types))]
        if only is not None and node.name in only:
            pairs = zip(node.inputs, inputs, strict=True)
            return kept(node, tuple(new if old == value else now for old, now in pairs))
        return kept(node, inputs)

    return graph.rewritten(rewrite).checked()


def inserted_before(graph: Graph, name: str, change: Change, which: int | str) -> Graph:
    """See `Graph.add`."""
    target = graph.node(name)
    index = _input_index(target, which)
    reserve_names(node.name for node in graph.nodes)
    [new] = _values(change, Symbol([target.inputs[index]]), f"before {name!r}", count=1)

    def rewrite(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        if node is target:
            return kept(node, (*inputs[:index], new, *inputs[index + 1 :]))
        return kept(node, inputs)

    return graph.rewritten(rewrite).checked()


def removed(graph: Graph, name: str, keep: int | str | None) -> Graph:
    """See `Graph.remove`."""
    target = graph.node(name)
    if not target.inputs:
        readers = [node.name for node in graph.nodes if Value(target, 0) in node.inputs]
        raise UsageError(
            f"{name!r} has no input that could take its place",
            next_move="Remove or replace what reads it.",
            read_by=", ".join(readers) or "the graph's outputs",
        )
    if any(output > 0 for output in _used(graph, target)):
        raise UsageError(f"several outputs of {name!r} are used", next_move="Replace it.", node=target.described())
    stands_in = target.inputs[_place_taker(target) if keep is None else _input_index(target, keep)]

    def rewrite(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        if node is target:
            return [stands_in, *(Value(node, i) for i in range(1, len(node.types)))]
        return kept(node, inputs)

    return graph.rewritten(rewrite).checked()


def _used(graph: Graph, target: Node) -> set[int]:
    """Which outputs of a node anything reads."""
    read = {value.output for node in graph.nodes for value in node.inputs if value.node is target}
    return read | {value.output for value in graph.outputs if value.node is target}


def _values(change: Change, old: Symbol, where: str, count: int | None = None) -> list[Value]:
    """The values of a symbol, or of what a function makes of the old one."""
    found = change if isinstance(change, Symbol) else change(old)
    symbols = list(found) if isinstance(found, tuple) else [found]
    if not all(isinstance(each, Symbol) for each in symbols):
        raise UsageError(
            f"no symbol was given for {where}",
            next_move="Give a symbol, or a function that returns one.",
            got=type(found).__name__,
        )
    values = [value for each in symbols for value in each.values]
    if count is not None and len(values) != count:
        raise UsageError(f"one value is wanted {where}", got=len(values))
    return values


def _as_op(target: Node, name: str, given: dict[str, Any]) -> list[Value]:
    """A node of another op with the same inputs, name and labels. Attributes of both ops are kept where none is given;
    parameters that both have are kept, those of the old op alone go, those of the new one alone are made."""
    op = lookup(name)
    attrs = {key: value for key, value in target.attrs.items() if key in op.attrs} | given
    names = target.op.input_names(target.attrs)
    named = {each: value for each, value in zip(names, target.inputs, strict=False) if each in target.op.parameters}
    operands = [Symbol([value]) for i, value in enumerate(target.inputs) if i >= len(names) or names[i] not in named]
    parameters = {each: Symbol([value]) for each, value in named.items() if each in op.input_names(op.filled(attrs))}
    made = Symbol.applied(op, tuple(operands), {**attrs, **parameters, "name": target.name, "labels": target.labels})
    return _values(made, made, "")


def _input_index(target: Node, which: int | str) -> int:
    names = target.op.input_names(target.attrs)
    if isinstance(which, str):
        if which not in names:
            raise UsageError(f"{target.name!r} has no input {which!r}", next_move=did_you_mean(which, names))
        return names.index(which)
    if not 0 <= which < len(target.inputs):
        raise UsageError(f"{target.name!r} has no input {which}", inputs=len(target.inputs))
    return which


def _place_taker(target: Node) -> int:
    """The one input that can stand in for the node: no parameter, and where there are several, of the node's type."""
    names = target.op.input_names(target.attrs)
    operands = [i for i in range(len(target.inputs)) if names[min(i, len(names) - 1)] not in target.op.parameters]
    fitting = operands if len(operands) == 1 else [i for i in operands if _fits(target.inputs[i], target)]
    if len(fitting) != 1:
        raise UsageError(
            f"which input takes the place of {target.name!r} cannot be told",
            next_move="Say it with keep=, the input's name or number.",
            node=target.described(),
        )
    return fitting[0]


def _fits(value: Value, target: Node) -> bool:
    try:
        unified(value.type, target.types[0])
    except ContradictionError:
        return False
    return True
