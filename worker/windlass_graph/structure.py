"""When two nodes are the same work: the key under which like nodes are merged and prepared steps are found again.

Invariant: equal keys mean the same function, bit for bit. Attributes are therefore compared with their types, floats
by their bits: 0.0 and -0.0, or 1 and True, are equal to Python and not to an op.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from windlass_graph.op import Attrs


def attrs_key(attrs: Attrs) -> Hashable:
    """A key of attributes."""
    return tuple((name, _value_key(value)) for name, value in attrs.items())


def _value_key(value: Any) -> Hashable:
    if isinstance(value, float):
        return ("float", value.hex())
    if isinstance(value, tuple):
        return tuple(_value_key(each) for each in value)
    found: Hashable = (type(value), value)
    return found
