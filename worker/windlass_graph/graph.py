"""A graph: the values that are wanted and all that they need.

Invariant: immutable; names of nodes are unique; every node comes after its inputs in `nodes`. Editing gives another
graph that shares every node that was not touched, so what was compiled for those is still theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Protocol

from windlass_graph.build import make
from windlass_graph.node import Node, Value, topological
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import InvariantError, UsageError


class Valued(Protocol):
    """A symbol, as far as a graph knows it."""

    @property
    def values(self) -> Sequence[Value]: ...


class Graph:
    """What `outputs` need: values, or those of a symbol."""

    def __init__(self, outputs: Sequence[Value] | Valued, leading: int | None = None) -> None:
        self.outputs = tuple(outputs if isinstance(outputs, Sequence) else outputs.values)
        if not self.outputs:
            raise UsageError("a graph has an output", next_move="Give at least one symbol.")
        self.leading = len(self.outputs) if leading is None else leading
        """How many of the outputs are wanted before the others may be computed: those of a forward part."""

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        return tuple(topological(self.outputs))

    @cached_property
    def variables(self) -> tuple[Node, ...]:
        """In the order in which the walk meets them: data before the parameters that follow it."""
        return tuple(node for node in self.nodes if node.is_variable)

    @cached_property
    def leading_nodes(self) -> frozenset[Node]:
        """What the leading outputs need. No pass may make one of these wait for a node that is none."""
        return frozenset(topological(self.outputs[: self.leading]))

    @property
    def arguments(self) -> tuple[Node, ...]:
        """Variables that gradients may reach."""
        return tuple(node for node in self.variables if not node.attrs["auxiliary"])

    @property
    def auxiliaries(self) -> tuple[Node, ...]:
        """Variables that training updates by other rules: moving averages."""
        return tuple(node for node in self.variables if node.attrs["auxiliary"])

    def node(self, name: str) -> Node:
        """The node of that name.

        Raises:
            UsageError: there is none; the nearest name is said.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        raise UsageError(f"the graph has no node {name!r}", next_move=did_you_mean(name, [n.name for n in self.nodes]))

    def checked(self) -> Graph:
        """Itself, if no two nodes carry one name.

        Raises:
            UsageError: two do; both lines are said.
        """
        seen: dict[str, Node] = {}
        for node in self.nodes:
            other = seen.setdefault(node.name, node)
            if other is not node:
                raise UsageError(
                    f"two nodes are called {node.name!r}",
                    next_move="Give each a name of its own.",
                    first=other.where or other.op.name,
                    second=node.where or node.op.name,
                )
        return self

    def rewritten(self, rewrite: Callable[[Node, tuple[Value, ...]], Sequence[Value]]) -> Graph:
        """Another graph: `rewrite(node, inputs)` gives what stands for a node's outputs, whose inputs are rewritten.

        `kept` is what a rewrite returns that leaves the node alone.
        """
        now: dict[Value, Value] = {}
        for node in self.nodes:
            inputs = tuple(now[value] for value in node.inputs)
            values = rewrite(node, inputs)
            now.update({Value(node, i): value for i, value in enumerate(values)})
        return Graph([now[value] for value in self.outputs], self.leading)


def kept(node: Node, inputs: tuple[Value, ...]) -> list[Value]:
    """The node's own outputs, or those of its like with other inputs."""
    same = inputs == node.inputs
    found = node if same else make(node.op, inputs, node.attrs, node.name, node.labels, node.where)
    return [Value(found, i) for i in range(len(node.types))]


def verify(graph: Graph) -> None:
    """Check every invariant of a graph's nodes; run after each pass in tests.

    Raises:
        InvariantError: one is broken; the node is named.
    """
    seen: set[Node] = set()
    if len({node.name for node in graph.nodes}) != len(graph.nodes):
        names = sorted(node.name for node in graph.nodes)
        raise InvariantError("two nodes carry one name", names=names)
    for node in graph.nodes:
        for value in node.inputs:
            if value.node not in seen:
                raise InvariantError("an input comes after its node", node=node.name, input=value.node.name)
            if not 0 <= value.output < len(value.node.types):
                raise InvariantError("an input is no output of its node", node=node.name, output=value.output)
        if not node.is_variable:
            expected = node.op.infer(node.attrs, [value.type for value in node.inputs])
            if len(expected) != len(node.types) or any(
                each.is_known and each != said for each, said in zip(expected, node.types, strict=True)
            ):
                raise InvariantError("a node's types are not those of its inputs", node=node.described())
        seen.add(node)


def by_name(nodes: Sequence[Node]) -> Mapping[str, Node]:
    return {node.name: node for node in nodes}
