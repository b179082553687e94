"""What a block computes, compiled once for each signature: the engine of `hybridize()`.

Invariant: a call gives what the same forward computes at once, in values, gradients and gradients of gradients. While a
tape is recorded a call is one node of it, which holds the frame in which the forward part ran until the backward part
has run there; the frame's memory then goes back to the device's arena, from which every signature draws.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from windlass_graph import modes
from windlass_graph.array import Array, Recorded
from windlass_graph.build import fresh_names, variable
from windlass_graph.compile import program_of
from windlass_graph.device import Device, stream
from windlass_graph.explanation import Explanation
from windlass_graph.functions import function
from windlass_graph.graph import Graph
from windlass_graph.inference import typed
from windlass_graph.node import NO_LABELS, Value
from windlass_graph.op import Backward, Op
from windlass_graph.passes.recompute import Policy
from windlass_graph.program import Frame, Program
from windlass_graph.symbol import Symbol
from windlass_graph.tensor_type import TensorType
from windlass_graph.training_graph import TrainingGraph, training_graph, updates_of
from windlass_proto.errors import UsageError

SIGNATURES_MAX: Final = 256
"""Compiled signatures a block keeps; the oldest makes room. A variable-length model has one a length."""

Trace = Callable[[Sequence[Symbol]], Sequence[Symbol]]


class GraphCall:
    """One typed graph as a function of arrays.

    Args:
        graph: typed; its variables are the inputs, by name.
        names: the order in which inputs are given.
        by: inputs by which it is differentiated when it is recorded.
        recompute: what the backward part computes again; see `passes.recompute`.
    """

    def __init__(
        self,
        graph: Graph,
        names: Sequence[str],
        by: Sequence[str],
        device: Device,
        recompute: Policy | None = None,
    ) -> None:
        self.graph = graph
        self.names = tuple(names)
        self.by = tuple(by)
        self.device = device
        self._recompute = recompute
        self._lock = threading.Lock()
        self._plain: Program | None = None
        self._training: tuple[TrainingGraph, Program] | None = None
        self._slope: GraphCall | None = None
        self._updates = updates_of(graph)
        self._random = any(node.op.random for node in graph.nodes)
        self._op = Op("cached_graph", ("*data",), _never, _never, _gradient, visible=len(graph.outputs))

    def __call__(self, arrays: Sequence[Array]) -> tuple[list[Array], dict[str, Any]]:
        """The outputs, and new values of auxiliary variables by name."""
        if modes.is_recording() and any(array.value is not None for array in arrays):
            return self._recorded(arrays)
        program = self._plain_program()
        frame = self._fed(program.start(), arrays)
        frame.run()
        memory = frame.outputs()
        frame.finish()
        count = len(self.graph.outputs)
        found = [Array(each, self.device) for each in memory[:count]]
        return found, dict(zip(self._updates, memory[count:], strict=True))

    def _plain_program(self) -> Program:
        with self._lock:
            if self._plain is None:
                graph = self.graph
                if self._updates:
                    graph = Graph([*graph.outputs, *self._updates.values()])
                self._plain = program_of(graph, self.device)
            return self._plain

    def _training_program(self) -> tuple[TrainingGraph, Program]:
        with self._lock:
            if self._training is None:
                joint = training_graph(self.graph, self.by, heads=True)
                self._training = (joint, program_of(joint.graph, self.device, recomputed=self._recompute))
            return self._training

    def _fed(self, frame: Frame, arrays: Sequence[Array]) -> Frame:
        for name, array in zip(self.names, arrays, strict=True):
            frame.feed(name, array.memory)
        return frame

    def _recorded(self, arrays: Sequence[Array]) -> tuple[list[Array], dict[str, Any]]:
        joint, program = self._training_program()
        frame = self._fed(program.start(), arrays)
        for number, head in enumerate(joint.heads):
            frame.feed(head, _placeholder(self.graph.outputs[number].type, self.device))
        call = Recording(self, joint, frame, _state(self.device) if self._random else None)
        frame.run_leading()
        memory = [frame.output(number) for number in range(joint.outputs + len(joint.updated))]
        types = tuple(value.type for value in self.graph.outputs)
        inputs = tuple(array.value or array.as_constant() for array in arrays)
        attrs = {"recording": call}
        outs = memory[: joint.outputs]
        node = Recorded(self._op, inputs, attrs, "", "", types, NO_LABELS, tuple(outs), self.device)
        found = [Array(each, self.device, Value(node, i)) for i, each in enumerate(outs)]
        return found, dict(zip(joint.updated, memory[joint.outputs :], strict=True))

    def explain(self) -> dict[str, Explanation]:
        """What compiling did, for the programs that have been needed: "prediction", "training"."""
        found = {}
        if self._plain is not None:
            found["prediction"] = self._plain.explain()
        if self._training is not None:
            found["training"] = self._training[1].explain()
        return found

    def slope(self) -> GraphCall:
        """The gradients as a function of the inputs and of the outputs' gradients, which can be differentiated."""
        with self._lock:
            if self._slope is None:
                joint = training_graph(self.graph, self.by, heads=True)
                behind = joint.graph.outputs[joint.outputs + len(joint.updated) :]
                names = (*self.names, *joint.heads)
                by_name = dict(zip(joint.gradients, behind, strict=True))
                listed = [by_name[name] for name in self.by if name in by_name]
                self._slope = GraphCall(Graph(listed), names, (*self.by, *joint.heads), self.device)
            return self._slope

    def reached(self) -> tuple[str, ...]:
        """The inputs of `by` that a differentiable path reaches, in the order of `slope`'s outputs."""
        reached = set(self._training_program()[0].gradients)
        return tuple(name for name in self.by if name in reached)


@dataclass(slots=True, eq=False)
class Recording:
    """One recorded call: the frame that waits for its backward part, if it still does."""

    call: GraphCall
    joint: TrainingGraph
    frame: Frame | None
    state: Any
    """Of the random numbers before the forward part, so that it can be run again with the same ones."""

    def gradients(self, backward: Backward) -> dict[int, Any]:
        """By input, for those that a path reaches."""
        if modes.is_recording() or self.frame is None:
            return self._by_slope(backward)
        frame, self.frame = self.frame, None
        position = {name: index for index, name in enumerate(self.call.names)}
        first = self.joint.outputs + len(self.joint.updated)
        for head, grad in zip(self.joint.heads, backward.grads, strict=True):
            frame.feed(head, grad.memory)

        for number, name in enumerate(self.joint.gradients):
            memory = backward.target(position[name])
            if memory is not None:
                frame.lend(first + number, memory)

        def complete(number: int) -> None:
            if number >= first:
                index = position[self.joint.gradients[number - first]]
                backward.announce(index, Array(frame.output(number), self.call.device))

        frame.run_rest(complete)
        found = {
            position[name]: Array(frame.output(first + number), self.call.device)
            for number, name in enumerate(self.joint.gradients)
        }
        frame.finish()
        return found

    def _by_slope(self, backward: Backward) -> dict[int, Any]:
        """As a call that can be recorded, and that runs the forward part again."""
        position = {name: index for index, name in enumerate(self.call.names)}
        before = _state(self.call.device)
        if self.state is not None:
            stream(self.call.device).bit_generator.state = self.state
        outs, _ = self.call.slope()([*backward.ins, *backward.grads])
        if self.state is not None:
            stream(self.call.device).bit_generator.state = before
        return {position[name]: out for name, out in zip(self.call.reached(), outs, strict=True)}


def _gradient(backward: Backward, index: int) -> Any:
    found = backward.shared(backward.attrs["recording"].gradients)
    return found[index] if index in found else function("zeros_like")(backward.ins[index])


def _never(*_: Any) -> Any:
    raise AssertionError("a cached graph is called; it is not inferred and not run as a step")


@functools.lru_cache(maxsize=SIGNATURES_MAX)
def _placeholder(type_: TensorType, device: Device) -> Any:
    """What stands for a head gradient until it is known: never read."""
    return device.xp.broadcast_to(device.xp.zeros((), type_.dtype), type_.known_shape)


def _state(device: Device) -> Any:
    return stream(device).bit_generator.state


class CachedGraph:
    """A traced function with its compiled signatures.

    Args:
        trace: gives the outputs as symbols, from symbols of the inputs; parameters come into it as variables.
        recompute: what backward parts compute again instead of keeping it; see `passes.recompute`.
    """

    def __init__(self, trace: Trace, recompute: Policy | None = None) -> None:
        self._trace = trace
        self._recompute = recompute
        self._lock = threading.Lock()
        self._calls: dict[Any, GraphCall] = {}

    @property
    def signatures(self) -> int:
        """How many are compiled."""
        return len(self._calls)

    def explain(self) -> dict[str, Explanation]:
        """What compiling did for each signature and mode, by these in words."""
        with self._lock:
            calls = list(self._calls.items())
        return {
            f"{', '.join(map(str, key[0]))}: {mode}": explanation
            for key, call in calls
            for mode, explanation in call.explain().items()
        }

    def __call__(self, inputs: Sequence[Array], parameters: Mapping[str, Array]) -> tuple[list[Array], dict[str, Any]]:
        """The outputs for these inputs, and new values of auxiliary parameters (memory by name).

        Raises:
            UsageError: what is traced does not fit the inputs, or uses a parameter that is not given.
        """
        device = inputs[0].device
        recording = modes.is_recording()
        by = tuple(f"data{i}" for i, array in enumerate(inputs) if recording and array.value is not None)
        by += tuple(name for name, array in parameters.items() if recording and array.value is not None)
        types = tuple(array.type for array in inputs)
        key = (types, tuple(array.type for array in parameters.values()), device, modes.is_training(), by)
        call = self._calls.get(key)
        if call is None:
            call = self._compiled(key, types, parameters, by, device)
        arrays = {f"data{i}": array for i, array in enumerate(inputs)} | dict(parameters)
        return call([arrays[name] for name in call.names])

    def _compiled(
        self, key: Any, types: Sequence[TensorType], parameters: Mapping[str, Array], by: Sequence[str], device: Device
    ) -> GraphCall:
        graph = self.traced(types, training=modes.is_training())
        known = {node.name: parameters[node.name].type for node in graph.variables if node.name in parameters}
        missing = [n.name for n in graph.variables if n.name not in parameters and not n.name.startswith("data")]
        if missing:
            raise UsageError("a traced block uses parameters that are not its own", parameters=", ".join(missing))
        ready = typed(graph, known).checked()
        names = [node.name for node in ready.variables]
        made = GraphCall(ready, names, [name for name in by if name in names], device, self._recompute)
        with self._lock:
            if len(self._calls) >= SIGNATURES_MAX:
                self._calls.pop(next(iter(self._calls)))
            return self._calls.setdefault(key, made)

    def traced(self, types: Sequence[TensorType], *, training: bool) -> Graph:
        """The graph of the outputs, with inputs `data0`, `data1`, ... of these types."""
        symbols = [Symbol([Value(variable(f"data{i}", each), 0)]) for i, each in enumerate(types)]
        with modes.tracing(training=training), fresh_names():
            outputs = self._trace(symbols)
        return Graph([output.value for output in outputs])
