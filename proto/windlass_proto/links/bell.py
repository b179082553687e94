"""A bell: what any thread rings to wake one that polls.

Invariant: after `ring` the descriptor is readable until `hear`; neither ever blocks. An eventfd where the system has
them (Linux), else a pipe (macOS). Owner: the thread that polls; it alone hears and closes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

_ONE: Final = (1).to_bytes(8, sys.byteorder)  # what an eventfd adds up
_PIPE_BYTES: Final = 1 << 16


class Bell:
    """Poll it for reading."""

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._heard = self._rung = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._at_once = len(_ONE)
        else:
            self._heard, self._rung = os.pipe()
            self._at_once = _PIPE_BYTES
            os.set_blocking(self._heard, False)
            os.set_blocking(self._rung, False)

    def fileno(self) -> int:
        return self._heard

    def ring(self) -> None:
        """Any thread may, until `close`."""
        with contextlib.suppress(BlockingIOError):  # rung often enough
            os.write(self._rung, _ONE)

    def hear(self) -> None:
        """Forget the rings so far."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._heard, self._at_once)

    def close(self) -> None:
        for descriptor in {self._heard, self._rung}:
            os.close(descriptor)
