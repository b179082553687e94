"""Symbols that MXNet has saved: the `-symbol.json` of a checkpoint.

Invariant: a file is untrusted: references point backwards, sizes are bounded, and what cannot be read exactly as MXNet
means it is an error that names the op and the node. Variables keep their names, so that MXNet's parameters fit.

Source: NNVM's JSON of graphs: nodes with op, name, attrs (all text) and inputs; heads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from windlass_graph.build import reserve_names, variable
from windlass_graph.mxnet_attributes import Attributes
from windlass_graph.mxnet_ops import AUXILIARY, TRANSLATIONS
from windlass_graph.node import Value
from windlass_graph.symbol import Group, Symbol
from windlass_graph.tensor_type import TensorType
from windlass_proto import storage
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import CorruptionError, UsageError

FILE_BYTES_MAX: Final = 64 * 2**20
NODES_MAX: Final = 200_000
_DTYPES: Final = {"0": "float32", "1": "float64", "2": "float16", "3": "uint8", "4": "int32", "5": "int8", "6": "int64"}


def load_mxnet(path: str | Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Symbol:
    """The symbol of a file that MXNet's `symbol.save` has written.

    Args:
        shapes: of variables by name, for ops whose meaning depends on them (codes of reshape, pooling whose last
            window is partial).

    Raises:
        CorruptionError: the file cannot be read, or is no such file.
        UsageError: an op, or what is asked of it, is none that windlass has; the node is named.
    """
    with storage.opened_untrusted(storage.place_of(path), "MXNet's symbol cannot be read") as file:
        size = storage.length_of(file)
        if size > FILE_BYTES_MAX:
            raise CorruptionError("MXNet's symbol is too large", file=path, bytes=size, bytes_max=FILE_BYTES_MAX)
        raw = file.read()
    try:
        record = json.loads(raw)
    except (ValueError, RecursionError) as cause:
        raise CorruptionError("this is no symbol's JSON", file=path, reason=str(cause)[:200]) from None
    return _symbol(record, shapes or {}, str(path))


def _expect(holds: bool, fact: str, **values: Any) -> None:
    if not holds:
        raise CorruptionError(fact, **values)


def _symbol(record: Any, shapes: Mapping[str, Sequence[int]], source: str) -> Symbol:
    _expect(isinstance(record, dict), "this is no symbol of MXNet", file=source)
    nodes, heads = record.get("nodes"), record.get("heads")
    _expect(isinstance(nodes, list) and isinstance(heads, list), "this is no symbol of MXNet", file=source)
    _expect(0 < len(nodes) <= NODES_MAX and len(heads) > 0, "the number of nodes is wrong", nodes=len(nodes))
    for i, fields in enumerate(nodes):
        _expect(
            isinstance(fields, dict)
            and isinstance(fields.get("op"), str)
            and isinstance(fields.get("name"), str)
            and isinstance(fields.get("inputs"), list),
            "a node is none of MXNet's",
            file=source,
            node=i,
        )
    names = [fields["name"] for fields in nodes]
    for name in shapes:
        if name not in names:
            raise UsageError(f"there is no variable {name!r}", next_move=did_you_mean(name, names))
    reserve_names(names)
    auxiliary = {
        _pair(fields["inputs"][at], len(nodes), fields["name"])[0]
        for fields in nodes
        for at in AUXILIARY.get(fields["op"], ())
        if at < len(fields["inputs"])
    }
    made: list[Sequence[Symbol]] = []
    for i, fields in enumerate(nodes):
        attrs = Attributes(fields["name"], fields["op"], _attributes(fields))
        if fields["op"] == "null":
            made.append([_variable(attrs, i in auxiliary, shapes.get(fields["name"]))])
        else:
            made.append(_translated(attrs, [_input(pair, made, fields["name"]) for pair in fields["inputs"]]))
    return Group([_input(pair, made, "heads") for pair in heads]).graph.checked().symbol


def _attributes(fields: Mapping[str, Any]) -> dict[str, str]:
    """Under the names that MXNet has used for them since 0.5."""
    found: dict[str, str] = {}
    for key in ("param", "attr", "attrs"):
        part = fields.get(key, {})
        _expect(
            isinstance(part, dict) and all(isinstance(value, str) for value in part.values()),
            "attributes are not text by name",
            node=fields["name"],
        )
        found |= part
    return found


def _pair(pair: Any, count: int, where: str) -> tuple[int, int]:
    _expect(
        isinstance(pair, list) and len(pair) in (2, 3) and all(type(each) is int for each in pair),
        "an input is no pair of numbers",
        node=where,
    )
    node, output = pair[:2]
    _expect(0 <= node < count, "an input is of no node before it: a cycle, or a wrong number", node=where, input=node)
    return node, output


def _input(pair: Any, made: Sequence[Sequence[Symbol]], where: str) -> Symbol:
    node, output = _pair(pair, len(made), where)
    if not 0 <= output < len(made[node]):
        raise UsageError(
            f"node {where!r} of MXNet reads an output that windlass lacks", input=made[node][0].name, output=output
        )
    return made[node][output]


def _variable(attrs: Attributes, auxiliary: bool, shape: Sequence[int] | None) -> Symbol:
    given = tuple(shape) if shape is not None else _declared(attrs.labels.pop("shape", None))
    dtype = _DTYPES.get(attrs.labels.pop("dtype", ""))
    node = variable(attrs.node, TensorType(given, dtype), auxiliary=auxiliary, labels=attrs.labels)
    return Symbol([Value(node, 0)])


def _declared(text: str | None) -> tuple[int | None, ...] | None:
    """A shape in MXNet's text; 0 and -1 are unknown axes."""
    if text is None:
        return None
    found = Attributes("", "", {"shape": text}).integers("shape")
    return tuple(axis if axis > 0 else None for axis in found) if found else None


def _translated(attrs: Attributes, ins: list[Symbol]) -> Sequence[Symbol]:
    translate = TRANSLATIONS.get(attrs.op)
    if translate is None:
        raise UsageError(
            f"op {attrs.op!r} of MXNet, node {attrs.node!r}, has no translation",
            next_move="Build the symbol without it; docs/from-mxnet.md lists what is translated.",
        )
    _expect(len(ins) > 0, "a node has no inputs", op=attrs.op, node=attrs.node)
    try:
        found = translate(attrs, ins, {"name": attrs.node, "labels": attrs.labels})
    except (TypeError, IndexError, ValueError, ZeroDivisionError) as cause:
        raise CorruptionError(
            "a node of MXNet has attributes or inputs that its op lacks",
            op=attrs.op,
            node=attrs.node,
            inputs=len(ins),
            reason=str(cause)[:200],
        ) from cause
    attrs.finish()
    return list(found) if isinstance(found, tuple) else [found]
