"""Share tallies: what a share has counted of the pushes that came to it.

Invariant: bounded. A session that has ended is counted no more; staleness has the 122 numbers of `counted_lag`.
One share core owns an object; the share's lock guards it.
"""

from __future__ import annotations


def counted_lag(lag: int) -> int:
    """Under which number a lag is counted: singly up to 64, by powers of two beyond: 64 + 58 integers at most."""
    return max(0, lag) if lag <= 64 else 1 << (lag.bit_length() - 1)


class ShareTallies:
    """See the module."""

    def __init__(self) -> None:
        self.duplicates = 0
        self.rejected = 0
        self.late = 0
        self.late_steps: dict[bytes, int] = {}  # session -> steps for which it pushed too late
        self.staleness: dict[int, int] = {}  # lag of a push as `counted_lag` has it -> how many were applied at it
        self._late_last: dict[bytes, int] = {}

    def apply(self, lag: int) -> None:
        """A push of a worker that is `lag` steps ahead of the slowest is applied on arrival."""
        counted = counted_lag(lag)
        self.staleness[counted] = self.staleness.get(counted, 0) + 1

    def come_late(self, session: bytes, clock: int) -> None:
        """Something of step `clock` came after the step was complete."""
        self.late += 1
        if self._late_last.get(session, -1) < clock:
            self._late_last[session] = clock
            self.late_steps[session] = self.late_steps.get(session, 0) + 1

    def end(self, session: bytes) -> None:
        """The session has ended."""
        self.late_steps.pop(session, None)
        self._late_last.pop(session, None)
