"""The steps of a typed graph, and where each value lies: what a program runs by.

Invariant: steps come in the order in which nodes run, those of the leading outputs first. Every value has a slot; slots
that are one piece of memory (views, results written over an input) have one root. Roots are variables', constants' and
outputs' own memory, or have a place in the arena; `memory.check` proves from the steps alone that no step destroys what
a later one reads. A plan is made once and never changed.

Results are written over an input where the op allows it, nobody reads that memory later and it is as large: an arena
value over another; a graph's output over nothing, but what it is computed from may be computed in the output's memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from windlass_graph.graph import Graph
from windlass_graph.memory import Access, Buffer, Place, Placement, aligned, check, placed
from windlass_graph.node import Node, Value
from windlass_graph.tensor_type import TensorType


@dataclass(frozen=True, slots=True)
class Step:
    """One node's work: slots it reads, slots it writes, the slot of its scratch memory."""

    node: Node
    ins: tuple[int, ...]
    outs: tuple[int, ...]
    scratch: int | None

    @property
    def written(self) -> tuple[int, ...]:
        return self.outs if self.scratch is None else (*self.outs, self.scratch)

    @property
    def read(self) -> tuple[int, ...]:
        """The slots whose elements it reads; of the others it takes the type alone."""
        unread = self.node.op.unread
        return tuple(slot for i, slot in enumerate(self.ins) if i not in unread) if unread else self.ins


class Plan:
    """Steps, slots and places of one typed graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.types: list[TensorType] = []
        """Of every slot."""
        self.variables: dict[str, int] = {}
        self.constants: dict[int, Node] = {}
        self.steps: list[Step] = []
        self.content: list[int] = []
        """For each slot the one that was computed: itself, unless it is a view."""
        self._slot_of: dict[Value, int] = {}
        self._lay_out()
        self.output_slots = tuple(self._slot_of[value] for value in graph.outputs)
        self.leading_steps = sum(1 for step in self.steps if step.node in graph.leading_nodes)
        self._root = list(self.content)
        self.given_roots = frozenset((*self.variables.values(), *self.constants))
        """Memory that comes from outside and is never written: variables and constants."""
        self._lives = self._lifetimes()
        self.in_place = self._merge_in_place()
        """How many results are written over an input."""
        self.buffers = tuple(root for root in self._lives if root not in self.outer_roots)
        """Roots in the arena."""
        self.placement: Placement = placed(
            [Buffer(self.types[root].nbytes, *self._lives[root]) for root in self.buffers]
        )

    def _lay_out(self) -> None:
        """Slots and steps, in the order in which nodes run."""
        leading = self.graph.leading_nodes
        for node in sorted(self.graph.nodes, key=lambda node: node not in leading):
            if node.is_variable:
                self.variables[node.name] = self._new_slot(Value(node, 0))
            elif node.op.name == "constant":
                self.constants[self._new_slot(Value(node, 0))] = node
            elif node.op.view:
                self._new_slot(Value(node, 0), self.content[self._slot_of[node.inputs[0]]])
            else:
                self._add_step(node)

    def _new_slot(self, value: Value, content: int | None = None) -> int:
        self._slot_of[value] = slot = self._add_slot(value.type, content)
        return slot

    def _add_slot(self, type_: TensorType, content: int | None = None) -> int:
        slot = len(self.types)
        self.types.append(type_)
        self.content.append(slot if content is None else content)
        return slot

    def _add_step(self, node: Node) -> None:
        ins = tuple(self._slot_of[value] for value in node.inputs)
        outs = tuple(self._new_slot(Value(node, i)) for i in range(len(node.types)))
        nbytes = 0
        if node.op.scratch is not None:
            nbytes = node.op.scratch(node.attrs, [value.type for value in node.inputs])
        scratch = self._add_slot(TensorType((nbytes,), "uint8")) if nbytes else None
        self.steps.append(Step(node, ins, outs, scratch))

    def root(self, slot: int) -> int:
        """The slot whose memory this one is."""
        while self._root[slot] != slot:
            slot = self._root[slot]
        return slot

    @cached_property
    def outer_roots(self) -> frozenset[int]:
        """Roots whose memory is not the arena's: variables, constants, outputs."""
        return self.given_roots | {self.root(slot) for slot in self.output_slots}

    def _lifetimes(self) -> dict[int, tuple[int, int]]:
        """For each root that a step writes: the step that writes it first and the one that reads it last."""
        lives: dict[int, tuple[int, int]] = {}
        for at, step in enumerate(self.steps):
            lives.update((slot, (at, at)) for slot in step.written)
            for slot in step.read:
                root = self.root(slot)
                if root in lives:
                    lives[root] = (lives[root][0], at)
        return lives

    def _merge_in_place(self) -> int:
        """Let results take the memory of inputs that nobody reads later."""
        merged = 0
        for at, step in enumerate(self.steps):
            for out in step.outs if step.node.op.inplace else ():
                source = self._overwritten(at, step, out)
                if source is not None:
                    merged += 1
                    self._join(source, out)
        return merged

    def _overwritten(self, at: int, step: Step, out: int) -> int | None:
        """The root of the input that a result may be written over."""
        op = step.node.op
        roots = [self.root(slot) for slot in step.ins]
        written = {self.root(slot) for slot in step.written}
        for i in op.inplace:
            root = roots[i]
            if root in self.outer_roots or root not in self._lives or self._lives[root][1] != at or root in written:
                continue
            if self.types[root].nbytes != self.types[out].nbytes:
                continue
            if roots.count(root) > 1 and not op.elementwise:
                continue  # another input is the same memory, and may be read in another order
            return root
        return None

    def _join(self, source: int, out: int) -> None:
        """Make one root of an input's memory and a result's: the output's own if it is one, else the input's."""
        begin, end = self._lives[source][0], self._lives[out][1]
        keep, gone = (out, source) if out in self.outer_roots else (source, out)
        self._root[gone] = keep
        del self._lives[gone]
        self._lives[keep] = (begin, end)

    @cached_property
    def copied_outputs(self) -> tuple[bool, ...]:
        """For each output whether its memory is a variable's, a constant's or an earlier output's own."""
        roots = [self.root(slot) for slot in self.output_slots]
        return tuple(root in self.given_roots or root in roots[:number] for number, root in enumerate(roots))

    @cached_property
    def late_outputs(self) -> tuple[bool, ...]:
        """For each output whether no leading step touches its memory, so that it may still be chosen then."""
        early = {
            self.root(slot) for step in self.steps[: self.leading_steps] for slot in (*step.outs, *step.ins)
        } | self.given_roots
        copied = self.copied_outputs
        return tuple(
            not copied[number] and self.root(slot) not in early for number, slot in enumerate(self.output_slots)
        )

    @cached_property
    def made_at(self) -> dict[int, tuple[int, ...]]:
        """Which outputs are complete after a step, by number."""
        wrote = {slot: at for at, step in enumerate(self.steps) for slot in step.outs}
        found: dict[int, list[int]] = {}
        for number, slot in enumerate(self.output_slots):
            at = wrote.get(self.content[slot])
            if at is not None:
                found.setdefault(at, []).append(number)
        return {at: tuple(numbers) for at, numbers in found.items()}

    @cached_property
    def views(self) -> dict[int, tuple[int, ...]]:
        """By root, the other slots that are its memory."""
        found: dict[int, list[int]] = {}
        for slot in range(len(self.types)):
            root = self.root(slot)
            if root != slot:
                found.setdefault(root, []).append(slot)
        return {root: tuple(slots) for root, slots in found.items()}

    @property
    def arena_bytes(self) -> int:
        """What the plan needs for all values that are neither variables, constants nor outputs."""
        return self.placement.arena_bytes

    @cached_property
    def unplanned_bytes(self) -> int:
        """What they would need with memory of its own for each, and one scratch that is large enough for all steps."""
        outputs = {self.content[slot] for slot in self.output_slots}
        scratch = max((self._bytes([step.scratch]) for step in self.steps if step.scratch is not None), default=0)
        return scratch + self._bytes(slot for step in self.steps for slot in step.outs if slot not in outputs)

    def _bytes(self, slots: Iterable[int]) -> int:
        return sum(aligned(self.types[slot].nbytes) for slot in slots)

    @cached_property
    def written_bytes(self) -> tuple[int, ...]:
        """By each step, scratch memory left out."""
        return tuple(sum(self.types[slot].nbytes for slot in step.outs) for step in self.steps)

    def peak(self) -> tuple[str, int]:
        """The node at which most of the arena is in use, and the bytes alive then; ("", 0) if it is never used."""
        alive = [0] * len(self.steps)
        for root in self.buffers:
            begin, end = self._lives[root]
            for at in range(begin, end + 1):
                alive[at] += aligned(self.types[root].nbytes)
        most = max(alive, default=0)
        return (self.steps[alive.index(most)].node.name, most) if most else ("", 0)

    def check(self) -> None:
        """Prove the plan from its steps alone.

        Raises:
            InvariantError: a step or an output would find what was written over.
        """
        check(self._accesses(), self._places(), self.content, self.given_roots, self.output_slots)

    def _accesses(self) -> list[Access]:
        """What `memory.check` needs to know of each step."""
        found = []
        for step in self.steps:
            over = frozenset((step.ins[i], out) for i in step.node.op.inplace for out in step.outs)
            if step.node.op.elementwise:
                over = frozenset((slot, out) for slot in step.ins for out in step.outs)
            found.append(Access(step.node.name, step.read, step.written, over))
        return found

    def _places(self) -> list[Place]:
        """Where each slot lies: -1 is the arena, every other root's memory is a region of its own."""
        offsets = dict(zip(self.buffers, self.placement.offsets, strict=True))
        return [
            Place(-1 if root in offsets else root, offsets.get(root, 0), self.types[slot].nbytes)
            for slot, root in ((slot, self.root(slot)) for slot in range(len(self.types)))
        ]
