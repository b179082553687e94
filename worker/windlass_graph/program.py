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

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from windlass_graph.arena import arena_of
from windlass_graph.device import Device, stream
from windlass_graph.graph import Graph
from windlass_graph.memory import Buffer, Placement, aligned, placed
from windlass_graph.node import Node, Value
from windlass_graph.op import Attrs, Forward, Run
from windlass_graph.tensor_type import TensorType, type_of
from windlass_proto.errors import UsageError

_IDLE_MAX: Final = 4


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
        self.views = self._views()
        self.given_outputs = tuple(self._root(slot) in self.given_roots for slot in self.output_slots)
        self._lock = threading.Lock()
        self._idle: list[Frame] = []

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
    def given_roots(self) -> set[int]:
        """Roots whose memory comes from outside and is never written: variables and constants."""
        return {*self.variables.values(), *self.constants}

    @property
    def outer_roots(self) -> set[int]:
        """Roots whose memory is not the arena's: variables, constants, outputs."""
        return self.given_roots | {self._root(slot) for slot in self.output_slots}

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

    def _views(self) -> dict[int, tuple[int, ...]]:
        """By root, the other slots that are its memory."""
        found: dict[int, list[int]] = {}
        for index in range(len(self.slots)):
            root = self._root(index)
            if root != index:
                found.setdefault(root, []).append(index)
        return {root: tuple(slots) for root, slots in found.items()}

    def root(self, slot: int) -> int:
        """The slot whose memory this one is."""
        return self._root(slot)

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
        self._block: Any = None
        self._seen_block: Any = None
        self._arrays: list[Any] = [None] * len(program.slots)
        self._uses: list[list[tuple[list[Any], int]]] = [[] for _ in program.slots]
        self._bound: list[tuple[Forward, Attrs, list[Any], list[Any], list[Any]]] = []
        for step in program.steps:
            scratch = () if step.scratch is None else (step.scratch,)
            ins, outs, own = self._listed(step.ins), self._listed(step.outs), self._listed(scratch)
            self._bound.append((step.forward, step.attrs, ins, outs, own or [None]))
        for slot, memory in program.constants.items():
            self._put(slot, memory)
        self._unbound: set[int] = set()
        self._output_roots = {program.root(slot) for slot in program.output_slots} - program.given_roots

    def _listed(self, slots: tuple[int, ...]) -> list[Any]:
        found: list[Any] = [None] * len(slots)
        for position, slot in enumerate(slots):
            self._uses[slot].append((found, position))
        return found

    def _put(self, root: int, memory: Any) -> None:
        """Let a root be this memory, and all slots that view it."""
        slots = self.program.slots
        for slot in (root, *self.program.views.get(root, ())):
            array = memory if slot == root else _reinterpreted(memory, slots[slot].type)
            self._arrays[slot] = array
            for listed, position in self._uses[slot]:
                listed[position] = array

    def begin(self) -> None:
        """Borrow memory; variables are unbound."""
        program = self.program
        self._block = arena_of(program.device).borrow(program.arena_bytes)
        if self._block is not self._seen_block:
            for root, offset in zip(program.buffers, program.placement.offsets, strict=True):
                self._put(root, _view(self._block, offset, program.slots[root].type))
            self._seen_block = self._block
        self._unbound = set(program.variables.values())
        xp = program.device.xp
        for root in self._output_roots:
            self._put(root, xp.empty(program.slots[root].type.known_shape, program.slots[root].type.dtype))

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
            names = [name for name, slot in program.variables.items() if slot in self._unbound]
            raise UsageError("variables are unbound", next_move="Bind each to an array.", variables=", ".join(names))
        xp = program.device.xp
        run = Run(stream(program.device) if rng is None else rng)
        for at in range(begin, len(self._bound) if end is None else end):
            forward, attrs, ins, outs, scratch = self._bound[at]
            run.scratch = scratch[0]
            forward(xp, attrs, ins, outs, run)
            if complete is not None and at in program.made_at:
                for number in program.made_at[at]:
                    complete(number)

    def run_leading(self, rng: np.random.Generator | None = None) -> None:
        """Run what the leading outputs need."""
        self.run(0, self.program.leading_steps, rng=rng)

    def run_rest(self, complete: Callable[[int], None] | None = None) -> None:
        """Run what is left after `run_leading`."""
        self.run(self.program.leading_steps, None, complete=complete)

    def outputs(self) -> list[Any]:
        """Memory of all outputs."""
        return [self.output(number) for number in range(len(self.program.output_slots))]

    def output(self, number: int) -> Any:
        """Memory of one output, the caller's; a copy where it is a variable's or a constant's own."""
        slot = self.program.output_slots[number]
        return self._arrays[slot].copy() if self.program.given_outputs[number] else self._arrays[slot]

    def finish(self) -> None:
        """Give the memory back and forget outputs and variables. The frame is not used again by its holder."""
        if self._block is None:
            return
        arena_of(self.program.device).give_back(self._block)
        self._block = None
        for root in self._output_roots:
            self._put_nothing(root)
        for slot in self.program.variables.values():
            self._put_nothing(slot)
        self.program.keep(self)

    def _put_nothing(self, root: int) -> None:
        for slot in (root, *self.program.views.get(root, ())):
            self._arrays[slot] = None
            for listed, position in self._uses[slot]:
                listed[position] = None


def _view(block: Any, offset: int, type_: TensorType) -> Any:
    return block[offset : offset + type_.nbytes].view(type_.dtype).reshape(type_.known_shape)


def _reinterpreted(memory: Any, type_: TensorType) -> Any:
    """The same bytes as another type of the same size."""
    flat = memory.reshape(-1)
    return (flat if flat.dtype == type_.dtype else flat.view(type_.dtype)).reshape(type_.known_shape)
