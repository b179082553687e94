"""What the command line says when it cannot do what was asked: three lines, and an exit status.

    windlass: what happened
      why: the values it is about
      try: what to do next

A `WindlassError` from any depth becomes these lines; a `CommandError` is for what only the command line knows.
"""

from __future__ import annotations

import os
import sys

from windlass_proto.errors import WindlassError

FAILED = 1
USAGE = 2


class CommandError(WindlassError):
    """The command cannot go on. `why` is one clause or a few lines; the exit status is `status`."""

    def __init__(self, fact: str, *, why: str, next_move: str, status: int = FAILED) -> None:
        super().__init__(fact, next_move=next_move)
        self.why = why
        self.status = status

    def __str__(self) -> str:
        return f"{self.fact} ({self.why}). {self.next_move}"


def lines_of(error: WindlassError) -> list[str]:
    """What happened, why, what to try."""
    if isinstance(error, CommandError):
        why = error.why
    else:
        # Of a traceback or a log's end, the last line is the reason; --debug shows the rest.
        last = {name: (str(value).strip().splitlines() or [""])[-1] for name, value in error.values.items()}
        why = ", ".join(f"{name}={value}" for name, value in last.items()) or type(error).__name__
    return [f"windlass: {error.fact}", f"  why: {why}", f"  try: {error.next_move or 'windlass doctor'}"]


def complain(error: WindlassError) -> int:
    """Write the lines to standard error, in colour on a terminal; the exit status."""
    bold, plain = ("\x1b[1;31m", "\x1b[0m") if in_colour(sys.stderr.fileno()) else ("", "")
    first, *rest = lines_of(error)
    sys.stderr.write("\n".join([f"{bold}{first}{plain}", *rest]) + "\n")
    return error.status if isinstance(error, CommandError) else FAILED


def in_colour(fd: int) -> bool:
    """Whether colour is wanted there: a terminal, `NO_COLOR` not set, not a dumb one."""
    return os.isatty(fd) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
