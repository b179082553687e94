"""Forward and backward of a graph as one graph, so that one plan lays out the memory of both.

Invariant: the leading outputs are the forward part's; then come new values of auxiliary variables (which lead as well),
then gradients, those of the last layers first, so that each can leave while earlier layers are still computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from windlass_graph.build import fresh_names, variable
from windlass_graph.functions import function
from windlass_graph.gradient import reverse
from windlass_graph.graph import Graph
from windlass_graph.node import Value
from windlass_graph.op import Backward
from windlass_graph.symbol import Symbol


@dataclass(frozen=True, slots=True)
class TrainingGraph:
    """The joint graph, and what its outputs are."""

    graph: Graph
    outputs: int
    updated: tuple[str, ...]
    """Auxiliary variables, in the order of their new values, behind the outputs."""
    gradients: tuple[str, ...]
    """Arguments that have gradients, in the order of those, at the end."""
    heads: tuple[str, ...]
    """Variables for the outputs' gradients, one for each output; empty if they are ones."""


def training_graph(graph: Graph, by: Sequence[str], *, heads: bool) -> TrainingGraph:
    """The joint graph of a typed graph in training mode.

    Args:
        by: names of the arguments whose gradients are wanted; those that no differentiable path reaches are left out.
        heads: take the outputs' gradients from variables of their own; otherwise they are ones.

    Names of new nodes begin with `backward_`, as often as it takes to be new.
    """
    prefix = "backward_"
    while any(node.name.startswith(prefix) for node in graph.nodes):
        prefix += "backward_"
    with fresh_names(prefix):
        return _joint(graph, by, heads)


def _joint(graph: Graph, by: Sequence[str], heads: bool) -> TrainingGraph:
    updates = updates_of(graph)
    arguments = {node.name: Value(node, 0) for node in graph.arguments}
    seeds: dict[Value, Symbol] = {}
    names: list[str] = []
    prefix = "head_grad"
    while any(node.name.startswith(prefix) for node in graph.variables):
        prefix = f"head_{prefix}"  # a graph of gradients has heads of its own
    for number, value in enumerate(graph.outputs):
        if heads:
            names.append(f"{prefix}{number}")
            seed = Symbol([Value(variable(names[-1], value.type), 0)])
        else:
            seed = function("ones_like")(Symbol([value]))
        seeds[value] = seeds[value] + seed if value in seeds else seed
    wanted = [arguments[name] for name in by]
    found = reverse(graph.nodes, seeds, wanted, lambda value: Symbol([value]))
    position = {node: i for i, node in enumerate(graph.nodes)}
    first_use = {
        value: min((position[node] for node in graph.nodes if value in node.inputs), default=0) for value in found
    }
    order = sorted(found, key=lambda value: -first_use[value])
    joint = Graph(
        [*graph.outputs, *updates.values(), *(found[value].value for value in order)],
        len(graph.outputs) + len(updates),
    )
    return TrainingGraph(
        joint, len(graph.outputs), tuple(updates), tuple(value.node.name for value in order), tuple(names)
    )


def updates_of(graph: Graph) -> dict[str, Value]:
    """New values of auxiliary variables, by name."""
    found: dict[str, Value] = {}
    for node in graph.nodes:
        if node.op.updates is None or not node.attrs.get("training", True):
            continue
        outs = [Symbol([Value(node, i)]) for i in range(len(node.types))]
        seen = Backward(node.attrs, [Symbol([value]) for value in node.inputs], outs, [None] * len(outs))
        for index, new in node.op.updates(seen).items():
            source = node.inputs[index].node
            if source.is_variable:
                found[source.name] = new.value
    return found
