"""Where in one arena each intermediate value lies: lifetimes, in-place results, reuse.

Invariant: two buffers that are alive at one step do not overlap; a buffer is written in place only over one that nobody
reads afterwards. Offsets are multiples of 64 bytes.

The placement is greedy by size: the largest buffer first, each at the lowest offset that is free all its life.
Source: Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020, section 5.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

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
