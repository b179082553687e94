"""Symbols: values of a graph that is written before it runs.

Invariant: a symbol is one or several values and holds nothing else; composing, indexing and differentiating give other
symbols over shared nodes.

Prior art: MXNet's Symbol, whose vocabulary this is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from windlass_graph import modes, scope
from windlass_graph.build import constant, fresh_name, make, variable
from windlass_graph.functions import function
from windlass_graph.gradient import reverse
from windlass_graph.graph import Graph, by_name, kept
from windlass_graph.inference import infer
from windlass_graph.node import Node, Value, caller_line, topological
from windlass_graph.op import Op
from windlass_graph.operand import Operand
from windlass_graph.tensor_type import TensorType, as_float, promoted
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError

if TYPE_CHECKING:
    from windlass_graph.array import Array
    from windlass_graph.binding import Given, GradReq
    from windlass_graph.executor import Executor


class Symbol(Operand):
    """One or several values of a graph. Made by `wl.sym.Variable`, by ops on symbols, by `wl.sym.Group`."""

    __slots__ = ("values",)

    def __init__(self, values: Sequence[Value]) -> None:
        self.values = tuple(values)

    @classmethod
    def applied(cls, op: Op, operands: tuple[Any, ...], given: dict[str, Any]) -> Any:
        """A node of `op`. Inputs that are parameters of the op may be left out and become variables of its own."""
        name = scope.named(given.pop("name", "") or fresh_name(op.name))
        labels = scope.labelled(given.pop("labels", None))
        named = {key: given.pop(key) for key in list(given) if isinstance(given[key], Symbol)}
        if "training" in op.attrs and given.get("training") is None and modes.is_tracing():
            given["training"] = modes.is_training()
        attrs = op.filled(given)
        operands = _with_parameters(op, op.input_names(attrs), operands, named, name, labels)
        node = make(op, _lifted(op, operands), attrs, name, labels)
        if op.visible == 1:
            return cls([Value(node, 0)])
        return tuple(cls([Value(node, i)]) for i in range(op.visible))

    @property
    def value(self) -> Value:
        """The one value of this symbol.

        Raises:
            UsageError: it has several.
        """
        if len(self.values) != 1:
            raise UsageError(
                "a group is no operand", next_move="Take one of its outputs: group[0].", outputs=self.list_outputs()
            )
        return self.values[0]

    @property
    def graph(self) -> Graph:
        return Graph(self.values)

    @property
    def name(self) -> str:
        return self.value.node.name

    @property
    def type(self) -> TensorType:
        return self.value.type

    @property
    def shape(self) -> Any:
        """As far as it is known where the symbol was made; None where nothing is."""
        return self.type.shape

    @property
    def dtype(self) -> str | None:
        return self.type.dtype

    @property
    def ndim(self) -> int:
        if self.shape is None:
            raise UsageError("nothing is known of this symbol's shape", symbol=self.name)
        return len(self.shape)

    def __bool__(self) -> bool:
        raise self._no_value("a branch")

    def __float__(self) -> float:
        raise self._no_value("a number")

    def __int__(self) -> int:
        raise self._no_value("a number")

    def item(self) -> Any:
        raise self._no_value("a number")

    def numpy(self) -> Any:
        raise self._no_value("an array")

    def _no_value(self, what: str) -> UsageError:
        """The error of Python's code that wants a value while a graph is written."""
        return UsageError(
            f"{what} needs a value, and a symbol has none while its graph is written",
            next_move="Choose with F.where(...), or do not hybridize the block that branches.",
            symbol=", ".join(map(str, self.values)),
            line=caller_line(),
        )

    def __repr__(self) -> str:
        return f"<Symbol {', '.join(map(str, self.values))}>"

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Self]:
        return (type(self)([value]) for value in self.values)

    def __getitem__(self, key: Any) -> Self:
        """An output by its name or, of a group, by its number; otherwise a part of the tensor."""
        if isinstance(key, str):
            names = self.list_outputs()
            if key not in names:
                raise UsageError(f"there is no output {key!r}", next_move=did_you_mean(key, names))
            return type(self)([self.values[names.index(key)]])
        if len(self.values) > 1:
            return type(self)([self.values[key]])
        from windlass_graph.indexing import getitem

        found: Self = getitem(self, key)
        return found

    def __call__(self, **inputs: Symbol) -> Self:
        """This symbol as a function: with variables replaced by other symbols, by name.

        Raises:
            UsageError: there is no such variable.
        """
        graph = self.graph
        known = by_name(graph.variables)
        for name in inputs:
            if name not in known:
                raise UsageError(f"there is no variable {name!r}", next_move=did_you_mean(name, known))

        def rewrite(node: Node, now: tuple[Value, ...]) -> list[Value]:
            return [inputs[node.name].value] if node.is_variable and node.name in inputs else kept(node, now)

        return type(self)(graph.rewritten(rewrite).outputs)

    def bind(
        self,
        device: Any = None,
        args: Given = None,
        args_grad: Given = None,
        grad_req: GradReq = "write",
        aux_states: Given = None,
    ) -> Executor:
        """An executor of this symbol with arrays that are there.

        Args:
            device: `cpu:0` unless it is said otherwise.
            args: one array for each argument, by name or in order. `wl.nd` arrays are shared, others copied.
            args_grad: `wl.nd` arrays into which gradients are written, of those arguments that have one.
            grad_req: "write", "add" or "null", for all or by name or in order.
            aux_states: one array for each auxiliary state.

        Raises:
            UsageError: an array is missing, surplus, elsewhere or of a type that the graph refuses.
        """
        from windlass_graph.binding import bound
        from windlass_graph.executor import Executor

        graph = self.graph
        return Executor(graph, bound(graph, device, args, args_grad, grad_req, aux_states))

    def simple_bind(
        self,
        device: Any = None,
        grad_req: GradReq = "write",
        type_dict: Mapping[str, Any] | None = None,
        shared_exec: Executor | None = None,
        **shapes: Sequence[int],
    ) -> Executor:
        """An executor of this symbol with new arrays, filled with zeros, of the shapes that follow from `shapes`.

        Args:
            type_dict: dtypes by argument; float32 where nothing tells.
            shared_exec: an executor whose arrays are taken where name and type are the same.

        Raises:
            UsageError: shapes contradict each other or cannot be told.
        """
        from windlass_graph.binding import allocated, requests, type_given, types_of_variables
        from windlass_graph.executor import Executor

        dtypes, graph = type_dict or {}, self.graph
        known = {name: type_given(shapes.get(name), dtypes.get(name)) for name in [*shapes, *dtypes]}
        types = types_of_variables(graph, known)
        arrays = {} if shared_exec is None else shared_exec.arg_dict | shared_exec.aux_dict
        grads = {} if shared_exec is None else shared_exec.grad_dict
        reqs = requests(graph, types, grad_req)
        return Executor(graph, allocated(graph, device, types, reqs, arrays, grads))

    def eval(self, device: Any = None, **arrays: Any) -> list[Array]:
        """The outputs for these arguments, computed once."""
        auxiliary = self.list_auxiliary_states()
        args = {name: array for name, array in arrays.items() if name not in auxiliary}
        states = {name: array for name, array in arrays.items() if name in auxiliary}
        return self.bind(device, args, None, "null", states).forward()

    def list_arguments(self) -> list[str]:
        """Names of the variables that gradients may reach, in the order in which they are met."""
        return [node.name for node in self.graph.arguments]

    def list_auxiliary_states(self) -> list[str]:
        return [node.name for node in self.graph.auxiliaries]

    def list_outputs(self) -> list[str]:
        return [_output_name(value) for value in self.values]

    def list_inputs(self) -> list[str]:
        """Names of all variables: arguments and auxiliary states."""
        return [node.name for node in self.graph.variables]

    def get_children(self) -> Self | None:
        """What this symbol's node reads, as one group; None of a variable."""
        inputs = self.value.node.inputs
        return type(self)(inputs) if inputs else None

    def get_internals(self) -> Self:
        """All values of the graph, as one group: `s.get_internals()["fc1_output"]`."""
        values = [Value(node, i) for node in self.graph.nodes for i in range(node.op.visible)]
        return type(self)(values)

    def attr(self, key: str) -> str | None:
        """A label of this symbol's node, or an attribute of its op as text."""
        node = self.value.node
        if key in node.labels:
            return node.labels[key]
        return str(node.attrs[key]) if key in node.attrs else None

    def attr_dict(self) -> dict[str, dict[str, str]]:
        """Attributes and labels of every node, as text, by the node's name."""
        found = {}
        for node in self.graph.nodes:
            shown = {key: str(value) for key, value in node.attrs.items()} | dict(node.labels)
            if shown:
                found[node.name] = shown
        return found

    def tojson(self) -> str:
        """The graph as text, in the format of docs/graph-format.md.

        Raises:
            UsageError: a node is a function of your own, or a constant is too large.
        """
        from windlass_graph.graph_file import to_json

        return to_json(self.graph)

    def save(self, path: str | Path) -> None:
        """Write the graph, without values of variables, to a file; `wl.sym.load` reads it."""
        from windlass_graph.graph_file import save

        save(self.graph, path)

    def debug_str(self, **shapes: Sequence[int]) -> str:
        """One line a node: name, op, inputs, attributes, types as far as they follow from `shapes`."""
        from windlass_graph.drawing import listing

        return listing(self.graph, _types_of(shapes))

    def print(self, **shapes: Sequence[int]) -> None:
        """Print the graph as a drawing in text."""
        from windlass_graph.drawing import text_drawing

        sys.stdout.write(text_drawing(self.graph, _types_of(shapes)) + "\n")

    def draw(self, path: str | Path | None = None, **shapes: Sequence[int]) -> str:
        """The graph in Graphviz's language, with types as far as they follow from `shapes`; also written to `path`."""
        from windlass_graph.drawing import dot

        text = dot(self.graph, _types_of(shapes))
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def infer_shape(self, **shapes: Sequence[int]) -> tuple[list[Any], list[Any], list[Any]]:
        """Shapes of arguments, outputs and auxiliary states from those of some variables.

        Raises:
            UsageError: they contradict each other, or some cannot be told; `infer_shape_partial` gives what can.
        """
        found = self.infer_shape_partial(**shapes)
        names = [self.list_arguments(), self.list_outputs(), self.list_auxiliary_states()]
        unknown = [
            name
            for listed, types in zip(names, found, strict=True)
            for name, shape in zip(listed, types, strict=True)
            if shape is None or None in shape
        ]
        if unknown:
            raise UsageError("shapes cannot be told", next_move="Give more of them.", unknown=", ".join(unknown))
        return found

    def infer_shape_partial(self, **shapes: Sequence[int]) -> tuple[list[Any], list[Any], list[Any]]:
        """As `infer_shape`, with None for what cannot be told."""
        types = infer(self.graph, _types_of(shapes))
        return (
            [types[Value(node, 0)].shape for node in self.graph.arguments],
            [types[value].shape for value in self.values],
            [types[Value(node, 0)].shape for node in self.graph.auxiliaries],
        )

    def infer_type(self, **dtypes: Any) -> tuple[list[Any], list[Any], list[Any]]:
        """Dtypes of arguments, outputs and auxiliary states from those of some variables; None where unknown."""
        known = {name: TensorType(None, np.dtype(dtype).name) for name, dtype in dtypes.items()}
        types = infer(self.graph, known)
        return (
            [types[Value(node, 0)].dtype for node in self.graph.arguments],
            [types[value].dtype for value in self.values],
            [types[Value(node, 0)].dtype for node in self.graph.auxiliaries],
        )

    def gradient(self, by: Sequence[str] | str, head_grads: Sequence[Symbol] | None = None) -> Any:
        """Symbols that compute the gradient of the outputs' sum by variables; they can be differentiated again.

        Returns:
            One symbol for each name, or one alone if `by` is one name.

        Raises:
            UsageError: there is no such variable, or no differentiable path leads to it.
        """
        listed = [by] if isinstance(by, str) else list(by)
        known = by_name(self.graph.variables)
        for name in listed:
            if name not in known:
                raise UsageError(f"there is no variable {name!r}", next_move=did_you_mean(name, known))
        seeds: dict[Value, Any] = {}
        for i, value in enumerate(self.values):
            one = type(self)([value])
            seed = function("ones_like")(one) if head_grads is None else head_grads[i]
            seeds[value] = seeds[value] + seed if value in seeds else seed
        wanted = [Value(known[name], 0) for name in listed]
        found = reverse(topological(self.values), seeds, wanted, lambda value: type(self)([value]))
        for name, value in zip(listed, wanted, strict=True):
            if value not in found:
                raise UsageError(
                    f"no differentiable path leads from {', '.join(self.list_outputs())} to {name!r}",
                    next_move="Look for argmax, comparisons or block_grad on the way.",
                )
        results = [found[value] for value in wanted]
        return results[0] if isinstance(by, str) else results


def Variable(  # noqa: N802 - its name in the field
    name: str, shape: Sequence[int | None] | None = None, dtype: Any = None, labels: Mapping[str, str] | None = None
) -> Symbol:
    """A variable: a value that comes from outside, by its name."""
    known = TensorType(None if shape is None else tuple(shape), None if dtype is None else np.dtype(dtype).name)
    return Symbol([Value(variable(name, known, labels=scope.labelled(labels)), 0)])


def Group(symbols: Sequence[Symbol]) -> Symbol:  # noqa: N802 - its name in the field
    """Several symbols as one, with all their outputs."""
    return Symbol([value for symbol in symbols for value in symbol.values])


def _types_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, TensorType]:
    return {name: TensorType(tuple(shape)) for name, shape in shapes.items()}


def _output_name(value: Value) -> str:
    node = value.node
    if node.is_variable:
        return node.name
    return f"{node.name}_output" if node.op.visible == 1 else f"{node.name}_output{value.output}"


def _with_parameters(
    op: Op,
    names: tuple[str, ...],
    operands: tuple[Any, ...],
    named: dict[str, Symbol],
    stem: str,
    labels: Mapping[str, str],
) -> tuple[Any, ...]:
    """Operands by position, then by name; parameters that are missing become variables."""
    if names and names[-1].startswith("*"):
        return operands
    listed: list[Any] = list(operands)
    for name in names[len(operands) :]:
        if name in named:
            listed.append(named.pop(name))
        elif name in op.parameters:
            made = variable(f"{stem}_{name}", TensorType(), auxiliary=name in op.auxiliary, labels=labels)
            listed.append(Symbol([Value(made, 0)]))
    if named:
        wrong = next(iter(named))
        raise UsageError(f"{op.name} has no input {wrong!r} left", next_move=f"Its inputs: {', '.join(names)}.")
    return tuple(listed)


def _lifted(op: Op, operands: tuple[Any, ...]) -> list[Value]:
    """Numbers become constants of the dtype of the symbols they meet; arrays constants of their own."""
    dtypes = [operand.value.type.dtype for operand in operands if isinstance(operand, Symbol)]
    common = promoted([dtype for dtype in dtypes if dtype]) if any(dtypes) else None
    return [operand.value if isinstance(operand, Symbol) else _constant(op, operand, common) for operand in operands]


def _constant(op: Op, operand: Any, common: str | None) -> Value:
    if isinstance(operand, bool | int | float):
        dtype = as_float(common) if isinstance(operand, float) else common
        return Value(constant(operand, dtype), 0)
    if hasattr(operand, "__array__") or isinstance(operand, list | tuple):
        array = np.asarray(operand)
        return Value(constant(array, array.dtype.name), 0)
    raise UsageError(
        f"{op.name} was given what is no operand",
        next_move="Use a symbol, a NumPy array or a number.",
        got=type(operand).__name__,
    )
