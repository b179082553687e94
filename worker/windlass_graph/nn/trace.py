"""What a thread's blocks are doing: on which device they compute, and for which trace their parameters are symbols.

Invariant: both are a thread's own and end with the block that set them. While a trace is under way each parameter of
the traced block is one variable, named by the parameter's structural path.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from windlass_graph.build import variable
from windlass_graph.device import Device
from windlass_graph.node import Value
from windlass_graph.scope import named, only_prefix
from windlass_graph.symbol import Symbol
from windlass_graph.tensor_type import TensorType
from windlass_proto.errors import UsageError

if TYPE_CHECKING:
    from windlass_graph.nn.parameter import Parameter


class Trace:
    """Variables that stand for a block's parameters.

    Args:
        parameters: of the traced block, by structural name.
        paths: of the blocks below it, by identity; nodes are named by the path of the block that makes them.
        block: its class, for errors.
    """

    def __init__(self, parameters: Mapping[str, Parameter], paths: Mapping[int, str], block: str) -> None:
        self._names = {id(parameter): name for name, parameter in parameters.items()}
        self._paths = paths
        self._block = block
        self._before = named("")
        self._symbols: dict[str, Symbol] = {}

    def within(self, block: object) -> AbstractContextManager[None]:
        """Inside, nodes carry the path of this block before their names."""
        path = self._paths.get(id(block))
        return only_prefix(self._before + (f"{path}." if path else ""))

    def symbol(self, parameter: Parameter) -> Symbol:
        """The variable of a parameter.

        Raises:
            UsageError: the traced block does not hold it.
        """
        name = self._names.get(id(parameter))
        if name is None:
            raise UsageError(
                "a traced block uses a parameter that it does not hold",
                next_move="Assign the parameter, or the block that has it, to an attribute of this block.",
                block=self._block,
                parameter=parameter.name or "unnamed",
            )
        if name not in self._symbols:
            known = TensorType(parameter.shape, parameter.dtype)
            node = variable(name, known, auxiliary=not parameter.differentiable)
            self._symbols[name] = Symbol([Value(node, 0)])
        return self._symbols[name]


class _Doing(threading.local):
    def __init__(self) -> None:
        self.trace: Trace | None = None
        self.device: Device | None = None


_DOING = _Doing()


def current_trace() -> Trace | None:
    """The trace that this thread writes, if any."""
    return _DOING.trace


def current_device() -> Device | None:
    """The device of the arrays that this thread's outermost block was called with."""
    return _DOING.device


@contextmanager
def tracing_into(trace: Trace) -> Iterator[None]:
    """Inside, parameters are symbols of `trace`."""
    before, _DOING.trace = _DOING.trace, trace
    try:
        yield
    finally:
        _DOING.trace = before


def on_device(device: Device, call: Any, *args: Any) -> Any:
    """`call(*args)`, in which parameters give their copy on `device`."""
    before, _DOING.device = _DOING.device, device
    try:
        return call(*args)
    finally:
        _DOING.device = before
