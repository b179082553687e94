"""What need not be computed in every run: constants are computed once, here, and identities of algebra are applied.

Invariant: results are equal bit for bit, but for what `algebra` states. A constant is made only of constants, by the
op's own forward function on the CPU, and is at most 64 KiB or no larger than what it is made of, so a program does not
carry about what is cheaper to fill in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from windlass_graph.device import CPU
from windlass_graph.evaluate import evaluate
from windlass_graph.graph import Graph, kept
from windlass_graph.node import Node, Value
from windlass_graph.passes.algebra import constant_like, simpler

FOLDED_BYTES_MAX: Final = 64 * 1024


def fold(graph: Graph) -> Graph:
    """The graph without what is known before it runs."""
    settled: set[Node] = set()

    def rewrite(node: Node, inputs: tuple[Value, ...]) -> Sequence[Value]:
        return simplified(kept(node, inputs)[0].node)

    def simplified(node: Node) -> Sequence[Value]:
        """What stands for the outputs of a node whose inputs are settled; what a rule makes is simplified in turn."""
        found = _computed(node) or simpler(node)
        if found is None:
            settled.add(node)
            return [Value(node, i) for i in range(len(node.types))]
        return [value if value.node in settled else simplified(value.node)[value.output] for value in found]

    return graph.rewritten(rewrite)


def _computed(node: Node) -> list[Value] | None:
    """Constants in place of a node that constants alone lead to."""
    if node.op.random or not node.inputs:
        return None
    if any(value.node.op.name != "constant" for value in node.inputs):
        return None
    nbytes = sum(each.nbytes for each in node.types)
    if nbytes > max(FOLDED_BYTES_MAX, sum(value.type.nbytes for value in node.inputs)):
        return None
    arrays = [_array(value) for value in node.inputs]
    with np.errstate(all="ignore"):
        outs, _ = evaluate(node.op, node.attrs, arrays, [value.type for value in node.inputs], CPU)
    names = [node.name] if len(outs) == 1 else [f"{node.name}_{i}" for i in range(len(outs))]
    return [constant_like(node, out, name) for out, name in zip(outs, names, strict=True)]


def _array(value: Value) -> Any:
    dtype = value.type.known_dtype
    return np.asarray(value.node.attrs["value"].array, dtype, order="C").reshape(value.type.known_shape)
