"""Consistency modes: when a pull may be answered and when a push is applied.

bsp     a step is applied once every worker of the roster is done with it; a pull waits for that
ssp:N   a push is applied on arrival; a pull waits until every worker has closed all but the last N steps
asp     a push is applied on arrival; a pull never waits
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from windlass_proto.errors import UsageError

BOUND_MAX = 1 << 20


class Mode(StrEnum):
    """The three families."""

    BSP = "bsp"
    SSP = "ssp"
    ASP = "asp"


@dataclass(frozen=True, slots=True)
class Consistency:
    """A mode and, for ssp, its staleness bound in steps."""

    mode: Mode
    bound: int = 0

    @classmethod
    def parse(cls, text: str) -> Consistency:
        """Read "bsp", "asp" or "ssp:N" with 0 <= N <= 2**20.

        Raises:
            UsageError: for anything else.
        """
        name, colon, bound = text.partition(":")
        if name in (Mode.BSP, Mode.ASP) and not colon:
            return cls(Mode(name))
        digits = bound.isascii() and bound.isdecimal() and len(bound) <= len(str(BOUND_MAX))
        if name == Mode.SSP and digits and int(bound) <= BOUND_MAX:
            return cls(Mode.SSP, int(bound))
        raise UsageError(
            "a consistency mode is not known",
            got=repr(text[:64]),
            known='"bsp", "ssp:N" (N steps) or "asp"',
            next_move='Write for example consistency="ssp:4".',
        )

    def __str__(self) -> str:
        return f"ssp:{self.bound}" if self.mode is Mode.SSP else str(self.mode.value)
