"""What one measurement carries, and what came back: the two values that cross between bench and contender.

A load is a list of tensors that are pushed and pulled together; bytes are counted both ways, as in DESIGN's
tables (a push_pull of 4 MiB moves 8 MiB). Standard library only: the peers' environments import this too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

FLOAT32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Load:
    """Tensors exchanged by one push_pull. `arena` asks for arrays that the client library allocated."""

    key: str
    shapes: tuple[tuple[int, ...], ...]
    arena: bool = False

    @property
    def payload_bytes(self) -> int:
        """Bytes one way."""
        return FLOAT32_BYTES * sum(math.prod(shape) for shape in self.shapes)

    def to_json(self) -> dict[str, Any]:
        return {"key": self.key, "shapes": [list(shape) for shape in self.shapes], "arena": self.arena}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Load:
        shapes = tuple(tuple(int(n) for n in shape) for shape in value["shapes"])
        return Load(str(value["key"]), shapes, bool(value["arena"]))


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of each exchange, and where the whole lay on CLOCK_MONOTONIC (comparable between processes)."""

    begin_s: float
    end_s: float
    seconds: tuple[float, ...]

    @property
    def wall_s(self) -> float:
        return self.end_s - self.begin_s

    def to_json(self) -> dict[str, Any]:
        return {"begin_s": self.begin_s, "end_s": self.end_s, "seconds": list(self.seconds)}

    @staticmethod
    def from_json(value: dict[str, Any]) -> Timing:
        return Timing(float(value["begin_s"]), float(value["end_s"]), tuple(map(float, value["seconds"])))


def one_tensor(payload_bytes: int, *, arena: bool = False) -> Load:
    """A load of one flat float32 tensor of `payload_bytes`."""
    elements = payload_bytes // FLOAT32_BYTES
    return Load(f"{payload_bytes}b{'a' if arena else ''}", ((elements,),), arena)
