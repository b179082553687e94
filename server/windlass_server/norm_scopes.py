"""Scopes of norms over a layout: which tensors' norms several blocks share, and what each block holds of them.

Invariant: pure functions of a layout and a rule's phases, so every server of a group has the same scopes. A scope is
named by its tensor's number, the whole group by the number after the last tensor's. Its first block's owner adds.
"""

from __future__ import annotations

from collections.abc import Sequence

from windlass_proto import rule_specs
from windlass_proto.consistency import Mode
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import GroupLayout
from windlass_rules import norms as rule_norms
from windlass_rules.norms import Norm
from windlass_server.reducing import Phases, Span


def scopes_of(layout: GroupLayout, norms: Sequence[Norm]) -> dict[int, tuple[int, ...]]:
    """Scope -> its blocks, in order: the tensors that are cut, and the group where all its tensors have one norm.

    A group's norm is a scope even of one block: segments of a block complete a step at different times.
    """
    found = {}
    if any(not norm.is_global for norm in norms):
        found = {tensor: blocks for tensor, blocks in enumerate(_blocks_of(layout)) if len(blocks) > 1}
    if any(norm.is_global for norm in norms):
        found[len(layout.tensors)] = tuple(block.index for block in layout.blocks)
    return found


def phases_of(layout: GroupLayout, norms: Sequence[Norm]) -> dict[int, Phases]:
    """Block -> what of it goes through `reducing` in each phase; blocks that keep to themselves are left out."""
    scopes = scopes_of(layout, norms)
    if not scopes:
        return {}
    found = {}
    for block in layout.blocks:
        cut = tuple(Span(s.tensor, i, i + 1) for i, s in enumerate(block.segments) if s.tensor in scopes)
        whole = (Span(len(layout.tensors), 0, len(block.segments)),)
        phases = tuple(whole if norm.is_global else cut for norm in norms)
        if any(phases):
            found[block.index] = phases
    return found


def _blocks_of(layout: GroupLayout) -> list[tuple[int, ...]]:
    return [tuple(block for block, _ in places) for places in layout.segments_of]


def clips_at_workers(spec: GroupSpec) -> bool:
    """Are gradients of this group clipped by their workers' norms, not by those of a step?"""
    return spec.consistency.mode is not Mode.BSP and rule_specs.clips_norms(spec.rule)


def norms_taken(spec: GroupSpec) -> tuple[Norm, ...]:
    """The phases of a group's rule that servers take."""
    found = rule_norms.phases(spec.rule)
    return tuple(norm for norm in found if norm is Norm.TRUST) if clips_at_workers(spec) else found
