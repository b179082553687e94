"""`wl.sym`: symbols, and every op as a function of them."""

from __future__ import annotations

from typing import Any

from windlass_graph.functions import function
from windlass_graph.op import table
from windlass_graph.symbol import Group, Symbol, Variable
from windlass_proto.arguments import unknown_name

__all__ = ["Group", "Symbol", "Variable"]


def __getattr__(name: str) -> Any:
    if name.startswith("_") or name not in table():
        raise unknown_name("windlass.sym", name, [*__all__, *table()])
    return function(name)
