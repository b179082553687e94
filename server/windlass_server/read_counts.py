"""Read counts: how often each segment of a block had been updated when its weights were read.

A read is what an answer showed. Answers that show the same updates have one number, which goes to the worker with the
weights and comes back with the gradients made from them; so a push's staleness, the updates that came between, is known
for each of its segments, whatever else was pushed to the block.

Invariant: numbers rise from 1; the newest reads are kept, `kept` of them, so an older one counts as the oldest that is:
its staleness is then a floor. 0 is no read. The block's share's lock owns it. Nothing of it is in a checkpoint: what a
restored block holds is read before it is pushed to.

Prior art: timestamps of the parameter server in Zhang et al., "Staleness-aware Async-SGD", IJCAI 2016, one a server.
"""

from __future__ import annotations

from collections.abc import Sequence

COUNTS_MAX = 1 << 18  # of a block: 2 MiB of pointers, where every tensor has another count
READS_MAX, READS_MIN = 1024, 8

Counts = int | tuple[int, ...]
"""Updates of every segment: one number where all have had as many."""


class ReadCounts:
    """The reads of one block."""

    def __init__(self, segments: int) -> None:
        self.kept = max(READS_MIN, min(READS_MAX, COUNTS_MAX // max(1, segments)))
        self._number = self._begun = 0
        self._found: dict[int, Counts] = {}

    def number_of(self, updates: Sequence[int]) -> int:
        """The number of a read of segments that have had so many updates."""
        same = updates.count(updates[0]) == len(updates)
        counts: Counts = updates[0] if same else tuple(updates)
        if self._found.get(self._number) != counts:  # also where nothing was read yet
            self._number += 1
            self._found[self._number] = counts
            if len(self._found) > self.kept:
                del self._found[next(iter(self._found))]
        return self._number

    def counts(self, number: int) -> Counts | None:
        """What a read showed; None if it is none of this block as it is served now."""
        if not self._begun < number <= self._number:
            return None
        return self._found[max(number, next(iter(self._found)))]

    def begin_anew(self) -> None:
        """Other values are served from now on."""
        self._found.clear()
        self._begun = self._number


def staleness(counts: Counts | None, seg: int, update: int) -> int:
    """How stale a push is that is update `update` of segment `seg`; 0 where it is not known."""
    if counts is None:
        return 0
    return max(0, update - 1 - (counts if isinstance(counts, int) else counts[seg]))


def alike(counts: Counts | None, at: int, end: int) -> int:
    """Where the run of segments from `at` that a read showed with as many updates ends, `end` at most."""
    if not isinstance(counts, tuple):
        return end
    stop = at + 1
    while stop < end and counts[stop] == counts[at]:
        stop += 1
    return stop
