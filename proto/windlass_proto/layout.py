"""How the tensors of a dense group lie in blocks.

    flat   | tensor 0 ......pad| tensor 1 .pad| tensor 2 ........................pad|
    blocks |------- block 0 -------|------- block 1 -------|------- block 2 ---|
    segments  0            1        2     3         4             5

The group is laid out flat, tensor after tensor, each padded with zeros to 64 bytes, and cut into blocks of
`block_elements` (the last may be shorter). With the layout "whole" it is cut between tensors alone: a block is as many
neighbours as fit into `block_elements`, or one tensor that does not, and lies where the scheduler placed it (`homes`),
since blocks of different lengths would not balance by their number. A *segment* is one tensor's part of one block: the
unit at which steps complete. All offsets are elements of the group's dtype and multiples of 64 bytes, so every slice a
kernel sees is aligned.

Invariant: a layout is a pure function of (table id, dtype, tensors, block_elements, vshards, whole, homes); client and
server compute the same one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt

from windlass_proto import keys, limits
from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError

DTYPES: dict[str, np.dtype[np.floating]] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),  # type: ignore[dict-item]  # NumPy has none: its bits
}
"""How values of a tensor travel and lie in a worker's arrays, by the name that is declared."""
LAYOUTS: Final = ("blocks", "whole")
"""How tensors lie on servers: cut into blocks, or never cut."""
HALVES: Final = ("float16", "bfloat16")
"""Servers hold these as float32: master weights, and their slots."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One declared tensor: its name, shape and the multipliers of its learning rate and weight decay."""

    name: str
    shape: tuple[int, ...]
    lr_mult: float = 1.0
    decay_mult: float = 1.0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Segment:
    """One tensor's part of one block; `begin` and `end` count elements of the block, padding included."""

    tensor: int
    tensor_begin: int
    elements: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Block:
    """A run of `elements` of the flat group, from `flat_begin` on, owned by `vshard`."""

    index: int
    flat_begin: int
    elements: int
    vshard: int
    segments: tuple[Segment, ...]

    def span(self, seg_begin: int, seg_end: int) -> tuple[int, int]:
        """Elements `[begin, end)` of the block that segments `[seg_begin, seg_end)` cover."""
        return self.segments[seg_begin].begin, self.segments[seg_end - 1].end


def dtype_named(name: str) -> np.dtype[np.floating]:
    """The dtype that tables may hold under this name.

    Raises:
        UsageError: for any but float32, float64, float16 and bfloat16.
    """
    try:
        return DTYPES[name]
    except KeyError:
        raise UsageError(
            "a dense tensor has an unsupported dtype",
            dtype=name,
            supported=" or ".join(DTYPES),
            next_move="Convert it, for example with array.astype('float32').",
        ) from None


def block_elements_for(elements: int, elements_max: int = 0) -> int:
    """Block size of a group of `elements` (padding included): about an eighth, a power of two, within the limits."""
    upper = elements_max or limits.BLOCK_ELEMENTS_MAX
    eighth = max(1, -(-elements // 8))
    lower = min(limits.BLOCK_ELEMENTS_MIN, upper)
    return min(max(1 << (eighth - 1).bit_length(), lower), upper)


def layout_named(name: object) -> str:
    """A layout as declared; the empty one is "blocks".

    Raises:
        UsageError: there is none of that name.
    """
    if not isinstance(name, str) or (name or LAYOUTS[0]) not in LAYOUTS:
        raise UsageError("a layout is not known", layout=repr(name)[:80], next_move=did_you_mean(str(name), LAYOUTS))
    return name or LAYOUTS[0]


def check_whole(tensor: str, elements: int, dtype_name: str) -> None:
    """Can a tensor that is never cut travel and lie in one piece?

    Raises:
        UsageError: it is too large.
    """
    nbytes = elements * held_dtype(dtype_name).itemsize
    if nbytes > limits.WHOLE_TENSOR_BYTES_MAX:
        raise UsageError(
            'a tensor is too large for layout="whole"',
            tensor=tensor,
            bytes=nbytes,
            bytes_max=limits.WHOLE_TENSOR_BYTES_MAX,
            next_move="Split it into several, or declare it in an init of its own without layout=.",
        )


def held_dtype(dtype_name: str) -> np.dtype[np.floating]:
    """What a server holds tensors of this dtype in."""
    return DTYPES["float32" if dtype_name in HALVES else dtype_name]


def whole_begins(sizes: Sequence[int], block_elements: int) -> tuple[int, ...]:
    """Where blocks begin that cut no tensor of these (padded) sizes, and, last, where the group ends."""
    begins, begin, at = [], 0, 0
    for size in sizes:
        if at > begin and at + size - begin > block_elements:
            begins.append(begin)
            begin = at
        at += size
    return (*begins, begin, at) if at > begin else (*begins, at)


def padded(elements: int, itemsize: int) -> int:
    """`elements` rounded up to whole 64-byte lines; a tensor of no elements keeps none."""
    per_line = limits.ALIGN_BYTES // itemsize
    return -(-elements // per_line) * per_line


@dataclass(frozen=True)
class GroupLayout:
    """The layout of one dense group (see the module's drawing)."""

    table_id: int
    dtype_name: str
    tensors: tuple[TensorSpec, ...]
    block_elements: int
    vshards: int
    whole: bool = False
    homes: tuple[int, ...] = ()

    @cached_property
    def dtype(self) -> np.dtype[np.floating]:
        return DTYPES[self.dtype_name]

    @cached_property
    def held(self) -> np.dtype[np.floating]:
        """What a server's weights and slots are in."""
        return held_dtype(self.dtype_name)

    @cached_property
    def flat_begins(self) -> tuple[int, ...]:
        """Where each tensor begins in the flat group, and, last, where the group ends."""
        begins, at = [], 0
        for tensor in self.tensors:
            begins.append(at)
            at += padded(tensor.elements, self.dtype.itemsize)
        return (*begins, at)

    @property
    def flat_elements(self) -> int:
        return self.flat_begins[-1]

    @cached_property
    def index_of(self) -> dict[str, int]:
        return {tensor.name: i for i, tensor in enumerate(self.tensors)}

    @cached_property
    def block_begins(self) -> tuple[int, ...]:
        """Where each block begins in the flat group, and, last, where the group ends."""
        if not self.whole:
            return (*range(0, self.flat_elements, self.block_elements), self.flat_elements)
        sizes = [end - begin for begin, end in itertools.pairwise(self.flat_begins)]
        return whole_begins(sizes, self.block_elements)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        begins = self.block_begins
        cuts: list[list[Segment]] = [[] for _ in begins[1:]]
        first = 0
        for i in range(len(self.tensors)):
            first = self._cut_tensor(i, first, cuts)
        return tuple(
            Block(
                index=b,
                flat_begin=begins[b],
                elements=begins[b + 1] - begins[b],
                vshard=self.homes[b] if self.homes else self._vshard(b, len(cuts)),
                segments=tuple(segments),
            )
            for b, segments in enumerate(cuts)
        )

    def _vshard(self, block: int, blocks: int) -> int:
        return keys.vshard_of(keys.block_key(self.table_id, block, blocks), self.vshards)

    def _cut_tensor(self, tensor: int, block: int, cuts: list[list[Segment]]) -> int:
        """Add the segments of a tensor, which begins in `block` or later; returns the last of its blocks."""
        flat, flat_end = self.flat_begins[tensor], self.flat_begins[tensor + 1]
        begins, elements, tensor_begin = self.block_begins, self.tensors[tensor].elements, 0
        while flat < flat_end:
            while begins[block + 1] <= flat:
                block += 1
            end = min(flat_end, begins[block + 1])
            begin_in_block = flat - begins[block]
            held = min(end - flat, elements - tensor_begin)
            cuts[block].append(Segment(tensor, tensor_begin, held, begin_in_block, begin_in_block + end - flat))
            tensor_begin += held
            flat = end
        return block

    @cached_property
    def segments_of(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """For each tensor its segments as (block index, segment index in the block), in tensor order."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.tensors]
        for block in self.blocks:
            for s, segment in enumerate(block.segments):
                found[segment.tensor].append((block.index, s))
        return tuple(tuple(places) for places in found)

    def views(self, flat: npt.NDArray[np.floating]) -> dict[str, npt.NDArray[np.floating]]:
        """Named views, in their shapes, into a flat array of `flat_elements` elements."""
        return {
            tensor.name: flat[begin : begin + tensor.elements].reshape(tensor.shape)
            for tensor, begin in zip(self.tensors, self.flat_begins[:-1], strict=True)
        }
