"""Forward functions made ready for one op, its attributes and types, kept to be used again.

Invariant: a key tells the op, every attribute, the types of inputs and outputs and the kind of device, and nothing of
the graph a node stands in; so an edited graph, or a second one that does the same somewhere, prepares only what is new.
The table is guarded by its lock; beyond `STEPS_MAX` the entry that was asked for longest ago is forgotten.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Final

from windlass_graph.device import Device
from windlass_graph.node import Node
from windlass_graph.op import Forward, Op
from windlass_graph.structure import attrs_key

STEPS_MAX: Final = 8192
"""A deep network has some hundreds; an entry takes about 1 KB and what its op prepares."""


class StepTable:
    """Prepared forward functions by what they do; any thread may ask."""

    def __init__(self, steps_max: int = STEPS_MAX) -> None:
        self._steps_max = steps_max
        self._lock = threading.Lock()
        self._forwards: OrderedDict[Hashable, tuple[Op, Forward]] = OrderedDict()
        self.compiled = 0
        """How often something was not there yet."""
        self.reused = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._forwards)

    def forward(self, node: Node, device: Device) -> tuple[Forward, bool]:
        """The forward function of a node whose types are known, and whether it was there already."""
        key = _key(node, device)
        with self._lock:
            found = self._forwards.get(key)
            if found is not None:
                self._forwards.move_to_end(key)
                self.reused += 1
                return found[1], True
        made = _prepared(node, device.xp)
        with self._lock:
            self._forwards[key] = (node.op, made)  # the op is kept alive, as its identity is in the key
            self.compiled += 1
            if len(self._forwards) > self._steps_max:
                self._forwards.popitem(last=False)
        return made, False


def _key(node: Node, device: Device) -> Hashable:
    ins = tuple(value.type for value in node.inputs)
    return (id(node.op), attrs_key(node.attrs), ins, node.types, device.kind)


def _prepared(node: Node, xp: Any) -> Forward:
    op = node.op
    if op.prepare is None:
        return op.forward
    return op.prepare(xp, node.attrs, [value.type for value in node.inputs], node.types)


STEPS: Final = StepTable()
"""The one table of this process."""
