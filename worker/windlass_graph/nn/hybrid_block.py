"""Blocks that can be compiled: their `forward` holds for arrays and for symbols.

Invariant: `forward` is written once, with operators, `wl.F` and calls of children. Called with arrays it computes at
once; called with symbols it makes a graph; after `hybridize()` it is traced once for each signature (shapes, dtypes,
mode) and the compiled graph is run, which gives the same values. A trace meets no values: Python's control flow over
shapes, attributes and None is resolved while tracing, a branch on a value is an error in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import ref

from windlass_graph.array import Array
from windlass_graph.build import fresh_names
from windlass_graph.cached_graph import CachedGraph
from windlass_graph.explanation import Explanation
from windlass_graph.graph import Graph
from windlass_graph.inference import infer
from windlass_graph.modes import is_training
from windlass_graph.nn.block import Block
from windlass_graph.nn.parameter import Parameter
from windlass_graph.nn.structure import Structure, flattened, rebuilt
from windlass_graph.nn.trace import current_trace, tracing_into
from windlass_graph.node import Value
from windlass_graph.operand import Operand
from windlass_graph.passes.recompute import Policy
from windlass_graph.symbol import Group, Symbol, Variable
from windlass_graph.tensor_type import TensorType, type_of
from windlass_proto.errors import UsageError


class Compiled:
    """A hybrid block's forward for one structure of arguments, with its compiled signatures."""

    def __init__(self, block: HybridBlock, structure: Structure) -> None:
        self._block = ref(block)
        self._class = type(block).__name__
        self._structure = structure
        self._results: dict[bool, Structure] = {}
        self.parameters = block.collect_params()
        self.graph = CachedGraph(self._traced, block._recompute)

    def _traced(self, symbols: Sequence[Symbol]) -> Sequence[Symbol]:
        """The outputs of `forward`, and in `_results` how it arranges them."""
        block = self._block()
        assert block is not None, "a block is alive while it is called"
        args, kwargs = rebuilt(self._structure, symbols)
        with tracing_into(block.trace()):
            result = block.forward(*args, **kwargs)
        leaves, self._results[is_training()] = flattened(result)
        wrong = [leaf for leaf in leaves if not isinstance(leaf, Symbol)]
        if wrong or not leaves:
            raise UsageError(
                "a traced block returned what does not depend on its inputs",
                next_move="Return results of operators and wl.F, or do not hybridize this block.",
                block=self._class,
                got=type(wrong[0]).__name__ if wrong else "nothing",
            )
        return leaves

    def traced(self, types: Sequence[TensorType], *, training: bool) -> Graph:
        """The graph for inputs of these types."""
        return self.graph.traced(types, training=training)

    def __call__(self, leaves: Sequence[Array]) -> Any:
        device = leaves[0].device
        arrays = {name: parameter.data(device) for name, parameter in self.parameters.items()}
        outputs, updated = self.graph(leaves, arrays)
        for name, memory in updated.items():
            arrays[name].memory[...] = memory
        return rebuilt(self._results[is_training()], outputs)


class HybridBlock(Block):
    """A block that `hybridize()` compiles.

    Example:
        class Net(nn.HybridBlock):
            def __init__(self):
                super().__init__()
                self.hidden = nn.Dense(64)
                self.out = nn.Dense(10)

            def forward(self, x):
                return self.out(wl.F.relu(self.hidden(x)))
    """

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "_active", False)
        object.__setattr__(self, "_recompute", None)
        object.__setattr__(self, "_compiled", {})

    _active: bool
    _recompute: Policy | None
    _compiled: dict[Structure, Compiled]

    def _check_child(self, name: str, value: Block | Parameter) -> None:
        if isinstance(value, Block) and not isinstance(value, HybridBlock):
            raise UsageError(
                "a hybrid block holds hybrid blocks alone",
                next_move="Make the child a HybridBlock, or this block a Block.",
                block=type(self).__name__,
                child=f"{name}: {type(value).__name__}",
            )

    def hybridize(self, active: bool = True, *, recompute: Policy | None = None) -> None:
        """Compile this block, and run what was compiled from now on; with False compute at once again.

        Args:
            recompute: which values the backward part computes again instead of keeping them: "sqrt", a number of
                segments, or names of nodes; see `windlass_graph.passes.recompute`.
        """
        self._active = active
        self._recompute = recompute
        self.clear_cache()
        super().hybridize(active, recompute=recompute)

    def explain(self) -> dict[str, Explanation]:
        """What compiling did, by signature and mode in words: passes, steps, bytes saved; to print, or to read.

        Raises:
            UsageError: nothing has been compiled.
        """
        found: dict[str, Explanation] = {}
        for compiled in self._compiled.values():
            found.update(compiled.graph.explain())
        if not found:
            raise UsageError(
                "nothing of this block has been compiled",
                next_move="Call hybridize(), then the block.",
                block=type(self).__name__,
            )
        return found

    @property
    def is_hybridized(self) -> bool:
        return self._active

    def clear_cache(self) -> None:
        """Forget what was compiled; it is traced again when it is called next."""
        self._compiled.clear()

    def _compute(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self._active or current_trace() is not None:
            return super()._compute(args, kwargs)
        leaves, structure = flattened((args, kwargs))
        if not leaves or not all(isinstance(leaf, Array) for leaf in leaves):
            return super()._compute(args, kwargs)
        compiled = self._compiled.get(structure)
        if compiled is None:
            self.infer_shape(*args, **kwargs)
            compiled = self._compiled[structure] = Compiled(self, structure)
            for _, block in self.blocks():
                block._compiled_by.add(self)
        return compiled(leaves)

    def _tell_shapes(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.infer_shape(*args, **kwargs)

    def infer_shape(self, *args: Any, **kwargs: Any) -> None:
        """Tell the shapes of all parameters that `forward` meets from inputs (arrays, or symbols with shapes).

        Deferred ones get their values with it.

        Raises:
            UsageError: shapes contradict each other, or some cannot be told.
        """
        parameters = self.collect_params()
        if all(parameter.has_shape and not parameter.is_deferred for parameter in parameters.values()):
            return
        leaves, structure = flattened((args, kwargs))
        graph = Compiled(self, structure).traced(types_of(leaves), training=is_training())
        types = infer(graph, {})
        for node in graph.variables:
            parameter = parameters.get(node.name)
            if parameter is not None:
                parameter.shape = types[Value(node, 0)].shape
        for parameter in parameters.values():
            if parameter.is_deferred and parameter.has_shape:
                parameter.finish_initialization()
        for node in graph.variables:
            if node.name in parameters:
                parameters[node.name].finish_initialization()

    def traced(self, *inputs: Any, training: bool = False) -> Graph:
        """The graph that `forward` makes of inputs (arrays, or symbols with shapes), as variables `data0`, ...."""
        leaves, structure = flattened((inputs, {}))
        self.infer_shape(*inputs)
        return Compiled(self, structure).traced(types_of(leaves), training=training)

    def export(self, path: str | Path, *inputs: Any) -> tuple[Path, Path]:
        """Write the block as a graph and its parameters: `path-symbol.json` and `path.safetensors`.

        `SymbolBlock.imports` reads both. The length of the inputs' first axis is left open.

        Args:
            path: what both names begin with.
            inputs: examples (arrays, or symbols with shapes); the graph's inputs are "data", or "data0", "data1", ....

        Raises:
            UsageError: a parameter has no values; the block holds a function of your own.
            UnavailableError: a file could not be written.
        """
        self.infer_shape(*inputs)
        leaves, structure = flattened(inputs)
        names = ["data"] if len(leaves) == 1 else [f"data{i}" for i in range(len(leaves))]
        symbols = [
            Variable(name, (None, *(each.shape or ())[1:]), each.dtype)
            for name, each in zip(names, types_of(leaves), strict=True)
        ]
        with fresh_names():
            found, _ = flattened(self(*rebuilt(structure, symbols)))
        place, values = Path(f"{path}-symbol.json"), Path(f"{path}.safetensors")
        Group(found).save(place)
        self.save_parameters(values)
        return place, values


def types_of(leaves: Sequence[Any]) -> list[TensorType]:
    """What is known of each operand; NumPy arrays are taken as they are."""
    return [leaf.type if isinstance(leaf, Operand) else type_of(leaf) for leaf in leaves]  # type: ignore[attr-defined]
