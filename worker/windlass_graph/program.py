"""A graph made ready to run on one device: steps in order, and a place in the arena for each value.

    program = Program(graph, device)          # a typed graph
    frame = program.start()
    frame.feed("x", x)
    frame.run()                               # borrows a block of the arena
    y = frame.outputs()[0]
    frame.finish()                            # gives the block back

Invariant: a program is immutable and shared by threads; a frame is one run of it and belongs to one thread at a time.
Outputs lie in memory of their own, never in the arena, and belong to the caller. Variables and constants are never
written. Steps that the leading outputs need come first, so a frame can be run in two parts with other work between.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from windlass_graph.arena import arena_of
from windlass_graph.device import Device, stream
from windlass_graph.explanation import Explanation, PassRecord, explained
from windlass_graph.graph import Graph
from windlass_graph.observation import WATCH, Observer, Ran, settle
from windlass_graph.op import Attrs, Forward, Run
from windlass_graph.plan import Plan
from windlass_graph.step_table import STEPS
from windlass_graph.tensor_type import TensorType, type_of
from windlass_proto.errors import UsageError

_IDLE_MAX: Final = 4


class Program:
    """Steps and memory plan of one typed graph on one device."""

    def __init__(self, graph: Graph, device: Device, history: Sequence[PassRecord] = ()) -> None:
        self.graph = graph
        self.history = tuple(history)
        """What passes made of the graph."""
        self.device = device
        self.plan = Plan(graph)
        self.constants: dict[int, Any] = {
            slot: device.xp.asarray(node.attrs["value"].array, node.types[0].dtype)
            for slot, node in self.plan.constants.items()
        }
        made = [STEPS.forward(step.node, device) for step in self.plan.steps]
        self.forwards: tuple[Forward, ...] = tuple(forward for forward, _ in made)
        """The prepared forward function of each step."""
        self.reused_steps = sum(reused for _, reused in made)
        """How many of them were prepared for another program, or for another step of this one."""
        self.compiled_steps = len(made) - self.reused_steps
        self._lock = threading.Lock()
        self._idle: list[Frame] = []

    @property
    def arena_bytes(self) -> int:
        """What the plan needs for all intermediate values."""
        return self.plan.arena_bytes

    @property
    def unplanned_bytes(self) -> int:
        """What they would need with memory of its own for each."""
        return self.plan.unplanned_bytes

    def explain(self) -> Explanation:
        """What passes, the plan of memory and the table of steps did: to print, or to read field by field."""
        return explained(self)

    def start(self) -> Frame:
        """A run of this program, with memory for it."""
        with self._lock:
            frame = self._idle.pop() if self._idle else Frame(self)
        frame.begin()
        return frame

    def keep(self, frame: Frame) -> None:
        """Take back a frame that is done, for the next `start`."""
        with self._lock:
            if len(self._idle) < _IDLE_MAX:
                self._idle.append(frame)

    def run(self, feeds: Mapping[str, Any]) -> list[Any]:
        """All outputs, from all variables; memory in, memory out."""
        frame = self.start()
        for name, memory in feeds.items():
            frame.feed(name, memory)
        frame.run()
        outputs = frame.outputs()
        frame.finish()
        return outputs


class Frame:
    """One run of a program: the array of every slot, and each step's lists of them.

    Frames are used again: what a slot holds changes (a block, a variable, an output), the lists stay and are patched.
    """

    def __init__(self, program: Program) -> None:
        self.program = program
        self.plan = plan = program.plan
        self._begun = False
        self._block: Any = None
        self._seen_block: Any = None
        self._arrays: list[Any] = [None] * len(plan.types)
        self._uses: list[list[tuple[list[Any], int]]] = [[] for _ in plan.types]
        self._bound: list[tuple[Forward, Attrs, list[Any], list[Any], list[Any]]] = []
        for step, forward in zip(plan.steps, program.forwards, strict=True):
            scratch = () if step.scratch is None else (step.scratch,)
            ins, outs, own = self._listed(step.ins), self._listed(step.outs), self._listed(scratch)
            self._bound.append((forward, step.node.attrs, ins, outs, own or [None]))
        for slot, memory in program.constants.items():
            self._put(slot, memory)
        self._unbound: set[int] = set()
        self._output_roots = {plan.root(slot) for slot in plan.output_slots} - plan.given_roots

    def _listed(self, slots: tuple[int, ...]) -> list[Any]:
        found: list[Any] = [None] * len(slots)
        for position, slot in enumerate(slots):
            self._uses[slot].append((found, position))
        return found

    def _put(self, root: int, memory: Any) -> None:
        """Let a root be this memory, and all slots that view it."""
        types = self.plan.types
        for slot in (root, *self.plan.views.get(root, ())):
            array = memory if slot == root else _reinterpreted(memory, types[slot])
            self._arrays[slot] = array
            for listed, position in self._uses[slot]:
                listed[position] = array

    def begin(self) -> None:
        """No variable is bound, and nothing is borrowed before the first step is run."""
        self._unbound = set(self.plan.variables.values())
        self._begun = True

    def _borrow(self) -> None:
        """Take memory for the plan, and make that of outputs."""
        plan, device = self.plan, self.program.device
        self._block = arena_of(device).borrow(plan.arena_bytes)
        if self._block is not self._seen_block:
            for root, offset in zip(plan.buffers, plan.placement.offsets, strict=True):
                self._put(root, _view(self._block, offset, plan.types[root]))
            self._seen_block = self._block
        for root in self._output_roots:
            self._put(root, device.xp.empty(plan.types[root].known_shape, plan.types[root].dtype))

    def feed(self, name: str, memory: Any) -> None:
        """Bind a variable to C-contiguous memory of its type, which is read until the frame is finished.

        Raises:
            UsageError: the type is another.
        """
        slot = self.plan.variables.get(name)
        if slot is None:
            return  # no step needs it
        expected = self.plan.types[slot]
        if memory.shape != expected.shape or memory.dtype != expected.dtype:
            raise UsageError(
                f"variable {name!r} was bound to another type",
                next_move="Bind again.",
                expected=expected,
                got=type_of(memory),
            )
        if self._arrays[slot] is not memory:
            self._put(slot, memory)
        self._unbound.discard(slot)

    def run(
        self,
        begin: int = 0,
        end: int | None = None,
        *,
        complete: Callable[[int], None] | None = None,
        rng: np.random.Generator | None = None,
    ) -> None:
        """Run steps `begin` to `end`; `complete(number)` is told of each output as soon as its last step is done.

        Raises:
            UsageError: a variable is not bound.
        """
        program = self.program
        if self._unbound:
            names = [name for name, slot in self.plan.variables.items() if slot in self._unbound]
            raise UsageError("variables are unbound", next_move="Bind each to an array.", variables=", ".join(names))
        if self._block is None:
            self._borrow()
        xp = program.device.xp
        run = Run(stream(program.device) if rng is None else rng)
        last = len(self._bound) if end is None else end
        if WATCH.observers:
            self._run_observed(run, begin, last, complete, WATCH.observers)
            return
        for at in range(begin, last):
            forward, attrs, ins, outs, scratch = self._bound[at]
            run.scratch = scratch[0]
            forward(xp, attrs, ins, outs, run)
            if complete is not None and at in self.plan.made_at:
                for number in self.plan.made_at[at]:
                    complete(number)

    def _run_observed(
        self,
        run: Run,
        begin: int,
        end: int,
        complete: Callable[[int], None] | None,
        observers: Sequence[Observer],
    ) -> None:
        """The same with each step told to observers."""
        plan, device = self.plan, self.program.device
        for each in observers:
            each.run_begins(begin)
        began = time.perf_counter_ns()
        for at in range(begin, end):
            forward, attrs, ins, outs, scratch = self._bound[at]
            run.scratch = scratch[0]
            before = time.perf_counter_ns()
            forward(device.xp, attrs, ins, outs, run)
            settle(device)
            after = time.perf_counter_ns()
            node = plan.steps[at].node
            nbytes = plan.written_bytes[at]
            event = Ran("step", node.op.name, node.name, node.where, outs, nbytes, device, before, after)
            for each in observers:
                each.ran(event)
            if complete is not None:
                for number in plan.made_at.get(at, ()):
                    complete(number)
        name = self.program.graph.outputs[0].node.name
        whole = Ran("run", "program", name, "", (), plan.arena_bytes, device, began, time.perf_counter_ns())
        for each in observers:
            each.ran(whole)

    def run_leading(self, rng: np.random.Generator | None = None) -> None:
        """Run what the leading outputs need."""
        self.run(0, self.plan.leading_steps, rng=rng)

    def run_rest(self, complete: Callable[[int], None] | None = None) -> None:
        """Run what is left after `run_leading`."""
        self.run(self.plan.leading_steps, None, complete=complete)

    def outputs(self) -> list[Any]:
        """Memory of all outputs."""
        return [self.output(number) for number in range(len(self.plan.output_slots))]

    def lend(self, number: int, memory: Any) -> None:
        """Let an output that no leading step touches lie in the caller's memory, of its type; between the two parts."""
        if self.plan.late_outputs[number]:
            root = self.plan.root(self.plan.output_slots[number])
            self._put(root, _reinterpreted(memory, self.plan.types[root]))
            self._arrays[self.plan.output_slots[number]] = memory

    def output(self, number: int) -> Any:
        """Memory of one output, the caller's; a copy where it is a variable's, a constant's or another output's."""
        memory = self._arrays[self.plan.output_slots[number]]
        return memory.copy() if self.plan.copied_outputs[number] else memory

    def finish(self) -> None:
        """Give the memory back and forget outputs and variables. The frame is not used again by its holder."""
        if not self._begun:
            return
        self._begun = False
        if self._block is not None:
            arena_of(self.program.device).give_back(self._block)
            self._block = None
        for root in self._output_roots:
            self._put_nothing(root)
        for slot in self.plan.variables.values():
            self._put_nothing(slot)
        self.program.keep(self)

    def _put_nothing(self, root: int) -> None:
        for slot in (root, *self.plan.views.get(root, ())):
            self._arrays[slot] = None
            for listed, position in self._uses[slot]:
                listed[position] = None


def _view(block: Any, offset: int, type_: TensorType) -> Any:
    return block[offset : offset + type_.nbytes].view(type_.dtype).reshape(type_.known_shape)


def _reinterpreted(memory: Any, type_: TensorType) -> Any:
    """The same bytes as another type of the same size."""
    flat = memory.reshape(-1)
    return (flat if flat.dtype == type_.dtype else flat.view(type_.dtype)).reshape(type_.known_shape)
