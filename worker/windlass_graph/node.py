"""The one node of every graph: an op, its inputs, its attributes. Both fronts make it, every pass takes and returns it.

Invariant: immutable, and made after its inputs, so a graph has no cycle; two nodes are the same only if they are one
object. What is known of its outputs' types when it is made is in it; inference over a whole graph may know more.

Prior art: tinygrad's UOp, JAX's jaxpr equations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from windlass_graph.tensor_type import TensorType

if TYPE_CHECKING:
    from windlass_graph.op import Op

_OURS: Final = tuple(str(Path(__file__).resolve().parents[1] / name) for name in ("windlass_graph", "windlass_worker"))
NO_LABELS: Final[Mapping[str, str]] = MappingProxyType({})


class Value(NamedTuple):
    """One output of one node."""

    node: Node
    output: int

    @property
    def type(self) -> TensorType:
        return self.node.types[self.output]

    def __str__(self) -> str:
        return self.node.name if len(self.node.types) == 1 else f"{self.node.name}[{self.output}]"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One application of an op.

    Args:
        op: its entry in the op table.
        inputs: outputs of other nodes, in the op's order.
        attrs: every attribute of the op, defaults filled in; values are hashable.
        name: unique within a graph.
        where: file and line of the code that made it, "" if unknown.
        types: one for each output, as far as known.
        labels: text that users attach; the engine reads none but `recompute`, where it is asked for.
    """

    op: Op
    inputs: tuple[Value, ...]
    attrs: Mapping[str, Any]
    name: str
    where: str
    types: tuple[TensorType, ...]
    labels: Mapping[str, str]

    def __repr__(self) -> str:
        return f"<{self.op.name} {self.name}>"

    def out(self, index: int = 0) -> Value:
        return Value(self, index)

    @property
    def is_variable(self) -> bool:
        return self.op.name == "variable"

    def described(self) -> str:
        """In words, for errors: the op, the name, the inputs with their types."""
        shown = ", ".join(f"{value}: {value.type}" for value in self.inputs)
        return f"{self.op.name} {self.name!r}({shown})"


class Constant:
    """An array as an attribute: compared by its bytes, never written to."""

    __slots__ = ("_key", "array")

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = np.asarray(array, order="C").view()  # ascontiguousarray makes a number a vector
        self.array.flags.writeable = False
        self._key = (self.array.dtype.name, self.array.shape, self.array.tobytes())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return repr(self.array.item()) if self.array.size == 1 else f"<{self.array.dtype.name}{self.array.shape}>"


def topological(outputs: Iterable[Value]) -> list[Node]:
    """The nodes that `outputs` need, each after its inputs, in the order of a depth-first walk."""
    order: list[Node] = []
    seen: set[Node] = set()
    for output in outputs:
        stack: list[tuple[Node, Iterator[Value]]] = []
        if output.node not in seen:
            seen.add(output.node)
            stack.append((output.node, iter(output.node.inputs)))
        while stack:
            node, remaining = stack[-1]
            for value in remaining:
                if value.node not in seen:
                    seen.add(value.node)
                    stack.append((value.node, iter(value.node.inputs)))
                    break
            else:
                order.append(node)
                stack.pop()
    return order


def alternating(orders: Sequence[Sequence[Node]]) -> list[Node]:
    """Several topological orders as one, in which they take turns from the end: walked backwards, all end together."""
    merged: dict[Node, None] = {}
    for back in range(max(map(len, orders), default=0), 0, -1):
        for order in orders:
            if back <= len(order):
                merged.setdefault(order[-back])
    return list(merged)


def caller_line() -> str:
    """`file:line` of the nearest caller outside the engine and the training library."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_OURS):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"
