"""Copies of a block's weights, one for each worker, as that worker last saw them, for rules that compensate delays.

A worker sees weights when an answer with values is on its way to it: to a pull, or to a push_pull. A segment that it
has not seen since its session began, or since values were stored there (init, assign, a restored checkpoint), counts as
seen when it pushes to it: that push is not compensated.

Invariant: a session's copy goes when its session ends. Whoever calls holds the lock of the block's share.
"""

from __future__ import annotations

from windlass_proto.layout import Block
from windlass_server.dense_memory import DenseMemory, Vector


class WorkerCopies:
    """See the module."""

    def __init__(self, block: Block, memory: DenseMemory) -> None:
        self._block = block
        self._memory = memory
        self._held: dict[bytes, tuple[Vector, list[bool]]] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all copies."""
        return sum(copy.nbytes for copy, _ in self._held.values())

    def see(self, session: bytes, weights: Vector, seg_begin: int, seg_end: int) -> None:
        """Present weights of these segments go to `session`."""
        copy, seen = self._of(session)
        begin, end = self._block.span(seg_begin, seg_end)
        self._memory.copy(weights[begin:end], copy[begin:end])
        seen[seg_begin:seg_end] = [True] * (seg_end - seg_begin)

    def for_push(self, session: bytes, weights: Vector, seg_begin: int, seg_end: int) -> Vector:
        """The copy of the whole block, in which these segments are what `session` has seen."""
        copy, seen = self._of(session)
        if not all(seen[seg_begin:seg_end]):
            for seg in range(seg_begin, seg_end):
                if not seen[seg]:
                    self.see(session, weights, seg, seg + 1)
        return copy

    def begin_anew(self, seg_begin: int, seg_end: int) -> None:
        """Other values were stored in these segments."""
        for _, seen in self._held.values():
            seen[seg_begin:seg_end] = [False] * (seg_end - seg_begin)

    def forget(self, session: bytes) -> None:
        """Its session has ended."""
        self._held.pop(session, None)

    def _of(self, session: bytes) -> tuple[Vector, list[bool]]:
        held = self._held.get(session)
        if held is None:
            held = (self._memory.zeros(self._block.elements), [False] * len(self._block.segments))
            self._held[session] = held
        return held
