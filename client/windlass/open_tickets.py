"""Open tickets: what a store has sent and nobody has seen the end of.

Invariant: a failed ticket that nobody waited for is raised once, by the store's next call; no more than
`limits.OPEN_STEPS_MAX` closed steps are under way, and one is until all its pushes are answered: the pushes of one step
are answered in any order. Owner: the store, under whose lock all but `fail` is called.
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
        self._failed: deque[Ticket] = deque(maxlen=_FAILED_MAX)
        self._step: deque[Ticket] = deque()  # pushes of the step that is open; of those answered some are left out
        self._steps: deque[deque[Ticket]] = deque()  # of steps that are closed

    def sent(self, ticket: Ticket) -> None:
        """A push of the open step is on its way."""
        _forget_done(self._step)
        self._step.append(ticket)

    def close_step(self) -> None:
        """The open step is closed; waits for the oldest one under way where there would be too many."""
        self._steps.append(self._step)
        self._step = deque()
        while self._steps and not _forget_done(self._steps[0]):
            self._steps.popleft()
        if len(self._steps) > limits.OPEN_STEPS_MAX:
            self._wait(self._steps.popleft())

    def in_step(self, ticket: Ticket) -> bool:
        """Is `ticket` a push of the step that is open?"""
        return ticket in self._step

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
        """Wait until what was pushed is answered."""
        for step in (*self._steps, self._step):
            self._wait(step)

    def _wait(self, tickets: deque[Ticket]) -> None:
        for ticket in tickets:
            if ticket.left:
                self._pump.wait(ticket, None)


def _forget_done(tickets: deque[Ticket]) -> deque[Ticket]:
    """`tickets`, without the leading ones that are done."""
    while tickets and tickets[0].done():
        tickets.popleft()
    return tickets
