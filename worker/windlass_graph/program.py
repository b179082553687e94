"""A graph made ready to run on one device: steps in order, and a place in the arena for each value.

    program = Program(graph, device)          # a typed graph
    frame = program.start()                   # borrows a block of the arena
    frame.feed("x", x)
    frame.run()
    y = frame.outputs()[0]
    frame.finish()                            # gives the block back

Invariant: a program is immutable and shared by threads; a frame is one run of it and belongs to one thread at a time.
Outputs lie in memory of their own, never in the arena, and belong to the caller. Variables and constants are never
written. Steps that the leading outputs need come first, so a frame can be run in two parts with other work between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from windlass_graph.arena import arena_of
from windlass_graph.device import Device, stream
from windlass_graph.graph import Graph
from windlass_graph.memory import Buffer, Placement, aligned, placed
from windlass_graph.node import Node, Value
from windlass_graph.op import Attrs, Forward, Run
from windlass_graph.tensor_type import TensorType, type_of
from windlass_proto.errors import UsageError


@dataclass(frozen=True, slots=True)
class Step:
    """One node's work: slots it reads, slots it writes, the slot of its scratch memory."""

    node: Node
    forward: Forward
    attrs: Attrs
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    scratch: int | None


@dataclass(frozen=True, slots=True)
class Slot:
    """One array of a frame. `root` is the slot whose memory it is, itself unless it is a view or in place."""

    type: TensorType
    root: int


class Program:
    """Steps and memory plan of one typed graph on one device."""

    def __init__(self, graph: Graph, device: Device) -> None:
        self.graph = graph
        self.device = device
        self.slots: list[Slot] = []
        self._slot_of: dict[Value, int] = {}
        self.variables: dict[str, int] = {}
        self.constants: dict[int, Any] = {}
        self.steps: list[Step] = []
        self._read_last: dict[int, int] = {}
        self._lay_out()
        self.output_slots = tuple(self._slot_of[value] for value in graph.outputs)
        self.leading_steps = sum(1 for step in self.steps if step.node in graph.leading_nodes)
        self._lives = self._lifetimes()
        self._merge_in_place()
        self.buffers, self.placement = self._placed()
        self.made_at: dict[int, list[int]] = {}
        """Which outputs are complete after a step, by number."""
        self._note_outputs()

    def _lay_out(self) -> None:
        """Slots and steps, in the order in which nodes run: those of the leading outputs first."""
        leading = self.graph.leading_nodes
        ordered = sorted(self.graph.nodes, key=lambda node: node not in leading)
        for node in ordered:
            if node.is_variable:
                self.variables[node.name] = self._new_slot(Value(node, 0))
            elif node.op.name == "constant":
                made = self.device.xp.asarray(node.attrs["value"].array, node.types[0].dtype)
                self.constants[self._new_slot(Value(node, 0))] = made
            elif node.op.view:
                self._new_slot(Value(node, 0), self.slots[self._slot_of[node.inputs[0]]].root)
            else:
                self._add_step(node)

    def _new_slot(self, value: Value, root: int | None = None) -> int:
        index = len(self.slots)
        self.slots.append(Slot(value.type, index if root is None else root))
        self._slot_of[value] = index
        return index

    def _add_step(self, node: Node) -> None:
        ins = tuple(self._slot_of[value] for value in node.inputs)
        outs = tuple(self._new_slot(Value(node, i)) for i in range(len(node.types)))
        scratch = None
        if node.op.scratch is not None:
            nbytes = node.op.scratch(node.attrs, [value.type for value in node.inputs])
            if nbytes:
                scratch = len(self.slots)
                self.slots.append(Slot(TensorType((nbytes,), "uint8"), scratch))
        self.steps.append(Step(node, node.op.forward, node.attrs, ins, outs, scratch))

    def _root(self, slot: int) -> int:
        while self.slots[slot].root != slot:
            slot = self.slots[slot].root
        return slot

    def _lifetimes(self) -> dict[int, tuple[int, int]]:
        """For each root that a step writes: the step that writes it first and the one that touches it last."""
        lives: dict[int, tuple[int, int]] = {}
        for at, step in enumerate(self.steps):
            written = [*step.outs, *([] if step.scratch is None else [step.scratch])]
            for slot in written:
                lives[self._root(slot)] = (at, at)
            for slot in step.ins:
                root = self._root(slot)
                if root in lives:
                    lives[root] = (lives[root][0], at)
        return lives

    @property
    def outer_roots(self) -> set[int]:
        """Roots whose memory is not the arena's: variables, constants, outputs."""
        outputs = {self._root(slot) for slot in self.output_slots}
        return {*self.variables.values(), *self.constants, *outputs}

    def _merge_in_place(self) -> None:
        """Let an output take the memory of an input that nobody reads later."""
        outer = self.outer_roots
        for at, step in enumerate(self.steps):
            out = step.outs[0]
            if self._root(out) in outer or not step.node.op.inplace:
                continue
            for i in step.node.op.inplace:
                root = self._root(step.ins[i])
                if root in outer or root not in self._lives or self._lives[root][1] != at:
                    continue
                if self.slots[root].type.nbytes != self.slots[out].type.nbytes:
                    continue
                begin, _ = self._lives.pop(root)
                _, end = self._lives.pop(out)
                self.slots[out] = Slot(self.slots[out].type, root)
                self._lives[root] = (begin, end)
                break

    def _placed(self) -> tuple[list[int], Placement]:
        outer = self.outer_roots
        roots = [root for root in self._lives if root not in outer]
        buffers = [Buffer(self.slots[root].type.nbytes, *self._lives[root]) for root in roots]
        return roots, placed(buffers)

    def _note_outputs(self) -> None:
        wrote = {self._root(slot): at for at, step in enumerate(self.steps) for slot in step.outs}
        for number, slot in enumerate(self.output_slots):
            at = wrote.get(self._root(slot))
            if at is not None:
                self.made_at.setdefault(at, []).append(number)

    @property
    def arena_bytes(self) -> int:
        """What the plan needs for all intermediate values."""
        return self.placement.arena_bytes

    @property
    def unplanned_bytes(self) -> int:
        """What they would need with memory of its own for each."""
        outer = self.outer_roots
        written = [slot for step in self.steps for slot in (*step.outs, *([step.scratch] if step.scratch else []))]
        return sum(aligned(self.slots[slot].type.nbytes) for slot in written if slot not in outer)

    def start(self) -> Frame:
        """A run of this program, with memory for it."""
        return Frame(self)

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
    """One run of a program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._arrays: list[Any] = [None] * len(program.slots)
        self._block = arena_of(program.device).borrow(program.arena_bytes)
        for index, memory in program.constants.items():
            self._arrays[index] = memory
        for root, offset in zip(program.buffers, program.placement.offsets, strict=True):
            self._arrays[root] = _view(self._block, offset, program.slots[root].type)
        self._view_roots(set(program.buffers))
        self._fed: set[int] = set()
        self._allocated = False

    def _view_roots(self, roots: set[int]) -> None:
        """Arrays of slots that lie in these roots' memory."""
        program = self.program
        for index, slot in enumerate(program.slots):
            if slot.root != index and self._arrays[index] is None:
                memory = self._arrays[slot.root]
                if memory is not None:
                    self._arrays[index] = _reinterpreted(memory, slot.type)

    def feed(self, name: str, memory: Any) -> None:
        """Bind a variable to C-contiguous memory of its type, which is read until the frame is finished.

        Raises:
            UsageError: the type is another.
        """
        slot = self.program.variables.get(name)
        if slot is None:
            return  # no step needs it
        expected = self.program.slots[slot].type
        if memory.shape != expected.shape or memory.dtype != expected.dtype:
            raise UsageError(
                f"variable {name!r} was bound to another type",
                next_move="Bind again.",
                expected=expected,
                got=type_of(memory),
            )
        self._arrays[slot] = memory
        self._fed.add(slot)

    def run(self, begin: int = 0, end: int | None = None, complete: Callable[[int], None] | None = None) -> None:
        """Run steps `begin` to `end`; `complete(number)` is told of each output as soon as its last step is done."""
        program = self.program
        if not self._allocated:
            self._allocate_outputs()
        arrays, xp = self._arrays, program.device.xp
        run = Run(stream(program.device))
        for at in range(begin, len(program.steps) if end is None else end):
            step = program.steps[at]
            run.scratch = None if step.scratch is None else arrays[step.scratch]
            step.forward(xp, step.attrs, [arrays[i] for i in step.ins], [arrays[i] for i in step.outs], run)
            if complete is not None and at in program.made_at:
                for number in program.made_at[at]:
                    complete(number)

    def run_leading(self) -> None:
        """Run what the leading outputs need."""
        self.run(0, self.program.leading_steps)

    def run_rest(self, complete: Callable[[int], None] | None = None) -> None:
        """Run what is left after `run_leading`."""
        self.run(self.program.leading_steps, None, complete)

    def _allocate_outputs(self) -> None:
        """Check that all variables are bound, and give outputs memory of their own."""
        program = self.program
        unbound = [name for name, slot in program.variables.items() if slot not in self._fed]
        if unbound:
            raise UsageError("variables are unbound", next_move="Bind each to an array.", variables=", ".join(unbound))
        xp = program.device.xp
        for slot in program.output_slots:
            root = program._root(slot)
            if self._arrays[root] is None:
                self._arrays[root] = xp.empty(program.slots[root].type.known_shape, program.slots[root].type.dtype)
        self._view_roots(set())
        self._allocated = True

    def outputs(self) -> list[Any]:
        """Memory of all outputs; a copy where an output is a variable's or a constant's own."""
        program = self.program
        outer = {*program.variables.values(), *program.constants}
        return [
            self._arrays[slot].copy() if program._root(slot) in outer else self._arrays[slot]
            for slot in program.output_slots
        ]

    def output(self, number: int) -> Any:
        return self._arrays[self.program.output_slots[number]]

    def finish(self) -> None:
        """Give the memory back. The frame is not used again."""
        if self._block is not None:
            arena_of(self.program.device).give_back(self._block)
            self._block = None


def _view(block: Any, offset: int, type_: TensorType) -> Any:
    return block[offset : offset + type_.nbytes].view(type_.dtype).reshape(type_.known_shape)


def _reinterpreted(memory: Any, type_: TensorType) -> Any:
    """The same bytes as another type of the same size."""
    flat = memory.reshape(-1)
    return (flat if flat.dtype == type_.dtype else flat.view(type_.dtype)).reshape(type_.known_shape)
