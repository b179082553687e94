"""Open answers: what a share has admitted and not answered, and what is parked on a block until it may be read.

Invariant: an answer is found by its session and seq until it is released or its session is gone, and a block is listed
here while something is parked on it. Owner: the share core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from windlass_server.gate_runs import BlockState, Waiting
from windlass_server.share_events import Push


class OpenAnswers:
    """Of one share."""

    def __init__(self) -> None:
        self.by_seq: dict[tuple[bytes, int], Waiting] = {}
        self.parking: dict[int, BlockState] = {}  # blocks with parked answers

    def wait_for(self, event: Push, clock: int, remaining: int = 0) -> Waiting:
        """Register an answer that is released later; `remaining` counts segments whose step is open."""
        waiting = Waiting.of(event, clock, remaining)
        self.by_seq[event.session, event.seq] = waiting
        return waiting

    def find(self, event: Push) -> Waiting | None:
        """The open answer of an entry that comes again."""
        return self.by_seq.get((event.session, event.seq))

    def close(self, waiting: Waiting) -> None:
        """It is being answered; a pull was not registered."""
        self.by_seq.pop((waiting.session, waiting.seq), None)

    def park(self, state: BlockState, waiting: Waiting) -> None:
        """`waiting` is released once its block may be read."""
        state.parked.append(waiting)
        self.parking[state.shape.index] = state

    def take(self, state: BlockState, may_read: Callable[[BlockState, Waiting], bool]) -> list[Waiting]:
        """Take out what is parked on the block and may be read by now."""
        free: list[Waiting] = []
        kept: list[Waiting] = []
        for waiting in state.parked:
            if may_read(state, waiting):
                free.append(waiting)
                self.close(waiting)
            else:
                kept.append(waiting)
        state.parked = kept
        self.tidy([state])
        return free

    def tidy(self, states: Iterable[BlockState]) -> None:
        """Blocks of `states` with nothing parked are not listed any more."""
        for state in states:
            if not state.parked:
                self.parking.pop(state.shape.index, None)

    def drop_origin(self, connection: Any) -> None:
        """A connection closed: its parked pulls go; the answers of its pushes wait for it to come back."""
        for state in self.parking.values():
            state.parked = [w for w in state.parked if w.session or w.origin[0] is not connection]
        self.tidy(list(self.parking.values()))
        for waiting in self.by_seq.values():
            if waiting.origin is not None and waiting.origin[0] is connection:
                waiting.origin = None

    def end_session(self, session: bytes) -> None:
        """Nobody is to be answered of `session`."""
        for key in [key for key in self.by_seq if key[0] == session]:
            self.by_seq.pop(key).forgotten = True

    def count(self) -> int:
        """Answers that wait for a step or for other workers."""
        pulls = sum(1 for state in self.parking.values() for waiting in state.parked if not waiting.session)
        return pulls + len(self.by_seq)
