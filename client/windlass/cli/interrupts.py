"""Ctrl-C, SIGTERM and SIGHUP as one thing: the first one ends what runs, later ones hurry the cleanup.

Invariant: inside the context at most one `Interrupted` is raised, and none after `hold()`; so cleanup runs
whole. Owner: the main thread (signals arrive there).
"""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal asked this command to end; `status` is the shell's convention for it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number


class Interrupts:
    """Context in which the first ending signal raises Interrupted and later ones are counted."""

    def __init__(self) -> None:
        self.count = 0
        self._held = False
        self._before: dict[int, Any] = {}

    def hold(self) -> None:
        """From now on signals are only counted: cleanup begins."""
        self._held = True

    def __enter__(self) -> Interrupts:
        for number in _ENDING:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if not self._held:
            self._held = True
            raise Interrupted(number)
