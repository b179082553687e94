"""`wl.sym`: symbols, and every op as a function of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from windlass_graph import composed, graph_file
from windlass_graph.functions import function
from windlass_graph.mxnet_symbols import load_mxnet
from windlass_graph.op import table
from windlass_graph.scope import Labels, Prefix
from windlass_graph.symbol import Group, Symbol, Variable
from windlass_proto.arguments import unknown_name

__all__ = ["Group", "Labels", "Prefix", "Symbol", "Variable", "fromjson", "load", "load_mxnet", "var"]

var = Variable


def load(path: str | Path) -> Symbol:
    """The symbol that `symbol.save` has written.

    Raises:
        CorruptionError: the file cannot be read, or is no graph's.
        UsageError: it asks for what this release lacks, or its parts do not fit together.
    """
    return graph_file.load(path).symbol


def fromjson(text: str) -> Symbol:
    """The symbol of what `symbol.tojson` has given; raises as `load` does."""
    return graph_file.from_json_untrusted(text).symbol


def __getattr__(name: str) -> Any:
    if name in composed.__all__:
        return getattr(composed, name)
    if name.startswith("_") or name not in table():
        raise unknown_name("windlass.sym", name, [*__all__, *composed.__all__, *table()])
    return function(name)
