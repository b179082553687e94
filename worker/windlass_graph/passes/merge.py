"""Common subexpressions: of nodes that do the same with the same inputs, the first is kept and stands for all.

Invariant: results are equal bit for bit. Ops that draw random numbers and ops with auxiliary updates are left alone, as
each of their nodes is an event of its own. The first of like nodes is a leading one if any of them is, so nothing that
leading outputs need waits for the rest.

Prior art: value numbering, as in Cocke and Schwartz, Programming Languages and Their Compilers, 1970.
"""

from __future__ import annotations

from collections.abc import Hashable

from windlass_graph.graph import Graph, kept
from windlass_graph.node import Node, Value
from windlass_graph.structure import attrs_key


def merge(graph: Graph) -> Graph:
    """The graph with each piece of work once."""
    first: dict[Hashable, Node] = {}

    def rewrite(node: Node, inputs: tuple[Value, ...]) -> list[Value]:
        values = kept(node, inputs)
        if node.is_variable or node.op.random or node.op.updates is not None:
            return values
        now = values[0].node
        same = first.setdefault((now.op.name, attrs_key(now.attrs), now.inputs, now.types), now)
        return [Value(same, i) for i in range(len(same.types))]

    return graph.rewritten(rewrite)
