"""Graphs as JSON: the format of docs/graph-format.md, written and read.

Invariant: what is read back has the same ops, attributes, names, labels and types, and computes the same bits. A file
is untrusted: nothing in it is code, every reference points backwards, sizes are bounded before memory is taken, and
whatever is wrong is an error in words that names the node.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from windlass_graph.build import make, reserve_names, variable
from windlass_graph.graph import Graph
from windlass_graph.node import NO_LABELS, Constant, Node, Value
from windlass_graph.op import REQUIRED, Op, lookup, table
from windlass_graph.tensor_type import TensorType
from windlass_proto import storage
from windlass_proto.errors import CorruptionError, UsageError

FORMAT: Final = "windlass graph"
VERSION: Final = 1
FILE_BYTES_MAX: Final = 64 * 2**20
NODES_MAX: Final = 200_000
CONSTANT_ELEMENTS_MAX: Final = 65_536
NAME_CHARACTERS_MAX: Final = 1_024
AXES_MAX: Final = 32
INTEGER_MAX: Final = 2**63 - 1
_DTYPES: Final = frozenset(
    ["bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))]
    + [f"float{bits}" for bits in (16, 32, 64)]
)
_WRONG_KINDS: Final = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError)
"""What an op's checks may raise over attributes of kinds that no caller in Python would give."""


def to_json(graph: Graph) -> str:
    """The graph as text, one node a line.

    Raises:
        UsageError: a node is a function of the user's own, or a constant is too large.
    """
    index = {node: i for i, node in enumerate(graph.checked().nodes)}
    lines = [json.dumps(_written(node, index), ensure_ascii=False, allow_nan=False) for node in graph.nodes]
    outputs = json.dumps([[index[value.node], value.output] for value in graph.outputs])
    nodes = ",\n  ".join(lines)
    return f'{{"format": "{FORMAT}", "version": {VERSION}, "nodes": [\n  {nodes}\n], "outputs": {outputs}}}\n'


def _written(node: Node, index: Mapping[Node, int]) -> dict[str, Any]:
    if table().get(node.op.name) is not node.op:
        raise UsageError(
            f"node {node.name!r} is a function of your own, whose code no file carries",
            next_move="Save the graph without it, or write that part with ops of windlass.",
            op=node.op.name,
        )
    found: dict[str, Any] = {"op": node.op.name, "name": node.name}
    if node.inputs:
        found["inputs"] = [[index[value.node], value.output] for value in node.inputs]
    if node.attrs:
        found["attrs"] = {key: _attr_written(node, key, value) for key, value in node.attrs.items()}
    if node.is_variable:
        type_ = node.types[0]
        found["shape"] = None if type_.shape is None else list(type_.shape)
        found["dtype"] = type_.dtype
    if node.labels:
        found["labels"] = dict(node.labels)
    return found


def _attr_written(node: Node, key: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple):
        return [_attr_written(node, key, each) for each in value]
    if isinstance(value, Constant):
        return {"array": _array_written(node, value.array)}
    raise UsageError(f"attribute {key!r} of node {node.name!r} cannot be written", got=type(value).__name__)


def _array_written(node: Node, array: Any) -> dict[str, Any]:
    if array.size > CONSTANT_ELEMENTS_MAX:
        raise UsageError(
            f"constant {node.name!r} is too large for a graph's file",
            next_move="Make it a variable, and save its values with the parameters.",
            elements=array.size,
            elements_max=CONSTANT_ELEMENTS_MAX,
        )
    listed = array.reshape(-1).tolist()
    if array.dtype.kind == "f":
        listed = [each if math.isfinite(each) else str(each) for each in listed]
    return {"dtype": array.dtype.name, "shape": list(array.shape), "data": listed}


def save(graph: Graph, path: str | Path) -> None:
    """Write the graph to a file, in place of what was there.

    Raises:
        UsageError: see `to_json`.
        UnavailableError: the storage refused.
    """
    text = to_json(graph).encode()
    storage.write_whole(storage.place_of(path), lambda write: write(text))


def load(path: str | Path) -> Graph:
    """The graph of a file.

    Raises:
        CorruptionError: the file cannot be read, or is none that `save` has written.
        UsageError: it asks for what this release lacks, or its parts do not fit together.
    """
    place = storage.place_of(path)
    with storage.opened_untrusted(place, "a graph's file cannot be read") as file:
        size = storage.length_of(file)
        if size > FILE_BYTES_MAX:
            raise CorruptionError("a graph's file is too large", file=path, bytes=size, bytes_max=FILE_BYTES_MAX)
        raw = file.read()
    try:
        text = raw.decode()
    except UnicodeDecodeError as cause:
        raise CorruptionError("a graph's file is no text", file=path, reason=cause) from None
    return from_json_untrusted(text, str(path))


def from_json_untrusted(text: str, source: str = "the text") -> Graph:
    """The graph of a text; `source` is what errors call it.

    Raises:
        CorruptionError: it is none that `to_json` has written.
        UsageError: it asks for what this release lacks, or its parts do not fit together.
    """
    if len(text) > FILE_BYTES_MAX:
        raise CorruptionError("a graph's text is too long", source=source, characters=len(text))
    try:
        record = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as cause:
        raise CorruptionError("this is no graph's JSON", source=source, reason=str(cause)[:200]) from None
    _expect(isinstance(record, dict) and record.get("format") == FORMAT, "this is no windlass graph", source=source)
    if record.get("version") != VERSION:
        raise UsageError(
            "a graph's file has a version that this release does not read",
            next_move="Read it with the release that wrote it, or a later one.",
            source=source,
            version=record.get("version"),
            known=VERSION,
        )
    listed, outputs = record.get("nodes"), record.get("outputs")
    _expect(isinstance(listed, list) and isinstance(outputs, list), "nodes and outputs are no lists", source=source)
    _expect(0 < len(listed) <= NODES_MAX, "the number of nodes is wrong", nodes=len(listed), nodes_max=NODES_MAX)
    nodes: list[Node] = []
    for i, fields in enumerate(listed):
        nodes.append(_read(fields, nodes, f"{source}: node {i}"))
    _expect(len(outputs) > 0, "there is no output", source=source)
    graph = Graph([_value(each, nodes, f"{source}: outputs") for each in outputs]).checked()
    reserve_names(node.name for node in nodes)
    return graph


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _expect(holds: bool, fact: str, **values: Any) -> None:
    if not holds:
        raise CorruptionError(fact, **values)


def _read(fields: Any, nodes: Sequence[Node], where: str) -> Node:
    _expect(isinstance(fields, dict), "a node is no object", at=where)
    name, attrs, labels = fields.get("name"), fields.get("attrs", {}), fields.get("labels", {})
    _expect(isinstance(name, str) and 0 < len(name) <= NAME_CHARACTERS_MAX, "a node's name is wrong", at=where)
    _expect(isinstance(fields.get("op"), str), "a node's op is no name", at=where, node=name)
    _expect(isinstance(attrs, dict), "attributes are no object", at=where, node=name)
    _expect(
        isinstance(labels, dict) and all(isinstance(each, str) for each in labels.values()),
        "labels are not text by name",
        at=where,
        node=name,
    )
    inputs = fields.get("inputs", [])
    _expect(isinstance(inputs, list), "inputs are no list", at=where, node=name)
    values = [_value(each, nodes, f"{where}, {name!r}") for each in inputs]
    op = lookup(fields["op"])
    try:
        filled = op.filled(_attrs(op, attrs, f"{where}, {name!r}"))
        if op.name == "variable":
            _expect(not values, "a variable has inputs", at=where, node=name)
            known = _type(fields.get("shape"), fields.get("dtype"), f"{where}, {name!r}")
            return variable(name, known, auxiliary=filled["auxiliary"], labels=labels, where=where)
        return make(op, values, filled, name, labels or NO_LABELS, where)
    except _WRONG_KINDS as cause:
        raise CorruptionError(
            "a node's attributes are none that its op takes", at=where, node=name, op=op.name, reason=str(cause)[:200]
        ) from cause


def _value(pair: Any, nodes: Sequence[Node], where: str) -> Value:
    _expect(isinstance(pair, list) and [type(each) for each in pair] == [int, int], "a value is no pair", at=where)
    node, output = pair
    _expect(0 <= node < len(nodes), "a value is of no node before it: a cycle, or a wrong number", at=where, node=node)
    _expect(0 <= output < len(nodes[node].types), "a node has no such output", at=where, node=node, output=output)
    return Value(nodes[node], output)


def _attrs(op: Op, attrs: Mapping[str, Any], where: str) -> dict[str, Any]:
    found = {}
    for key, value in attrs.items():
        found[key] = read = _attr(value, f"{where}, attribute {key!r}")
        default = op.attrs.get(key)
        if op.name == "constant" and key == "value":
            _expect(isinstance(read, Constant), "a constant is no array", at=where)
        elif key == "dtype":
            _expect(read is None or read in _DTYPES, "this is no dtype", at=where, got=str(read)[:60])
        elif isinstance(read, Constant):
            raise CorruptionError("an array is where none can be", at=f"{where}, attribute {key!r}")
        elif default is not None and default is not REQUIRED and not _alike(read, default):
            raise CorruptionError(
                "an attribute is of another kind", at=f"{where}, attribute {key!r}", got=read, default=default
            )
    return found


def _alike(value: Any, default: Any) -> bool:
    if isinstance(default, float):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or type(value) is type(default)


def _attr(value: Any, where: str, depth: int = 0) -> Any:
    if value is None or isinstance(value, bool | str | float):
        return value
    if isinstance(value, int):
        _expect(abs(value) <= INTEGER_MAX, "a number is too large", at=where)
        return value
    if isinstance(value, list) and depth < AXES_MAX:
        return tuple(_attr(each, where, depth + 1) for each in value)
    if isinstance(value, dict) and list(value) == ["float"] and value["float"] in ("inf", "-inf", "nan"):
        return float(value["float"])
    if isinstance(value, dict) and list(value) == ["array"] and isinstance(value["array"], dict) and depth == 0:
        return Constant(_array(value["array"], where))
    raise CorruptionError("this is no attribute", at=where, got=str(value)[:60])


def _array(fields: Mapping[str, Any], where: str) -> Any:
    type_ = _type(fields.get("shape"), fields.get("dtype"), where)
    _expect(type_.is_known, "an array's type is not told", at=where)
    listed: Any = fields.get("data")
    _expect(isinstance(listed, list) and len(listed) <= CONSTANT_ELEMENTS_MAX, "an array's data is wrong", at=where)
    _expect(len(listed) == type_.size, "an array's data is of another length", at=where, shape=type_.shape)
    kinds = {"f": (float, int, str), "b": (bool,)}.get(type_.known_dtype.kind, (int,))
    allowed = {"nan", "inf", "-inf"}
    _expect(
        all(type(each) in kinds and (type(each) is not str or each in allowed) for each in listed),
        "an array's data is of another kind",
        at=where,
        dtype=type_.dtype,
    )
    try:
        numbers = [float(each) for each in listed] if type_.known_dtype.kind == "f" else listed
        with np.errstate(over="ignore"):
            return np.array(numbers, type_.dtype).reshape(type_.known_shape)
    except (OverflowError, ValueError) as cause:
        raise CorruptionError("a number does not fit its dtype", at=where, reason=cause) from None


def _type(shape: Any, dtype: Any, where: str) -> TensorType:
    _expect(dtype is None or dtype in _DTYPES, "this is no dtype", at=where, got=str(dtype)[:60])
    if shape is None:
        return TensorType(None, dtype)
    _expect(
        isinstance(shape, list)
        and len(shape) <= AXES_MAX
        and all(each is None or (type(each) is int and 0 <= each <= INTEGER_MAX) for each in shape),
        "this is no shape",
        at=where,
        got=str(shape)[:60],
    )
    return TensorType(tuple(shape), dtype)
