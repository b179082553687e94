"""A symbol with arrays: forward, backward, gradients kept as was asked.

    exe = net.simple_bind(data=(64, 784))
    exe.arg_dict["fc1_weight"][:] = ...
    exe.forward(is_train=True, data=x, softmax_label=y)
    exe.backward()
    exe.grad_dict["fc1_weight"]

Invariant: arrays keep their places; `forward` reads them, `backward` writes gradients, and a training pass writes the
new values of auxiliary states. A training pass holds a frame (a block of the arena) until `backward`, the next
`forward` or the end of the executor. An executor belongs to one thread at a time. Programs are compiled when they are
first needed, and shared by executors that came from one another.

An argument's gradient is its array's `grad` too, unless the array had one of its own or is on a tape. So a `wl.Trainer`
steps an executor's arguments as it steps a model's parameters.

Prior art: MXNet's Executor, whose words these are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np

from windlass_graph.array import Array
from windlass_graph.binding import Binding, allocated, is_float, is_layer_parameter, type_given, types_of_variables
from windlass_graph.compile import compiled, in_mode
from windlass_graph.explanation import Explanation
from windlass_graph.graph import Graph
from windlass_graph.inference import infer, typed
from windlass_graph.node import Value
from windlass_graph.program import Frame, Program
from windlass_graph.symbol import Symbol
from windlass_graph.tensor_type import TensorType
from windlass_graph.training_graph import training_graph
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError

PROGRAMS_MAX: Final = 32
"""Programs that executors of one family keep: a training and a prediction program for 16 sets of shapes."""
Monitor = Callable[[str, Array], None]


@dataclass(frozen=True, slots=True)
class _Part:
    """A program, and what its outputs are: the symbol's, new auxiliary states, watched values, gradients."""

    program: Program
    outputs: int
    updated: tuple[str, ...]
    watched: tuple[str, ...]
    gradients: tuple[str, ...]
    heads: tuple[str, ...]

    @property
    def first_gradient(self) -> int:
        return self.outputs + len(self.updated) + len(self.watched)


class Executor:
    """Made by `symbol.bind` and `symbol.simple_bind`."""

    def __init__(self, graph: Graph, binding: Binding, programs: dict[Any, _Part] | None = None) -> None:
        self.graph = graph.checked()
        self._binding = binding
        for name, grad in binding.grads.items():
            array = binding.args[name]
            if array.grad is None and array.value is None:  # one on a tape stays there
                array.attach_grad(binding.reqs[name], grad)
        self._programs: dict[Any, _Part] = {} if programs is None else programs
        self._monitor: Monitor | None = None
        self._watches_variables = False
        self._running: tuple[_Part, Frame, list[Any]] | None = None
        self._outputs: list[Array] | None = None

    @property
    def arg_dict(self) -> dict[str, Array]:
        """Arguments by name."""
        return self._binding.args

    @property
    def grad_dict(self) -> dict[str, Array]:
        """Gradients by argument, of those that have one."""
        return self._binding.grads

    @property
    def aux_dict(self) -> dict[str, Array]:
        """Auxiliary states by name."""
        return self._binding.auxiliaries

    @property
    def grad_req(self) -> Mapping[str, str]:
        """What is done with the gradient of each argument."""
        return self._binding.reqs

    @property
    def arg_arrays(self) -> list[Array]:
        return list(self.arg_dict.values())

    @property
    def grad_arrays(self) -> list[Array | None]:
        """In the order of `arg_arrays`; None where there is no gradient."""
        return [self.grad_dict.get(name) for name in self.arg_dict]

    @property
    def aux_arrays(self) -> list[Array]:
        return list(self.aux_dict.values())

    @property
    def fresh(self) -> tuple[str, ...]:
        """Arguments and auxiliary states whose arrays this executor made, filled with zeros: fill them."""
        return self._binding.fresh

    @property
    def outputs(self) -> list[Array]:
        """Of the last `forward`; each pass makes new ones.

        Raises:
            UsageError: there was none.
        """
        if self._outputs is None:
            raise UsageError("this executor has computed nothing yet", next_move="Call forward() first.")
        return self._outputs

    @property
    def output_dict(self) -> dict[str, Array]:
        return dict(zip(Symbol(self.graph.outputs).list_outputs(), self.outputs, strict=True))

    def forward(self, is_train: bool = False, **inputs: Any) -> list[Array]:
        """Compute the outputs.

        Args:
            is_train: whether dropout drops and batch norm uses the batch; `backward` may follow.
            inputs: values that are copied into arguments first, by name.

        Raises:
            UsageError: an input is no argument, or of another shape.
        """
        for name, value in inputs.items():
            self._assign(name, value)
        self._drop()
        part = self._part(is_train)
        frame = part.program.start()
        heads = [self._binding.device.xp.empty(value.type.known_shape, value.type.dtype) for value in _heads(part)]
        try:
            for name, array in [*self.arg_dict.items(), *self.aux_dict.items()]:
                frame.feed(name, array.memory)
            for name, head in zip(part.heads, heads, strict=True):
                frame.feed(name, head)
            frame.run_leading()
            self._take(part, frame.outputs())
        except BaseException:
            frame.finish()
            raise
        if is_train:
            self._running = (part, frame, heads)
        else:
            frame.finish()
        return self.outputs

    def _take(self, part: _Part, memory: Sequence[Any]) -> None:
        """Keep the outputs and new auxiliary states of a pass, and show watched values."""
        device = self._binding.device
        self._outputs = [Array(each, device) for each in memory[: part.outputs]]
        after = memory[part.outputs :]
        for name, new in zip(part.updated, after, strict=False):
            self.aux_dict[name].memory[...] = new
        if self._monitor is not None:
            for name, value in zip(part.watched, after[len(part.updated) :], strict=False):
                self._monitor(name, Array(value, device))

    def backward(self, out_grads: Array | Sequence[Any] | None = None) -> None:
        """Gradients of the outputs' sum, each weighed by its `out_grads` (ones), into `grad_dict`.

        Fused losses ignore `out_grads`. Argument arrays must still hold what `forward` read.

        Raises:
            UsageError: no training pass came before, or a gradient given is of another shape.
        """
        if self._running is None:
            raise UsageError(
                "there is no training pass to differentiate",
                next_move="Call forward(is_train=True) before each backward().",
            )
        part, frame, heads = self._running
        self._fill(heads, out_grads)
        try:
            frame.run_rest()
            found = dict(zip(part.gradients, frame.outputs()[part.first_gradient :], strict=True))
        finally:
            self._drop()
        for name, grad in self.grad_dict.items():
            if self.grad_req[name] == "add":
                if name in found:
                    grad.memory[...] += found[name]
            else:
                grad.memory[...] = found.get(name, 0)
            self.arg_dict[name].grad_is_fresh |= self.arg_dict[name].grad is grad

    def _fill(self, heads: Sequence[Any], out_grads: Array | Sequence[Any] | None) -> None:
        given = [None] * len(heads) if out_grads is None else [out_grads] if isinstance(out_grads, Array) else out_grads
        if len(given) != len(heads):
            raise UsageError("each output has one gradient", outputs=len(heads), out_grads=len(given))
        for i, (head, grad) in enumerate(zip(heads, given, strict=True)):
            if grad is not None and np.shape(grad) != head.shape:
                raise UsageError(f"the gradient of output {i} has its shape", wanted=head.shape, got=np.shape(grad))
            head[...] = 1 if grad is None else _memory_of(grad)

    def _drop(self) -> None:
        """Give back what a training pass holds."""
        if self._running is not None:
            self._running[1].finish()
            self._running = None

    def _assign(self, name: str, value: Any) -> None:
        array = self.arg_dict.get(name)
        if array is None:
            raise UsageError(f"there is no argument {name!r}", next_move=did_you_mean(name, self.arg_dict))
        if np.shape(value) != array.shape:
            raise UsageError(
                f"argument {name!r} is bound to another shape",
                next_move="Use reshape() for another one.",
                bound=array.shape,
                got=np.shape(value),
            )
        array.memory[...] = _memory_of(value)

    def _part(self, training: bool) -> _Part:
        """The program for a mode, compiled if it is new."""
        wanted = tuple(self.grad_dict) if training else ()
        watched = None if self._monitor is None else self._watches_variables
        key = (self.graph, training, wanted, watched, self._binding.device, tuple(self._binding.types.items()))
        part = self._programs.get(key)
        if part is None:
            part = self._compiled(training, wanted)
            while len(self._programs) >= PROGRAMS_MAX:
                self._programs.pop(next(iter(self._programs)))
            self._programs[key] = part
        return part

    def _compiled(self, training: bool, wanted: Sequence[str]) -> _Part:
        ready = typed(in_mode(self.graph, training=training), self._binding.types)
        watched = [] if self._monitor is None else _watched(ready, self._watches_variables)
        device, outputs = self._binding.device, len(ready.outputs)
        if not training:
            graph = Graph([*ready.outputs, *watched])
            return _Part(compiled(graph, {}, device=device), outputs, (), _names(watched), (), ())
        joint = training_graph(ready, wanted, heads=True)
        leading = joint.graph.leading
        values = [*joint.graph.outputs[:leading], *watched, *joint.graph.outputs[leading:]]
        program = compiled(Graph(values, leading + len(watched)), {}, device=device)
        return _Part(program, outputs, joint.updated, _names(watched), joint.gradients, joint.heads)

    def explain(self, is_train: bool = False) -> Explanation:
        """What compiling for a mode did: passes, steps, bytes saved; to print, or to read field by field."""
        return self._part(is_train).program.explain()

    def set_monitor_callback(self, callback: Monitor | None, monitor_all: bool = False) -> None:
        """After each `forward`, call `callback(name, array)` for the values of every node, in the order of the graph.

        Args:
            callback: None stops it.
            monitor_all: show variables too.
        """
        self._monitor, self._watches_variables = callback, monitor_all

    def copy_params_from(
        self,
        arg_params: Mapping[str, Any],
        aux_params: Mapping[str, Any] | None = None,
        allow_extra_params: bool = False,
    ) -> None:
        """Copy values into arguments and auxiliary states, by name; without `aux_params` both are in `arg_params`.

        Raises:
            UsageError: a name is unknown and `allow_extra_params` is not set, or a shape differs.
        """
        both = self.arg_dict | self.aux_dict if aux_params is None else self.arg_dict
        for given, arrays in ((arg_params, both), (aux_params or {}, self.aux_dict)):
            for name, value in given.items():
                if name not in arrays:
                    if allow_extra_params:
                        continue
                    raise UsageError(f"there is no parameter {name!r}", next_move=did_you_mean(name, arrays))
                if np.shape(value) != arrays[name].shape:
                    shapes = {"bound": arrays[name].shape, "got": np.shape(value)}
                    raise UsageError(f"parameter {name!r} has another shape", **shapes)
                arrays[name].memory[...] = _memory_of(value)

    def reshape(self, partial_shaping: bool = False, **shapes: Sequence[int]) -> Self:
        """An executor for other shapes. Arrays whose shape stays are shared, the others are new.

        Args:
            partial_shaping: let arguments that are not in `shapes` change too, where those demand it.

        Raises:
            UsageError: shapes contradict each other, or an argument would change that was not named.
        """
        dtypes = {name: TensorType(None, type_.dtype) for name, type_ in self._binding.types.items()}
        for name in shapes:
            if name not in dtypes:
                raise UsageError(f"there is no argument {name!r}", next_move=did_you_mean(name, dtypes))
        asked = {name: type_given(shape, dtypes[name].dtype) for name, shape in shapes.items()}
        told = infer(self.graph, dtypes | asked)
        known = self._binding.types | asked
        for node in self.graph.variables:
            now = told[Value(node, 0)]
            if node.name in shapes or not now.is_known or now == known[node.name]:
                continue
            if not partial_shaping:
                raise UsageError(
                    f"argument {node.name!r} would change its shape with these",
                    next_move="Name it too, or pass partial_shaping=True.",
                    bound=known[node.name],
                    demanded=now,
                )
            known[node.name] = now
        return self._moved(self.graph, known)

    def edited(self, graph: Graph, **shapes: Sequence[int]) -> Self:
        """An executor of an edited graph.

        Arrays, gradients and requests of what both graphs have are kept; what is new begins as zeros and is named by
        `fresh`, as is what must change its shape because its layer did.

        Args:
            graph: by `executor.graph.replace(...)` and its like.
            shapes: of new variables whose shapes nothing else tells.

        Raises:
            UsageError: the kept arrays do not fit the new graph, or a shape cannot be told.
        """
        after = graph.checked()
        types = self._binding.types
        known = {
            node.name: TensorType(None, types[node.name].dtype) if is_layer_parameter(after, node) else types[node.name]
            for node in after.variables
            if node.name in types
        }
        known |= {name: type_given(shape, None) for name, shape in shapes.items()}
        told = infer(after, known)
        for node in after.variables:
            if node.name in types and not told[Value(node, 0)].has_shape:
                known[node.name] = types[node.name]
        return self._moved(after, known)

    def _moved(self, graph: Graph, known: Mapping[str, TensorType]) -> Self:
        """An executor with the arrays of this one where their types fit."""
        old = self._binding
        types = types_of_variables(graph, known)
        rest = "write" if any(req != "null" for req in old.reqs.values()) else "null"
        reqs = {
            node.name: old.reqs.get(node.name, rest) if is_float(types[node.name]) else "null"
            for node in graph.arguments
        }
        binding = allocated(graph, old.device, types, reqs, old.args | old.auxiliaries, old.grads)
        return type(self)(graph, binding, self._programs)


def _heads(part: _Part) -> list[Value]:
    return list(part.program.graph.outputs[: len(part.heads)])


def _watched(graph: Graph, variables: bool) -> list[Value]:
    return [
        Value(node, i)
        for node in graph.nodes
        if variables or not (node.is_variable or node.op.name == "constant")
        for i in range(node.op.visible)
    ]


def _names(values: Sequence[Value]) -> tuple[str, ...]:
    return tuple(Symbol(values).list_outputs()) if values else ()


def _memory_of(value: Any) -> Any:
    return value.memory if isinstance(value, Array) else np.asarray(value)
