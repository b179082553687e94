"""Blocks read from a checkpoint into memory beside what is served, tensor by tensor.

The layout may be another one than the checkpoint's: other servers, another block size, tensors declared in other calls.
What is common to both is a tensor's name, shape and dtype, so each run of a tensor's elements that a new block holds is
filled from the old blocks that hold it.

Invariant: a block is staged whole or not at all, and only from parts whose digest is the manifest's. Update counts go
by segment; where layouts differ and the old counts do too (`asp`), a new segment takes the highest of its sources.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_proto import checkpoint_format, memory
from windlass_proto.checkpoint_format import Part
from windlass_proto.errors import CorruptionError, UsageError
from windlass_proto.layout import Block, Segment
from windlass_server.dense import DenseGroup, Share
from windlass_server.part_files import PartFiles

Vector = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class StagedBlock:
    """What one block will hold; `updates` by segment. `shown`: what workers held, where deltas tell them."""

    group: DenseGroup
    share: Share
    index: int
    weights: Vector
    slots: tuple[Vector, ...]
    updates: list[int]
    shown: Vector | None

    def serve(self, steps_before: int) -> None:
        """Serve it from now on. The caller holds the share's lock."""
        self.group.steps_before = steps_before
        self.group.adopt(self.share, self.index, self.weights, self.slots, self.updates, self.shown)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a tensor lies in the checkpoint: its group, and its segments as (block, segment number, segment)."""

    group: int
    segments: tuple[tuple[int, int, Segment], ...]


def read_blocks_untrusted(parts: PartFiles, group: DenseGroup) -> list[StagedBlock]:
    """Read what the blocks of `group` on this server need.

    Raises:
        CorruptionError: a part is missing, torn or altered.
        UsageError: the checkpoint holds other tensors or slots than are declared.
    """
    return _Reading(parts, group).blocks()


class _Reading:
    """One group's blocks from one checkpoint."""

    def __init__(self, files: PartFiles, group: DenseGroup) -> None:
        manifest = files.manifest
        self._files = files
        self._manifest = manifest
        self._group = group
        self._read: dict[str, npt.NDArray[Any]] = {}
        self._parts: dict[tuple[int, int], list[Part]] = {}
        for part in manifest.parts:
            for block in part.blocks:
                self._parts.setdefault(block, []).append(part)
        self._found: dict[str, _Source] = {}
        for number, source in enumerate(manifest.groups):
            layout = source.spec.layout
            for tensor, spec in enumerate(layout.tensors):
                if spec.name not in source.deleted:
                    held = [(b, s, layout.blocks[b].segments[s]) for b, s in layout.segments_of[tensor]]
                    self._found[spec.name] = _Source(number, tuple(held))

    def blocks(self) -> list[StagedBlock]:
        staged = []
        for share in self._group.shares.values():
            for index, arrays in share.arrays.items():
                with share.lock:
                    present = list(share.core.blocks[index].present)
                staged.append(self._block(share, arrays.block, index, present))
        return staged

    def _block(self, share: Share, block: Block, index: int, present: list[bool]) -> StagedBlock:
        spec, slots = self._group.spec, self._group.kernels.kept
        weights = memory.aligned_zeros(block.elements, spec.layout.held)
        kept = tuple(memory.aligned_zeros(block.elements, spec.layout.held) for _ in slots)
        for slot, values in zip(slots, kept, strict=True):
            values.fill(slot.fill)
        updates = [0] * len(block.segments)
        shown = memory.aligned_zeros(block.elements, spec.layout.held) if self._group.wire.deltas else None
        for s, segment in enumerate(block.segments):
            if present[s]:
                updates[s] = self._segment(segment, weights, kept, shown)
        self._read.clear()  # neighbouring segments share sources, blocks seldom do
        return StagedBlock(self._group, share, index, weights, kept, updates, shown)

    def _segment(self, segment: Segment, weights: Vector, slots: tuple[Vector, ...], shown: Vector | None) -> int:
        """Fill one segment from all that overlap it; returns its updates."""
        tensor = self._group.spec.layout.tensors[segment.tensor]
        source = self._source(tensor.name)
        first, end = segment.tensor_begin, segment.tensor_begin + segment.elements
        updates = 0
        for b, s, old in source.segments:
            low, high = max(first, old.tensor_begin), min(end, old.tensor_begin + old.elements)
            if low >= high:
                continue
            self._check_slots(source.group, b)
            to = slice(segment.begin + low - first, segment.begin + high - first)
            at = slice(old.begin + low - old.tensor_begin, old.begin + high - old.tensor_begin)
            weights[to] = self._values(source.group, b, checkpoint_format.weight_key(source.group, b))[at]
            for slot, values in zip(self._group.kernels.kept, slots, strict=True):
                key = checkpoint_format.slot_key(source.group, b, slot.name)
                values[to] = self._values(source.group, b, key)[at]
            if shown is not None:
                shown[to] = self._shown(source.group, b)[at]
            count = int(self._updates(source.group, b)[s])
            if count < 0:
                file = self._part(source.group, b).path(self._files.folder)
                raise CorruptionError("a part lacks a tensor", file=file, tensor=tensor.name)
            updates = max(updates, count)
        return updates

    def _source(self, name: str) -> _Source:
        """Where tensor `name` lies, compared with what is declared here."""
        spec = self._group.spec
        source = self._found.get(name)
        if source is None:
            raise UsageError(
                "a checkpoint lacks a declared tensor",
                folder=self._files.folder,
                tensor=name,
                holds=", ".join(list(self._found)[:5]),
            )
        was = self._manifest.groups[source.group].spec
        here = spec.layout.tensors[spec.layout.index_of[name]].shape, spec.layout.dtype_name
        there = was.layout.tensors[was.layout.index_of[name]].shape, was.layout.dtype_name
        if here != there:
            raise UsageError(
                "a checkpoint holds a tensor of another shape or dtype",
                tensor=name,
                declared=f"{here[1]} {list(here[0])}",
                checkpoint=f"{there[1]} {list(there[0])}",
                next_move="Declare it as it was, or start without this checkpoint.",
            )
        return source

    def _check_slots(self, group: int, block: int) -> None:
        """The rule that is declared here keeps the slots that the checkpoint has."""
        places = self._files.places_untrusted(self._part(group, block))
        prefix = checkpoint_format.slot_key(group, block, "")
        found = {key.removeprefix(prefix) for key in places if key.startswith(prefix)}
        if found != {slot.name for slot in self._group.kernels.kept}:
            raise UsageError(
                "a checkpoint was made with another update rule",
                declared=self._group.spec.rule,
                checkpoint=self._manifest.groups[group].spec.rule,
                next_move="Declare the tensors with the rule that trained them.",
            )

    def _values(self, group: int, block: int, key: str) -> npt.NDArray[Any]:
        layout = self._manifest.groups[group].spec.layout
        return self._array(group, block, key, layout.held, layout.blocks[block].elements)

    def _shown(self, group: int, block: int) -> npt.NDArray[Any]:
        """What workers held of a block: its weights, where that was not another thing."""
        key = checkpoint_format.shown_key(group, block)
        there = key in self._files.places_untrusted(self._part(group, block))
        return self._values(group, block, key if there else checkpoint_format.weight_key(group, block))

    def _updates(self, group: int, block: int) -> npt.NDArray[Any]:
        segments = len(self._manifest.groups[group].spec.layout.blocks[block].segments)
        key = checkpoint_format.updates_key(group, block)
        return self._array(group, block, key, np.dtype(np.int64), segments)

    def _array(self, group: int, block: int, key: str, dtype: np.dtype[Any], elements: int) -> npt.NDArray[Any]:
        known = self._read.get(key)
        if known is not None:
            return known
        array = self._files.read_untrusted(self._part(group, block), key, dtype, (elements,))
        self._read[key] = array
        return array

    def _part(self, group: int, block: int) -> Part:
        """The last part with a block; one that is not whole may leave it out."""
        key = checkpoint_format.weight_key(group, block)
        for part in reversed(self._parts.get((group, block), [])):
            if part.whole or key in self._files.places_untrusted(part):
                return part
        raise CorruptionError("no part of a checkpoint holds a block", folder=self._files.folder, block=(group, block))
