"""Where in one arena each intermediate value lies: lifetimes, in-place results, reuse.

Invariant: two buffers that are alive at one step do not overlap; a buffer is written in place only over one that nobody
reads afterwards. Offsets are multiples of 64 bytes.

The placement is greedy by size: the largest buffer first, each at the lowest offset that is free all its life.
Source: Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020, section 5.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from windlass_proto.errors import InvariantError

ALIGNMENT: Final = 64


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes that are written at step `begin` and last read at step `end`."""

    nbytes: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Placement:
    """Offsets, one a buffer, and the size of the arena that holds them all."""

    offsets: tuple[int, ...]
    arena_bytes: int


@dataclass(frozen=True, slots=True)
class Place:
    """Bytes of one region of memory. Regions are disjoint."""

    region: int
    offset: int
    nbytes: int

    @property
    def end(self) -> int:
        return self.offset + self.nbytes

    def overlaps(self, other: Place) -> bool:
        return self.region == other.region and self.offset < other.end and other.offset < self.end


@dataclass(frozen=True, slots=True)
class Access:
    """What one step does to slots: whose elements it reads, which it writes, and which of these over which of those."""

    name: str
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    over: frozenset[tuple[int, int]]


def aligned(nbytes: int) -> int:
    return -(-max(nbytes, 1) // ALIGNMENT) * ALIGNMENT


def placed(buffers: Sequence[Buffer]) -> Placement:
    """An offset for each buffer, so that those alive at one time lie apart."""
    offsets = [0] * len(buffers)
    settled: list[int] = []
    for index in sorted(range(len(buffers)), key=lambda i: (-buffers[i].nbytes, buffers[i].begin)):
        one = buffers[index]
        beside = [i for i in settled if buffers[i].begin <= one.end and one.begin <= buffers[i].end]
        offsets[index] = _lowest_gap(aligned(one.nbytes), sorted((offsets[i], buffers[i].nbytes) for i in beside))
        settled.append(index)
    top = max((offset + aligned(buffer.nbytes) for offset, buffer in zip(offsets, buffers, strict=True)), default=0)
    return Placement(tuple(offsets), top)


def _lowest_gap(nbytes: int, taken: Sequence[tuple[int, int]]) -> int:
    at = 0
    for offset, length in taken:
        if at + nbytes <= offset:
            break
        at = max(at, offset + aligned(length))
    return at


def check(
    accesses: Sequence[Access],
    places: Sequence[Place],
    content: Sequence[int],
    given: Iterable[int],
    kept: Iterable[int],
) -> None:
    """Follow the steps with a map of what lies where, and prove that each finds what it reads.

    It knows nothing of lifetimes: it is the judge of the plan that was made with them.

    Args:
        places: of each slot.
        content: for each slot the slot whose value it shows, itself unless it is a view.
        given: slots that hold their values from the beginning and are never written.
        kept: slots that have to be intact at the end.

    Raises:
        InvariantError: a step reads or an output holds what was written over, or a step writes over its own inputs
            where its op does not allow it.
    """
    fixed = frozenset(given)
    holds: dict[Place, int] = {places[slot]: slot for slot in fixed}
    for access in accesses:
        for slot in access.reads:
            if holds.get(places[slot]) != content[slot]:
                raise InvariantError("a step reads what was written over", step=access.name, slot=slot)
        _check_writes(access, places, fixed)
        for slot in access.writes:
            for other in [place for place in holds if place.overlaps(places[slot])]:
                del holds[other]
            holds[places[slot]] = slot
    for slot in kept:
        if holds.get(places[slot]) != content[slot]:
            raise InvariantError("an output was written over", slot=slot)


def _check_writes(access: Access, places: Sequence[Place], fixed: frozenset[int]) -> None:
    """A step's results lie apart from each other, from what is given, and from its inputs unless they are one place."""
    for number, slot in enumerate(access.writes):
        mine = places[slot]
        if any(places[other].overlaps(mine) for other in (*access.writes[:number], *fixed)):
            raise InvariantError("two results share memory, or one is written over what was given", step=access.name)
        for read in access.reads:
            if places[read].overlaps(mine) and not (places[read] == mine and (read, slot) in access.over):
                raise InvariantError("a result is written over an input", step=access.name, input=read, output=slot)
