"""What compiling did, as data and as text: `print(program.explain())`.

Invariant: made of what passes, plan and step table left behind; asking changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from windlass_graph.graph import Graph
from windlass_graph.passes.fuse import FusionFacts, facts

if TYPE_CHECKING:
    from windlass_graph.program import Program

_NAMES_SHOWN: Final = 6
_WHAT: Final = {
    "fold": "constants computed, identities applied",
    "merge": "like work done once",
    "recompute": "computed again in the backward part",
    "fuse": "elementwise ops in one kernel",
}


@dataclass(frozen=True, slots=True)
class PassRecord:
    """What one pass did to a graph, by names of nodes."""

    name: str
    before: int
    """Nodes it was given."""
    after: int
    gone: tuple[str, ...]
    made: tuple[str, ...]
    changed: tuple[str, ...]
    """Nodes that do something else under their name."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What became of a graph.

    Args:
        passes: in the order in which they were applied.
        steps: ops that a run calls, by name of the op.
        views: nodes that are other shapes of memory that is there.
        arena_bytes: what the plan needs for values that are neither variables, constants nor outputs.
        unplanned_bytes: what they would need with memory of its own for each.
        peak_step: the node at which most of the arena is in use, and the bytes then alive.
        in_place: results written over an input.
        compiled_steps, reused_steps: steps that were prepared for this program, and that were there already.
        fusion: kernels of elementwise ops, and what they spare.
    """

    passes: tuple[PassRecord, ...]
    steps: dict[str, int]
    views: int
    arena_bytes: int
    unplanned_bytes: int
    peak_step: tuple[str, int]
    in_place: int
    compiled_steps: int
    reused_steps: int
    fusion: FusionFacts

    @property
    def saved(self) -> float:
        """The share of the unplanned bytes that the plan does not need."""
        return 1 - self.arena_bytes / self.unplanned_bytes if self.unplanned_bytes else 0.0

    def __str__(self) -> str:
        lines = ["Passes"]
        for each in self.passes:
            lines.append(f"  {each.name:<10} {each.before:>5} -> {each.after:<5} nodes   {_WHAT.get(each.name, '')}")
            for what, names in (("gone", each.gone), ("changed", each.changed), ("made", each.made)):
                if names:
                    lines.append(f"    {what:<8} {len(names):>5}   {_listed(names)}")
        ops = sorted(self.steps.items(), key=lambda item: (-item[1], item[0]))
        lines += ["Steps", f"  {sum(self.steps.values())} ops a run, {self.views} views that cost nothing"]
        lines.append("  " + _listed([f"{name} x {count}" for name, count in ops], 10))
        lines.append(f"  {self.compiled_steps} prepared for this program, {self.reused_steps} found prepared")
        if self.fusion.groups:
            spared = f"{self.fusion.temporaries} values of {_size(self.fusion.bytes_avoided)} are never stored"
            lines.append(f"  {self.fusion.groups} kernels for {self.fusion.nodes} elementwise ops; {spared}")
        lines += [
            "Memory of intermediate values",
            f"  with memory of its own for each  {_size(self.unplanned_bytes):>12}",
            f"  planned                          {_size(self.arena_bytes):>12}   {self.saved:.0%} less",
            f"  written over an input            {self.in_place:>12}   results",
        ]
        if self.peak_step[0]:
            lines.append(f"  most is in use at {self.peak_step[0]}: {_size(self.peak_step[1])}")
        return "\n".join(lines)


def _listed(names: Sequence[str], shown: int = _NAMES_SHOWN) -> str:
    more = f", and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _size(nbytes: int) -> str:
    if nbytes < 10_000:
        return f"{nbytes} B"
    return f"{nbytes / 1024:.1f} KiB" if nbytes < 1024 * 1024 else f"{nbytes / 1024**2:.1f} MiB"


def recorded(name: str, before: Graph, after: Graph) -> PassRecord:
    """The difference that a pass made."""
    ops = {node.name: node.op for node in before.nodes}
    now = {node.name: node.op for node in after.nodes}
    return PassRecord(
        name,
        len(ops),
        len(now),
        _missing(ops, now),
        _missing(now, ops),
        tuple(name for name, op in now.items() if name in ops and ops[name] is not op),
    )


def _missing(names: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    known = set(others)
    return tuple(name for name in names if name not in known)


def explained(program: Program) -> Explanation:
    """The explanation of a program."""
    plan = program.plan
    steps: dict[str, int] = {}
    for step in plan.steps:
        steps[step.node.op.name] = steps.get(step.node.op.name, 0) + 1
    return Explanation(
        program.history,
        steps,
        sum(node.op.view for node in program.graph.nodes),
        plan.arena_bytes,
        plan.unplanned_bytes,
        plan.peak(),
        plan.in_place,
        program.compiled_steps,
        program.reused_steps,
        facts(program.graph),
    )
