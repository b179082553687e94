"""Open tickets: what a store has sent and nobody has seen the end of.

Invariant: a failed ticket that nobody waited for is raised once, by the store's next call; no more than
`limits.OPEN_STEPS_MAX` closed steps are under way. Owner: the store, under whose lock all but `fail` is called.
"""

from __future__ import annotations

from collections import deque

from windlass.ticket import Pump, Ticket
from windlass_proto import limits

_FAILED_MAX = 16  # that are remembered; the oldest go


class OpenTickets:
    """The tickets of one store; `pump` moves their bytes."""

    def __init__(self, pump: Pump) -> None:
        self._pump = pump
        self._latest: Ticket | None = None
        self._failed: deque[Ticket] = deque(maxlen=_FAILED_MAX)
        self._steps: deque[Ticket] = deque()

    def sent(self, ticket: Ticket) -> None:
        """A push is on its way; `finish` waits for the latest."""
        self._latest = ticket

    def close_step(self, ticket: Ticket) -> None:
        """`ticket` closes a step; waits for the oldest of them where there would be too many."""
        self._steps.append(ticket)
        while self._steps and self._steps[0].done():
            self._steps.popleft()
        if len(self._steps) > limits.OPEN_STEPS_MAX:
            self._pump.wait(self._steps.popleft(), None)

    def fail(self, ticket: Ticket) -> None:
        """It has an error; the pump's holder calls this."""
        self._failed.append(ticket)

    def raise_failed(self) -> None:
        """Raise the error of a ticket that nobody waited for."""
        while self._failed:
            ticket = self._failed.popleft()
            if not ticket.seen and ticket.error is not None:
                ticket.seen = True
                raise ticket.error

    def finish(self) -> None:
        """Wait until what was pushed last is answered."""
        if self._latest is not None and self._latest.left:
            self._pump.wait(self._latest, None)
