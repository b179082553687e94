"""What a core tells its driver to do, common to all cores.

A core's step returns a list of effects. The driver writes every `Persist` of the step before it lets anything
else of it be seen. Effects that one core alone has stand in that core's module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from windlass_proto.errors import WindlassError

Record: TypeAlias = Mapping[str, object]
"""What is stored under one key: JSON values only; bytes travel as hexadecimal text."""


@dataclass(frozen=True, slots=True)
class Persist:
    """Store `record` under `key`, or nothing (the key goes)."""

    key: str
    record: Record | None


@dataclass(frozen=True, slots=True)
class Answer:
    """The call `waiter` ends with `reply`."""

    waiter: int
    reply: object


@dataclass(frozen=True, slots=True)
class Refuse:
    """The call `waiter` ends with `error`."""

    waiter: int
    error: WindlassError


@dataclass(frozen=True, slots=True)
class Say:
    """Something a person wants to know: logged, shown in status, sent to watchers of `job` ("": all)."""

    kind: str
    text: str
    job: str = ""


Effect: TypeAlias = object
