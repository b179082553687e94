"""A graph as a block: `SymbolBlock`, from symbols or from the files that `export` has written.

Invariant: the graph's variables that are no inputs are parameters of the block under their own names, full stops
included, so that a file of the block that was exported fits. Forward walks the graph with functions that hold for
arrays and for symbols, so the block can be hybridized, edited and put into others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from windlass_graph.array import array_of
from windlass_graph.device import Device
from windlass_graph.functions import apply
from windlass_graph.graph import Graph
from windlass_graph.nn.hybrid_block import HybridBlock
from windlass_graph.nn.parameter import Parameter
from windlass_graph.node import Node, Value
from windlass_graph.symbol import Group, Symbol
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError


class SymbolBlock(HybridBlock):
    """What a symbol computes.

    Args:
        outputs: a symbol, or several.
        inputs: variables that a call gives, as symbols or by name, in their order; the others are parameters.
        params: values of parameters by name; the others are for `initialize` or `load_parameters`.

    Raises:
        UsageError: an input is no variable of the graph, or a value is of no parameter.
    """

    def __init__(
        self,
        outputs: Symbol | Sequence[Symbol],
        inputs: Symbol | str | Sequence[Symbol | str],
        params: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        symbol = outputs if isinstance(outputs, Symbol) else Group(outputs)
        self.graph: Graph = symbol.graph
        listed = [inputs] if isinstance(inputs, Symbol | str) else list(inputs)
        self.inputs = [each.name if isinstance(each, Symbol) else each for each in listed]
        variables = {node.name: node for node in self.graph.variables}
        for name in self.inputs:
            if name not in variables:
                raise UsageError(f"the graph has no variable {name!r}", next_move=did_you_mean(name, variables))
        for name, node in variables.items():
            if name not in self.inputs:
                self._own[name] = _parameter(name, node)
        for name, values in (params or {}).items():
            if name not in self._own:
                raise UsageError(f"the graph has no parameter {name!r}", next_move=did_you_mean(name, self._own))
            self._own[name].load(values.numpy() if hasattr(values, "numpy") else values)

    @classmethod
    def imports(
        cls,
        symbol_file: str | Path,
        inputs: str | Sequence[str],
        param_file: str | Path | None = None,
        device: str | Device | Sequence[str | Device] | None = None,
    ) -> SymbolBlock:
        """The block of a graph's file and a file of parameters.

        Raises:
            CorruptionError: a file cannot be read.
            UsageError: the files do not fit together, or an input is no variable of the graph.
        """
        from windlass_graph import graph_file

        found = cls(graph_file.load(symbol_file).symbol, inputs)
        if param_file is not None:
            found.load_parameters(param_file, device=device)
        return found

    def forward(self, *args: Any) -> Any:
        if len(args) != len(self.inputs):
            raise UsageError("a symbol's block takes its inputs", inputs=", ".join(self.inputs), got=len(args))
        given = dict(zip(self.inputs, args, strict=True))
        found: dict[Value, Any] = {}
        for node in self.graph.nodes:
            if node.is_variable:
                results = (given[node.name] if node.name in given else self._own[node.name].data(),)
            elif node.op.name == "constant":
                results = (_constant(node, args[0]),)
            else:
                made = apply(node.op, tuple(found[value] for value in node.inputs), dict(node.attrs))
                results = made if isinstance(made, tuple) else (made,)
            found.update({Value(node, i): result for i, result in enumerate(results)})
        outputs = [found[value] for value in self.graph.outputs]
        return outputs[0] if len(outputs) == 1 else outputs

    def settings(self) -> str:
        return f"{', '.join(self.inputs)} -> {', '.join(self.graph.symbol.list_outputs())}"


def _parameter(name: str, node: Node) -> Parameter:
    known = node.types[0]
    made = Parameter(known.shape, known.dtype or "float32", differentiable=not node.attrs["auxiliary"])
    made.name = name
    return made


def _constant(node: Node, like: Any) -> Any:
    """A constant in the front of `like`; a weak number stays one, and takes the dtype of what it meets."""
    if isinstance(like, Symbol):
        return Symbol([Value(node, 0)])
    array = node.attrs["value"].array
    return array.item() if node.attrs["weak"] and array.size == 1 else array_of(array, device=like.device)
