"""Elementwise nodes of one shape become one node with one kernel, which reads each input and writes each result once.

Invariant: the graph stays acyclic and computes the same, to the rounding of elementary functions. Nodes are grouped by
level: a node's level is that of its inputs, and one more where an edge joins nodes that could not be in one group (one
of them is not elementwise, or their shapes differ, or only one of them belongs to the leading outputs). Along any path
levels never fall, and stay only between nodes that could be in one group; so no path leaves a group and comes back, and
no two groups wait for each other. Groups are the nodes of one level that are joined by edges or read the same value.

What a group's nodes pass on among themselves is never stored; what is read outside becomes an output. Numbers among the
inputs become constants of the kernel. A group is cut where its arrays or its axes would be too many, and groups of one
node, or of few elements, are left alone: a kernel takes 150 ms to compile, once a machine.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from windlass_graph.build import fresh_name, make
from windlass_graph.fused import Instruction, Program, Space, collapse
from windlass_graph.fused_kernels import FusedKernel
from windlass_graph.graph import Graph, kept
from windlass_graph.node import Node, Value
from windlass_graph.op import Attrs, Missing, Op, Run
from windlass_graph.scalar_code import DTYPES, SCALARS, types_of
from windlass_graph.tensor_type import TensorType

ELEMENTS_MIN: Final = 2048
"""Below it NumPy's calls cost as much as the memory traffic that a kernel saves."""

NODES_MAX: Final = 48
INPUTS_MAX: Final = 16
"""Arrays that one kernel reads: of more, a tile each does not stay in the first cache."""

Key = tuple[tuple[int, ...], bool]
"""Nodes of one key may be in one group: their shape, and whether leading outputs need them."""


@dataclass(frozen=True, slots=True)
class FusionFacts:
    """What fusion did to a graph: kernels, nodes that they stand for, values that are stored no more, their bytes."""

    groups: int
    nodes: int
    temporaries: int
    bytes_avoided: int


def fuse(graph: Graph, elements_min: int = ELEMENTS_MIN) -> Graph:
    """The graph with its groups of at least two elementwise nodes fused. It has to be typed."""
    keys = _keys(graph, elements_min)
    level = _levels(graph, keys)
    groups = _groups(keys, level)
    position = {node: at for at, node in enumerate(graph.nodes)}
    grouped = {node for group in groups for node in group}
    units = [*groups, *([node] for node in graph.nodes if node not in grouped)]
    units.sort(key=lambda unit: (level[unit[0]], position[unit[0]]))
    readers: dict[Value, list[Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            readers.setdefault(value, []).append(node)
    wanted = set(graph.outputs)
    now: dict[Value, Value] = {}
    for unit in units:
        if len(unit) == 1:
            inputs = tuple(now[value] for value in unit[0].inputs)
            now.update(zip((Value(unit[0], i) for i in range(len(unit[0].types))), kept(unit[0], inputs), strict=True))
        else:
            inside = set(unit)
            outputs = [
                node.out()
                for node in unit
                if node.out() in wanted or any(reader not in inside for reader in readers[node.out()])
            ]
            made = _fused(unit, outputs, now)
            now.update((value, Value(made, i)) for i, value in enumerate(outputs))
    return Graph([now[value] for value in graph.outputs], graph.leading)


def facts(graph: Graph) -> FusionFacts:
    """What fusion did to a graph that `fuse` returned."""
    fused = [node for node in graph.nodes if node.op.name == "fused"]
    return FusionFacts(
        len(fused),
        sum(len(node.attrs["kernel"].program.instructions) for node in fused),
        sum(node.attrs["temporaries"] for node in fused),
        sum(node.attrs["bytes_avoided"] for node in fused),
    )


def _keys(graph: Graph, elements_min: int) -> dict[Node, Key]:
    """Of the nodes that may be fused."""
    leading = graph.leading_nodes
    return {
        node: (node.types[0].known_shape, node in leading)
        for node in graph.nodes
        if _fusible(node) and node.types[0].size >= elements_min
    }


def _fusible(node: Node) -> bool:
    if not node.op.scalar or not all(each.is_known for each in (*node.types, *(v.type for v in node.inputs))):
        return False
    dtypes = _dtypes(node)
    if not {*dtypes, node.types[0].dtype} <= set(DTYPES):
        return False
    return node.op.scalar == "cast" or types_of(node.op.scalar, dtypes)[1] == node.types[0].dtype


def _operands(node: Node) -> tuple[Value, ...]:
    """The inputs that its scalar code reads."""
    return node.inputs[: SCALARS[node.op.scalar].inputs]


def _dtypes(node: Node) -> list[str]:
    return [value.type.known_dtype.name for value in _operands(node)]


def _levels(graph: Graph, keys: dict[Node, Key]) -> dict[Node, int]:
    """The lowest levels that the edges allow; a node that reads one array at most moves up to those who read it, so
    that what a gradient makes of a layer's output is not stored beside that output until then."""
    level: dict[Node, int] = {}
    readers: dict[Node, list[Node]] = {node: [] for node in graph.nodes}
    for node in graph.nodes:
        for value in node.inputs:
            readers[value.node].append(node)
        level[node] = max((level[value.node] + _step(keys, value.node, node) for value in node.inputs), default=0)
    outputs = {value.node for value in graph.outputs}
    for node in reversed(graph.nodes):
        if node in keys and node not in outputs and sum(not _is_number(value) for value in _operands(node)) < 2:
            latest = min(level[reader] - _step(keys, node, reader) for reader in readers[node])
            if any(level[reader] == latest and not _step(keys, node, reader) for reader in readers[node]):
                level[node] = latest
    return level


def _step(keys: dict[Node, Key], one: Node, other: Node) -> int:
    """By how much an edge between them raises the level."""
    return 0 if one in keys and keys[one] == keys.get(other) else 1


def _groups(keys: dict[Node, Key], level: dict[Node, int]) -> list[list[Node]]:
    """Groups of two nodes and more, each in topological order and small enough for one kernel."""
    joined = _Joined()
    first_reader: dict[tuple[Value, int, Key], Node] = {}
    for node, key in keys.items():
        for value in _operands(node):
            if keys.get(value.node) == key and level[value.node] == level[node]:
                joined.join(value.node, node)
            elif not _is_number(value):
                joined.join(first_reader.setdefault((value, level[node], key), node), node)
    members: dict[Node, list[Node]] = {}
    for node in keys:
        members.setdefault(joined.root(node), []).append(node)
    groups = []
    for whole in members.values():
        groups += [group for group in _cut(whole) if len(group) > 1]
    return groups


class _Joined:
    """Disjoint sets of nodes."""

    def __init__(self) -> None:
        self._above: dict[Node, Node] = {}

    def root(self, node: Node) -> Node:
        while (above := self._above.get(node, node)) is not node:
            self._above[node] = self._above.get(above, above)
            node = above
        return node

    def join(self, one: Node, other: Node) -> None:
        self._above[self.root(other)] = self.root(one)


def _is_number(value: Value) -> bool:
    return value.node.op.name == "constant" and value.node.attrs["value"].array.size == 1


def _cut(whole: Sequence[Node]) -> list[list[Node]]:
    """Runs of nodes that one kernel can take each."""
    cuts: list[list[Node]] = [[]]
    arrays: set[Value] = set()
    for node in whole:
        added = {value for value in (*_operands(node), node.out()) if not _is_number(value)}
        together = arrays | added
        inputs = [value for value in together if value.node not in {*cuts[-1], node}]
        fits = collapse(node.types[0].known_shape, [value.type.known_shape for value in inputs]) is not None
        if cuts[-1] and (len(cuts[-1]) == NODES_MAX or len(inputs) > INPUTS_MAX or not fits):
            cuts.append([])
            together = added
        cuts[-1].append(node)
        arrays = together
    return cuts


def _fused(unit: Sequence[Node], outputs: Sequence[Value], now: dict[Value, Value]) -> Node:
    """One node for a group, whose outputs are the values that are read outside; `now` gives its inputs."""
    inside = set(unit)
    read = dict.fromkeys(value for node in unit for value in _operands(node) if value.node not in inside)
    arrays = [value for value in read if not _is_number(value)]
    shape = unit[0].types[0].known_shape
    space = collapse(shape, [value.type.known_shape for value in arrays])
    assert space is not None, "groups are cut where they have no space"
    program, constants = _program(unit, arrays, outputs, space)
    types = tuple(value.type for value in outputs)
    avoided = [node.types[0].nbytes for node in unit if node.out() not in set(outputs)]
    attrs: Attrs = MappingProxyType(
        {
            "kernel": FusedKernel(program, space),
            "constants": constants,
            "types": types,
            "temporaries": len(avoided),
            "bytes_avoided": sum(avoided),
            "nodes": tuple(node.name for node in unit),
        }
    )
    whole = tuple(i for i, value in enumerate(arrays) if value.type.shape == shape)
    return make(_op(whole), [now[value] for value in arrays], attrs, fresh_name("fused"), where=unit[-1].where)


def _program(
    unit: Sequence[Node], arrays: Sequence[Value], outputs: Sequence[Value], space: Space
) -> tuple[Program, tuple[float, ...]]:
    """What the group computes, and its constants."""
    number = {value: i for i, value in enumerate(arrays)}
    constants: list[Any] = []
    places: dict[tuple[Node, int], int] = {}  # of each node's operands that are constants, by their place
    for node in unit:
        attributes = [node.attrs[name] for name in node.op.attrs][: SCALARS[node.op.scalar].constants]
        for place, operand in enumerate([*_operands(node), *attributes]):
            if not isinstance(operand, Value) or _is_number(operand):
                places[node, place] = len(arrays) + len(constants)
                given = operand.node.attrs["value"].array.item() if isinstance(operand, Value) else operand
                constants.append(given)
    begin = len(arrays) + len(constants)
    number.update((node.out(), begin + i) for i, node in enumerate(unit))
    instructions = []
    for node in unit:
        at, dtype = _computed_in(node)
        taken = _operands(node)
        count = len(taken) + SCALARS[node.op.scalar].constants
        numbers = (places[node, i] if (node, i) in places else number[taken[i]] for i in range(count))
        instructions.append(Instruction(node.op.scalar, tuple(numbers), at, dtype))
    kinds = tuple("float64" if isinstance(value, float) else "int64" for value in constants)
    dtypes = tuple(value.type.known_dtype.name for value in arrays)
    named = tuple(number[value] for value in outputs)
    return Program(dtypes, kinds, tuple(instructions), named, space.pattern), tuple(constants)


def _computed_in(node: Node) -> tuple[str, str]:
    dtype = node.types[0].known_dtype.name
    return (_dtypes(node)[0], dtype) if node.op.scalar == "cast" else types_of(node.op.scalar, _dtypes(node))


def _infer(attrs: Attrs, _ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    types: tuple[TensorType, ...] = attrs["types"]
    return types


def _forward(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], _run: Run) -> None:
    attrs["kernel"].run(xp, ins, outs, attrs["constants"])


@functools.lru_cache(maxsize=256)
def _op(whole: tuple[int, ...]) -> Op:
    """The op of a group; `whole` are its inputs of the whole shape, over which an output may be written."""
    return Op(
        "fused",
        ("*data",),
        _infer,
        _forward,
        Missing("groups are fused behind differentiation"),
        inplace=whole,
        doc="elementwise ops in one kernel",
    )
