"""What each thread is doing: recording a tape, training or predicting.

Invariant: modes are a thread's own and end with the block that set them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Modes(threading.local):
    def __init__(self) -> None:
        self.recording = False
        self.training = False
        self.tracing = False


_MODES = _Modes()


def is_recording() -> bool:
    """Whether ops on arrays are recorded."""
    return _MODES.recording


def is_training() -> bool:
    """Whether dropout drops and batch norm uses the batch."""
    return _MODES.training


def is_tracing() -> bool:
    """Whether symbols are made of what a block computes, for one mode."""
    return _MODES.tracing


@contextmanager
def tracing(*, training: bool) -> Iterator[None]:
    """Inside, ops on symbols are of the given mode, and blocks use symbols of their parameters."""
    before = (_MODES.tracing, _MODES.training)
    _MODES.tracing, _MODES.training = True, training
    try:
        yield
    finally:
        _MODES.tracing, _MODES.training = before


@contextmanager
def modes(*, recording: bool | None = None, training: bool | None = None) -> Iterator[None]:
    """Set either mode; None leaves it as it is."""
    before = (_MODES.recording, _MODES.training)
    _MODES.recording = before[0] if recording is None else recording
    _MODES.training = before[1] if training is None else training
    try:
        yield
    finally:
        _MODES.recording, _MODES.training = before
