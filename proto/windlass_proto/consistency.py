"""Consistency modes: when a pull may be answered and when a push is applied.

bsp       a step is applied once every worker of the roster is done with it; a pull waits for that
bsp:k=K   a step is applied once K of them are done with it, the others being its backups; what comes later is
          acknowledged as late and dropped, or with "bsp:k=K,late=fold" added to the step that is open then
ssp:N     a push is applied on arrival; a pull waits until every worker has closed all but the last N steps
asp       a push is applied on arrival; a pull never waits
avg:H=N   workers train on their own and exchange parameters every N steps; an exchange is a step of bsp. With
          "avg:H=N,elastic=A" they keep theirs, and are pulled towards the center by A

Backup workers are those of Chen et al., "Revisiting distributed synchronous SGD" (arXiv:1604.00981), who drop what is
late; folding is ours.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from windlass_proto.errors import UsageError

BOUND_MAX: Final = 1 << 20
NEEDED_MAX: Final = 1 << 16

_AVERAGED: Final = re.compile(r"H=([0-9]{1,7})(?:,elastic=([0-9.e-]{1,20}))?")
_BACKUP: Final = re.compile(r"k=([0-9]{1,5})(?:,late=(drop|fold))?")


class Mode(StrEnum):
    """The three families."""

    BSP = "bsp"
    SSP = "ssp"
    ASP = "asp"


@dataclass(frozen=True, slots=True)
class Consistency:
    """A mode; for ssp its staleness bound in steps; for bsp of how many workers a step needs (0: of all).

    `folds`: what comes too late for its step is added to the open one. `every`: workers train on their own for so many
    steps before each step here (0: they do not); `elastic`: how far they are then pulled to the center, 0: all the way.
    """

    mode: Mode
    bound: int = 0
    needed: int = 0
    folds: bool = False
    every: int = 0
    elastic: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Consistency:
        """Read "bsp", "bsp:k=K", "bsp:k=K,late=fold", "asp", "ssp:N", "avg:H=N" or "avg:H=N,elastic=A".

        With 0 <= N <= 2**20 (for avg from 1 on), 1 <= K <= 2**16 and 0 < A < 1.

        Raises:
            UsageError: for anything else.
        """
        name, colon, given = text.partition(":")
        if name in (Mode.BSP, Mode.ASP) and not colon:
            return cls(Mode(name))
        digits = given.isascii() and given.isdecimal() and len(given) <= len(str(BOUND_MAX))
        if name == Mode.SSP and digits and int(given) <= BOUND_MAX:
            return cls(Mode.SSP, int(given))
        backup = _BACKUP.fullmatch(given) if name == Mode.BSP else None
        if backup is not None and 1 <= int(backup[1]) <= NEEDED_MAX:
            return cls(Mode.BSP, needed=int(backup[1]), folds=backup[2] == "fold")
        averaged = _AVERAGED.fullmatch(given) if name == "avg" else None
        if averaged is not None and 1 <= int(averaged[1]) <= BOUND_MAX:
            elastic = _number(averaged[2]) if averaged[2] else 0.0
            if not averaged[2] or 0.0 < elastic < 1.0:
                return cls(Mode.BSP, every=int(averaged[1]), elastic=elastic)
        raise UsageError(
            "a consistency mode is not known",
            got=repr(text[:64]),
            known='"bsp", "bsp:k=K" (K workers), "bsp:k=K,late=fold", "ssp:N" (N steps), "asp" or "avg:H=N"',
            next_move='Write for example consistency="ssp:4".',
        )

    def __str__(self) -> str:
        if self.every:
            return f"avg:H={self.every}{f',elastic={self.elastic!r}' if self.elastic else ''}"
        if self.needed:
            return f"bsp:k={self.needed}{',late=fold' if self.folds else ''}"
        return f"ssp:{self.bound}" if self.mode is Mode.SSP else str(self.mode.value)

    @property
    def is_strict(self) -> bool:
        """Does a step wait for everybody?"""
        return self.mode is Mode.BSP and not self.needed

    @property
    def apart(self) -> int | None:
        """How many steps workers may be apart before somebody waits for the slowest; None: any number."""
        return None if self.mode is Mode.ASP or self.needed else self.bound


def _number(text: str) -> float:
    """What `text` says, or 0."""
    try:
        return float(text)
    except ValueError:
        return 0.0
