"""Tickets: what a push or a pull returns, to be waited on.

Invariant: a ticket is done once every one of its requests is finished, and stays so. Its fields are written by whoever
holds the session's pump; readers see `done` last.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Any, Protocol

from windlass.reads import Read
from windlass_proto.errors import WindlassError

_FINISHING = threading.RLock()  # two threads may wait for one ticket; its values are copied out once


class Pump(Protocol):
    """Who can wait for a ticket."""

    def wait(self, ticket: Ticket, timeout_s: float | None) -> None:
        """Move bytes until `ticket` is done.

        Raises:
            TimeoutError: not done within `timeout_s`.
        """


class Ticket:
    """The promise of a push, a pull or both.

    `result()` waits and returns what was asked for: the arrays of a pull, None of a push. A failed ticket that nobody
    waited for raises at the next call on its store.
    """

    __slots__ = (
        "_finish",
        "_pump",
        "_value",
        "brings_values",
        "clock",
        "error",
        "left",
        "reads",
        "seen",
        "settle",
        "store",
        "what",
    )

    def __init__(
        self,
        pump: Pump,
        what: str,
        requests: int,
        *,
        store: Any = None,
        clock: int = 0,
        finish: Callable[[], Any] | None = None,
        settle: Iterable[Callable[[], None]] = (),
    ) -> None:
        self._pump = pump
        self.what = what
        self.left = requests
        self.store = store
        self.clock = clock
        self.error: WindlassError | None = None
        self.seen = False
        self.settle = settle  # what the store does when everything is answered, before anybody sees the ticket done
        self.brings_values = finish is not None
        self.reads: list[Read] = []  # what its answers showed
        self._finish = finish
        self._value: Any = None

    def done(self) -> bool:
        """Is everything answered?"""
        return self.left == 0

    def exception(self) -> WindlassError | None:
        """The error of a ticket that is done, else None."""
        if self.left == 0 and self.error is not None:
            self.seen = True
        return self.error if self.left == 0 else None

    def result(self, timeout: float | None = None) -> Any:
        """Wait, then return the value or raise the error.

        Raises:
            TimeoutError: after `timeout` seconds; the operation goes on.
            WindlassError: what went wrong.
        """
        if self.left:
            if self.store is not None and timeout is None:
                self.store.check_waitable(self)
            self._pump.wait(self, timeout)
        self.seen = True
        if self.error is not None:
            raise self.error
        if self.reads and self.store is not None:
            self.store.has_read(self.reads)
            self.reads = []
        if self._finish is not None:
            with _FINISHING:
                if self._finish is not None:
                    self._value, self._finish = self._finish(), None
        return self._value

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.get_running_loop().run_in_executor(None, self.result).__await__()


def wait(tickets: Iterable[Ticket], timeout: float | None = None) -> list[Any]:
    """Wait for all of `tickets`; returns their results in order."""
    return [ticket.result(timeout) for ticket in tickets]
