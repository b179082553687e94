"""Graphs for people: a listing, a drawing in text, Graphviz's DOT.

Invariant: every node is shown once, in the order in which it could run; what a layer owns (its weights) stands with it,
and shapes are shown as far as they can be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from windlass_graph.graph import Graph
from windlass_graph.inference import infer
from windlass_graph.node import Node, Value
from windlass_graph.tensor_type import UNKNOWN, TensorType

_EMPTY: Final = " "
_LINE: Final = "│"


def listing(graph: Graph, shapes: Mapping[str, TensorType]) -> str:
    """One line a node: name, op, inputs, attributes, types of its outputs."""
    types = infer(graph, shapes)
    lines = []
    for node in graph.nodes:
        inputs = ", ".join(map(str, node.inputs))
        outs = ", ".join(str(types[Value(node, i)]) for i in range(node.op.visible))
        lines.append(f"{node.name} = {node.op.name}({_joined(inputs, _attributes(node))}) -> {outs}{_labels(node)}")
    return "\n".join([*lines, f"outputs: {', '.join(map(str, graph.outputs))}"])


def text_drawing(graph: Graph, shapes: Mapping[str, TensorType]) -> str:
    """The graph from top to bottom: a dot for each node, a line for each value that is still to be read."""
    types = infer(graph, shapes)
    owned = _owned(graph)
    shown = [node for node in graph.nodes if node not in owned]
    last: dict[Node, int] = {}
    for at, node in enumerate(shown):
        last.update({value.node: at for value in node.inputs})
    last.update({value.node: len(shown) for value in graph.outputs})
    columns: list[Node | None] = []
    rows: list[tuple[str, str]] = []
    for at, node in enumerate(shown):
        read = {value.node for value in node.inputs if value.node not in owned}
        ending = {each for each in read if last[each] == at}
        place = _place(columns, ending)
        rows.append((_row(columns, read, ending, place), _described(node, types, owned)))
        columns = [None if column in ending else column for column in columns]
        columns[place] = node if node in last else None
    width = max(len(row) for row, _ in rows)
    return "\n".join(f"{row:<{width}} {words}".rstrip() for row, words in rows)


def _place(columns: list[Node | None], ending: set[Node]) -> int:
    """The column of a new node: that of an input that ends here, else a free one, else a new one."""
    for at, column in enumerate(columns):
        if column in ending:
            return at
    if None in columns:
        return columns.index(None)
    columns.append(None)
    return len(columns) - 1


def _row(columns: Sequence[Node | None], read: set[Node], ending: set[Node], place: int) -> str:
    at_inputs = [at for at, column in enumerate(columns) if column in read]
    first, final = min([place, *at_inputs]), max([place, *at_inputs])
    cells = []
    for at, column in enumerate(columns):
        inside = first < at < final
        if at == place:
            mark = "●"
        elif column in ending:
            mark = ("┴" if inside else "╯") if at > place else ("┴" if inside else "╰")
        elif column in read:
            mark = "┼" if inside else "┤" if at > place else "├"
        elif column is None:
            mark = "─" if inside else _EMPTY
        else:
            mark = "┼" if inside else _LINE
        cells.append(mark + ("─" if first <= at < final else _EMPTY))
    return "".join(cells)


def dot(graph: Graph, shapes: Mapping[str, TensorType]) -> str:
    """Graphviz's language: boxes for ops, ellipses for variables, edges with the types of values."""
    types = infer(graph, shapes)
    index = {node: i for i, node in enumerate(graph.nodes)}
    outputs = {value.node for value in graph.outputs}
    lines = ["digraph graph_ {", "  rankdir=TB;", '  node [fontname="Helvetica", fontsize=10];']
    for node, i in index.items():
        words = [node.name, *([] if node.is_variable else [f"{node.op.name} {_attributes(node)}".rstrip()])]
        if node.is_variable or node in outputs:
            words += [str(types[Value(node, k)]) for k in range(node.op.visible)]
        shape = "ellipse" if node.is_variable else "box"
        bold = ", penwidth=2" if node in outputs else ""
        label = "\\n".join(_quoted(each) for each in words)
        lines.append(f'  n{i} [shape={shape}, label="{label}"{bold}];')
    for node, i in index.items():
        for value in node.inputs:
            known = types[value]
            label = "" if known == UNKNOWN else f' [label="{_quoted(str(known))}"]'
            lines.append(f"  n{index[value.node]} -> n{i}{label};")
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ")


def _owned(graph: Graph) -> set[Node]:
    """Variables that one layer alone reads, as its parameter."""
    readers: dict[Node, list[tuple[Node, int]]] = {}
    for node in graph.nodes:
        for at, value in enumerate(node.inputs):
            readers.setdefault(value.node, []).append((node, at))
    found = set()
    for variable in graph.variables:
        if len(readers.get(variable, [])) == 1:
            [(node, at)] = readers[variable]
            names = node.op.input_names(node.attrs)
            if names[min(at, len(names) - 1)] in node.op.parameters:
                found.add(variable)
    return found - {value.node for value in graph.outputs}


def _described(node: Node, types: Mapping[Value, TensorType], owned: set[Node]) -> str:
    parameters = [f"{value.node.name} {_axes(types[value])}" for value in node.inputs if value.node in owned]
    outs = ", ".join(_axes(types[Value(node, i)]) for i in range(node.op.visible))
    if node.is_variable:
        return f"{node.name} {outs}{_labels(node)}"
    with_attrs = f"{node.name} {node.op.name} {_attributes(node)}".rstrip()
    return f"{with_attrs} {outs}{_labels(node)}" + (f"  [{', '.join(parameters)}]" if parameters else "")


def _axes(type_: TensorType) -> str:
    return "(?)" if type_.shape is None else str(type_).partition("(")[1] + str(type_).partition("(")[2]


def _attributes(node: Node) -> str:
    """Attributes that differ from their defaults."""
    return ", ".join(
        f"{key}={value!r}"
        for key, value in node.attrs.items()
        if node.is_variable is False and value != node.op.attrs[key]
    )


def _labels(node: Node) -> str:
    shown = ", ".join(f"{key}: {value}" for key, value in node.labels.items())
    return f" {{{shown}}}" if shown else ""


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)
