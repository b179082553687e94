"""From a graph as it was written to a program: types told, mode chosen, passes applied, memory planned.

Invariant: each pass takes a graph and returns one that computes the same; tests verify it after each. What each did is
kept with the program, for `explain()`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from windlass_graph.build import make
from windlass_graph.device import CPU, Device
from windlass_graph.explanation import PassRecord, recorded
from windlass_graph.graph import Graph, kept
from windlass_graph.inference import typed
from windlass_graph.node import Node, Value
from windlass_graph.passes.fold import fold
from windlass_graph.passes.fuse import fuse
from windlass_graph.passes.merge import merge
from windlass_graph.passes.recompute import Policy, recompute
from windlass_graph.program import Program
from windlass_graph.tensor_type import TensorType

Pass = Callable[[Graph], Graph]

PASSES: Final[tuple[Pass, ...]] = (fold, merge, fuse)
"""In the order in which they are applied."""


def compiled(
    graph: Graph,
    known: Mapping[str, TensorType],
    *,
    device: Device = CPU,
    passes: Sequence[Pass] = PASSES,
    recomputed: Policy | None = None,
) -> Program:
    """A program of `graph`, whose variables have the types `known`; see `program_of`.

    Raises:
        UsageError: types contradict each other or cannot be told.
    """
    return program_of(typed(graph, known).checked(), device, passes=passes, recomputed=recomputed)


def program_of(
    graph: Graph, device: Device, *, passes: Sequence[Pass] = PASSES, recomputed: Policy | None = None
) -> Program:
    """A program of a typed graph.

    Args:
        passes: what is done to the graph, in order.
        recomputed: which values the backward part of a training graph computes again; see `passes.recompute`.
    """

    def again(ready: Graph) -> Graph:
        assert recomputed is not None, "only asked with a policy"
        return recompute(ready, recomputed)

    steps: list[tuple[str, Pass]] = [(each.__name__, each) for each in passes]
    if recomputed is not None:
        at = next((i for i, each in enumerate(passes) if each is fuse), len(steps))
        steps.insert(at, ("recompute", again))
    history: list[PassRecord] = []
    for name, each in steps:
        before, graph = graph, each(graph)
        history.append(recorded(name, before, graph))
    return Program(graph, device, history)


def in_mode(graph: Graph, *, training: bool) -> Graph:
    """The graph for training or for prediction: what `dropout` and `batch_norm` left open is chosen."""

    def choose(node: Node, inputs: tuple[Value, ...]) -> list[Value]:
        if "training" in node.attrs and node.attrs["training"] is None:
            attrs = MappingProxyType({**node.attrs, "training": training})
            made = make(node.op, inputs, attrs, node.name, node.labels, node.where)
            return [Value(made, i) for i in range(len(made.types))]
        return kept(node, inputs)

    return graph.rewritten(choose)
