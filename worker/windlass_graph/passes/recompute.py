"""Recomputation: values of the forward part that are computed again in the backward part instead of kept for it.

    recompute(graph, "sqrt")                  # in about sqrt(n) segments
    recompute(graph, 8)                       # in 8 segments
    recompute(graph, ["block1_*", "relu*"])   # by the names of nodes
    recompute(graph, "labelled")              # nodes whose labels have `recompute`

Invariant: results are equal bit for bit, as the same ops run again on the same values (a copy that `fuse` then takes
into a kernel is rounded as that kernel rounds). What is never run again, and so
is kept: random draws, outputs of the graph, and whatever a later segment of the forward part reads. The last segment is
kept too, since the backward part begins with it. A view goes with what it shows.

The pass looks only at graphs that have a part behind their leading outputs, which is what a training graph is. Copies
are named after their originals with `_again` behind. It comes after `merge`, which would undo it.

Source: Chen, Xu, Zhang and Guestrin, Training Deep Nets with Sublinear Memory Cost, 2016, sections 3 and 4: sqrt(n)
segments hold O(sqrt(n)) values for one more forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

from windlass_graph.build import make
from windlass_graph.graph import Graph, kept
from windlass_graph.node import Node, Value
from windlass_proto.errors import UsageError

Policy = str | int | Sequence[str]
LABEL = "recompute"


def recompute(graph: Graph, policy: Policy) -> Graph:
    """The graph with the values that the policy names computed again where the backward part reads them.

    Raises:
        UsageError: the policy is none, or none of its names is a node's.
    """
    leading = graph.leading_nodes
    again = _with_views(graph, _chosen(graph, policy) - _kept_always(graph))
    twins: dict[Node, Node] = {}
    for node in graph.nodes:
        if node in again:
            inputs = [_twin(value, twins) for value in node.inputs]
            twins[node] = make(node.op, inputs, node.attrs, f"{node.name}_again", node.labels, node.where)

    def rewrite(node: Node, inputs: tuple[Value, ...]) -> list[Value]:
        if node in leading:
            return kept(node, inputs)
        return kept(node, tuple(_twin(value, twins) for value in inputs))

    return graph.rewritten(rewrite)


def _twin(value: Value, twins: dict[Node, Node]) -> Value:
    twin = twins.get(value.node)
    return value if twin is None else Value(twin, value.output)


def _chosen(graph: Graph, policy: Policy) -> set[Node]:
    """Nodes of the forward part that the policy names."""
    forward = [node for node in graph.nodes if node in graph.leading_nodes]
    if isinstance(policy, int) and not isinstance(policy, bool) and policy > 0:
        return _inside_segments(graph, forward, policy)
    if policy == "sqrt":
        return _inside_segments(graph, forward, math.isqrt(max(len(_read_behind(graph)), 1)))
    if policy == "labelled":
        return {node for node in forward if LABEL in node.labels}
    if isinstance(policy, str | int) or not all(isinstance(each, str) for each in policy):
        raise UsageError(
            "this is no way to recompute",
            next_move='Give "sqrt", a number of segments, "labelled", or a list of names of nodes.',
            recompute=policy,
        )
    for pattern in policy:
        if not any(fnmatchcase(node.name, pattern) for node in graph.nodes):
            raise UsageError("no node has this name", next_move="Patterns are as in a shell: relu*.", recompute=pattern)
    return {node for node in forward if any(fnmatchcase(node.name, pattern) for pattern in policy)}


def _kept_always(graph: Graph) -> set[Node]:
    outputs = {_content(value).node for value in graph.outputs}
    return {
        node
        for node in graph.nodes
        if node in outputs or node.is_variable or node.op.name == "constant" or node.op.random
    }


def _content(value: Value) -> Value:
    """What a view shows."""
    while value.node.op.view:
        value = value.node.inputs[0]
    return value


def _with_views(graph: Graph, chosen: set[Node]) -> set[Node]:
    """The same set, with exactly those views that show a value of it."""
    views = {node for node in graph.nodes if node.op.view and node in graph.leading_nodes}
    return (chosen - views) | {node for node in views if _content(Value(node, 0)).node in chosen}


def _read_behind(graph: Graph) -> set[Value]:
    """Values of the forward part that the rest reads."""
    leading = graph.leading_nodes
    return {
        _content(value)
        for node in graph.nodes
        if node not in leading
        for i, value in enumerate(node.inputs)
        if value.node in leading and i not in node.op.unread and not _content(value).node.is_variable
    }


def _inside_segments(graph: Graph, forward: Sequence[Node], count: int) -> set[Node]:
    """Nodes that only their own segment reads, of segments of like bytes; the last segment is left out."""
    read = _read_behind(graph)
    weight = {node: sum(value.type.nbytes for value in read if value.node is node) for node in forward}
    total = sum(weight.values())
    segment: dict[Node, int] = {}
    before = 0
    for node in forward:
        segment[node] = min(before * count // max(total, 1), count - 1)
        before += weight[node]
    crossing = {
        _content(value).node
        for node in forward
        for value in node.inputs
        if segment[_content(value).node] != segment[node]
    }
    last = max(segment.values(), default=0)
    return {node for node in forward if node not in crossing and segment[node] != last}
