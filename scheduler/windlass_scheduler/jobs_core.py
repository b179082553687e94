"""Jobs without workers: how long what they left is kept, and when it goes.

A job whose last worker has left or died keeps its stores for `keep_s`: a resumed run, or a notebook, finds them as they
were. Then it is over: its stores, rosters, actions and meeting points are forgotten, here and on every server, and the
next job of its name begins afresh.

Which stores are gone is kept for servers that were not there to be told, also over a restart of the scheduler.

Invariant: a job with a live worker is never over. The time begins anew when the scheduler starts: it does not know how
long it was away, and nothing is lost by waiting.

Owner: the loop that drives it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias, cast

from windlass_scheduler import limits
from windlass_scheduler.effects import Effect, Persist, Record

_FREED: Final = "freed"


@dataclass(frozen=True, slots=True)
class WorkersChanged:
    """`job` has so many live workers now."""

    now_s: float
    job: str
    live: int


@dataclass(frozen=True, slots=True)
class Tick:
    now_s: float


Event: TypeAlias = WorkersChanged | Tick


@dataclass(frozen=True, slots=True)
class JobOver:
    """Nobody came back in time: all that is the job's goes."""

    job: str


class Jobs:
    """`step(event) -> effects`; see the module."""

    def __init__(self, keep_s: float) -> None:
        self._keep_s = keep_s
        self._left_s: dict[str, float] = {}
        self.freed: deque[int] = deque(maxlen=limits.STORES_FREED_KEPT)
        """Stores that are gone, for servers that missed it; the oldest are forgotten."""

    def kept_s(self, job: str, now_s: float) -> float | None:
        """How long what is left of `job` is still kept; None: it has workers, or there is none of this name."""
        left_s = self._left_s.get(job)
        return None if left_s is None else max(0.0, left_s + self._keep_s - now_s)

    def step(self, event: Event) -> list[Effect]:
        if isinstance(event, WorkersChanged):
            if event.live:
                self._left_s.pop(event.job, None)
            else:
                self._left_s.setdefault(event.job, event.now_s)
            return []
        over = [job for job, left_s in self._left_s.items() if event.now_s - left_s >= self._keep_s]
        for job in over:
            del self._left_s[job]
        return [JobOver(job) for job in over]

    def free(self, stores: Iterable[int]) -> list[Effect]:
        """Stores of a job that is over are gone."""
        self.freed.extend(stores)
        return [Persist(_FREED, {"stores": list(self.freed)})]

    def restore(self, now_s: float, without_workers: Iterable[str], records: Mapping[str, Record]) -> None:
        """Jobs that a restarted scheduler finds without a live worker are kept from now on."""
        self._left_s = dict.fromkeys(without_workers, now_s)
        self.freed.extend(cast("list[int]", records[_FREED]["stores"]) if _FREED in records else ())

    def validate(self) -> None:
        assert len(self.freed) <= limits.STORES_FREED_KEPT
