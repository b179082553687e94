"""Where in one arena each intermediate value lies: lifetimes, in-place results, reuse.

Invariant: two buffers that are alive at one step do not overlap; a buffer is written in place only over one that nobody
reads afterwards. Offsets are multiples of 64 bytes.

The placement is greedy: one buffer after the other, each at the lowest offset that is free all its life. Of three
orders the best is taken, and then buffers at the top are moved forward in it while that helps, until the arena is no
larger than what is alive at one step. By size alone a LeNet's took 35 % more than that.
Source: Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020, section 5.2, for the greedy
placement by size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

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
    if not buffers:
        return Placement((), 0)
    beside = _neighbours(buffers)
    tries = _ORDERS if sum(map(len, beside)) <= _PAIRS_MAX else _ORDERS[:1]
    weights = [[key(each) for each in buffers] for key in tries]
    orders = [sorted(range(len(buffers)), key=weight.__getitem__) for weight in weights]
    tried = [(order, _in_order(buffers, order, beside)) for order in orders]
    order, best = min(tried, key=lambda each: each[1].arena_bytes)
    return _mended(buffers, order, beside, best) if len(buffers) <= _MOVED_MAX else best


_ORDERS: Final[tuple[Callable[[Buffer], Any], ...]] = (
    lambda each: (-each.nbytes * (each.end - each.begin + 1), each.begin),
    lambda each: (-each.nbytes, each.begin),
    lambda each: (each.begin, -each.nbytes),
)
"""Orders in which buffers are placed: by bytes times steps, by bytes, by time."""

_TRIES_MAX: Final = 64
_MOVED_MAX: Final = 256
"""Buffers of the largest plan that is mended: a try takes some milliseconds there."""

_PAIRS_MAX: Final = 1_000_000
"""Pairs of buffers alive at one time beyond which one order is tried: a second's work."""


def _neighbours(buffers: Sequence[Buffer]) -> list[list[int]]:
    """For each buffer those alive at one time with it."""
    beside: list[list[int]] = [[] for _ in buffers]
    alive: list[int] = []
    for i in sorted(range(len(buffers)), key=lambda i: buffers[i].begin):
        alive = [j for j in alive if buffers[j].end >= buffers[i].begin]
        for j in alive:
            beside[i].append(j)
            beside[j].append(i)
        alive.append(i)
    return beside


def bytes_alive(buffers: Sequence[Buffer]) -> int:
    """The most bytes that are alive at one step: no arena is smaller."""
    change: dict[int, int] = {}
    for each in buffers:
        change[each.begin] = change.get(each.begin, 0) + aligned(each.nbytes)
        change[each.end + 1] = change.get(each.end + 1, 0) - aligned(each.nbytes)
    most = now = 0
    for at in sorted(change):
        now += change[at]
        most = max(most, now)
    return most


def _in_order(buffers: Sequence[Buffer], order: Sequence[int], beside: Sequence[Sequence[int]]) -> Placement:
    """Each buffer in turn at the lowest offset that is free all its life."""
    offsets = [-1] * len(buffers)
    for i in order:
        taken = sorted((offsets[j], buffers[j].nbytes) for j in beside[i] if offsets[j] >= 0)
        offsets[i] = _lowest_gap(aligned(buffers[i].nbytes), taken)
    top = max(offset + aligned(each.nbytes) for offset, each in zip(offsets, buffers, strict=True))
    return Placement(tuple(offsets), top)


def _mended(buffers: Sequence[Buffer], order: list[int], beside: Sequence[Sequence[int]], best: Placement) -> Placement:
    """A better placement, if one is found by placing buffers at the top before those that they lay on."""
    floor = bytes_alive(buffers)
    tries = _TRIES_MAX
    while best.arena_bytes > floor and tries:
        top = next(i for i in order if best.offsets[i] + aligned(buffers[i].nbytes) == best.arena_bytes)
        at = order.index(top)
        for place in [place for place in range(at) if order[place] in beside[top]][:tries]:
            tries -= 1
            moved = [*order[:place], top, *order[place:at], *order[at + 1 :]]
            found = _in_order(buffers, moved, beside)
            if found.arena_bytes < best.arena_bytes:
                order, best = moved, found
                break
        else:
            break
    return best


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
