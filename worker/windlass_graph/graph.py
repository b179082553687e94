"""A graph: the values that are wanted and all that they need.

Invariant: immutable; names of nodes are unique; every node comes after its inputs in `nodes`. Editing gives another
graph that shares every node that was not touched, so what was compiled for those is still theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from windlass_graph.build import make
from windlass_graph.node import Node, Value, topological
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import InvariantError, UsageError

if TYPE_CHECKING:
    from windlass_graph.symbol import Symbol


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

    @property
    def symbol(self) -> Symbol:
        """The outputs as a symbol."""
        from windlass_graph.symbol import Symbol

        return Symbol(self.outputs)

    def add(
        self,
        new: Symbol | Callable[[Any], Any],
        *,
        after: str | None = None,
        before: str | None = None,
        which: int | str = 0,
        only: Sequence[str] | None = None,
    ) -> Graph:
        """Another graph with more in it.

        - `add(symbol)`: its values are further outputs.
        - `add(f, after="fc1")`: whatever read fc1 reads `f(fc1)`; with `only=["fc2"]` those nodes alone.
        - `add(f, before="fc2")`: fc2 reads `f(...)` of what it read.

        Args:
            new: a symbol, or a function of the symbol beside which it comes.
            after: a node's name.
            before: a node's name.
            which: of the outputs of the one, by number, or of the inputs of the other, by number or name.
            only: names of nodes that are led to the new one; all, and the graph's outputs, if None.

        Raises:
            UsageError: there is no such node or edge, types do not fit, or a name would come twice.
        """
        from windlass_graph import editing

        if after is not None and before is not None:
            raise UsageError("a node is added after one or before one", next_move="Call add twice.")
        if after is not None:
            return editing.inserted_after(self, after, new, which, only)
        if before is not None:
            return editing.inserted_before(self, before, new, which)
        return editing.with_outputs(self, new)

    def remove(self, name: str, *, keep: int | str | None = None) -> Graph:
        """Another graph without a node, whose place one of its inputs takes. Parameters of its own go with it.

        Args:
            keep: which input, by name or number. Without it the only one that is no parameter, or else the only one
                of the node's own type.

        Raises:
            UsageError: there is no such node, it has no such input, or what read it does not fit that input.
        """
        from windlass_graph import editing

        return editing.removed(self, name, keep)

    def replace(self, name: str, by: Symbol | Callable[[Any], Any] | str, **attrs: Any) -> Graph:
        """Another graph with something else in a node's place.

        - `replace("fc1", lambda old: wl.sym.relu(old))`: what a function makes of the node itself; a node of several
          outputs comes as a group.
        - `replace("fc1", symbol)`: a symbol; it may read nodes that the replaced one does not lead to, and the
          replaced one itself.
        - `replace("act1", "tanh")`: a node of another op with the same inputs, of the same name. Attributes and
          parameters that both ops have are kept; `attrs` gives others.

        Raises:
            UsageError: there is no such node, types do not fit, an output is missing that is still used, or a name
                would come twice.
        """
        from windlass_graph import editing

        return editing.replaced(self, name, by, attrs)

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
