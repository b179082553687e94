"""Admission and eviction of a sparse table's rows, as declared: which ids get rows, and which rows go again.

A server decides both as it applies pushes, from nothing but what it has applied: no clock on a wall, no reads, no order
of rows in memory. So two runs of one training under "bsp", or a run and its resumption, keep the same rows.

    admit    an id without a row is pushed: is it given one now?
    evict    a row's time has passed, or there are more rows than there may be: which go?

Until it is admitted an id is read as its initialiser has it, and what is pushed to it is dropped. A row that is evicted
is forgotten with its slots: the id is as one that was never pushed.

Invariant: a spec that exists is valid, and equal specs have equal messages.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from windlass_proto import limits
from windlass_proto.arguments import is_number, refused_in_words
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import control_pb2

_STEPS_MAX: Final = (1 << 31) - 1


@refused_in_words
@dataclass(frozen=True, slots=True)
class Count:
    """An id is given a row by its `n`-th push (under "bsp": by the n-th step in which somebody pushes to it).

    Counts are kept for a bounded number of ids (`limits.ADMISSION_COUNTERS` a vshard): among more, rare ones are
    forgotten, and none is ever counted too high (Misra & Gries, Science of Computer Programming 2, 1982).
    """

    n: int

    def __post_init__(self) -> None:
        _whole("Count", "n", self.n, limits.ADMISSION_COUNT_MAX)


@refused_in_words
@dataclass(frozen=True, slots=True)
class Probability:
    """Each push of an id without a row gives it one with probability `p`, drawn from a hash of seed, id and step."""

    p: float
    seed: int = 0

    def __post_init__(self) -> None:
        if not is_number(self.p) or not 0.0 < self.p <= 1.0:
            raise UsageError("Probability takes p above 0, up to 1", p=self.p)
        object.__setattr__(self, "p", float(self.p))
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 64:
            raise UsageError("Probability takes a seed of 0 to 2**64 - 1", seed=self.seed)


@refused_in_words
@dataclass(frozen=True, slots=True)
class TTL:
    """A row that no push has named for more than `steps` steps is gone."""

    steps: int

    def __post_init__(self) -> None:
        _whole("TTL", "steps", self.steps, _STEPS_MAX)


@refused_in_words
@dataclass(frozen=True, slots=True)
class LRU:
    """Of more than `rows_max` rows those go that were pushed to least recently. See `Score` on rows_max."""

    rows_max: int

    def __post_init__(self) -> None:
        _rows_max("LRU", self.rows_max)


@refused_in_words
@dataclass(frozen=True, slots=True)
class LFU:
    """Of more than `rows_max` rows those go that were pushed to least often, 2**24 at most. See `Score` on rows_max."""

    rows_max: int

    def __post_init__(self) -> None:
        _rows_max("LFU", self.rows_max)


@refused_in_words
@dataclass(frozen=True, slots=True)
class Score:
    """Of more than `rows_max` rows those of the lowest score go: pushes, each worth half after `half_life` steps.

    Between two halvings a push's worth falls in a straight line. A long half-life is LFU, a short one LRU (Lee et al.,
    IEEE Transactions on Computers 50, 2001).

    `rows_max` is over all servers, and held by each vshard for its equal part: a vshard that has more gives up an
    eighth of it at once. Ids are spread by a hash, so with few rows a vshard some are full long before the table is.
    """

    rows_max: int
    half_life: int

    def __post_init__(self) -> None:
        _rows_max("Score", self.rows_max)
        _whole("Score", "half_life", self.half_life, _STEPS_MAX)


AdmitSpec: TypeAlias = Count | Probability
Capacity: TypeAlias = LRU | LFU | Score
EvictSpec: TypeAlias = TTL | Capacity
Evictions: TypeAlias = tuple[EvictSpec, ...]


def evictions(given: object) -> Evictions:
    """What a caller gives as `evict=`: nothing, one, or one of time and one of capacity.

    Raises:
        UsageError: it is something else.
    """
    found = () if given is None else tuple(given) if isinstance(given, Iterable) else (given,)
    if not all(isinstance(spec, TTL | LRU | LFU | Score) for spec in found):
        raise UsageError("an eviction is not one of windlass.evict", got=repr(given)[:80])
    if len(found) > 2 or len({isinstance(spec, TTL) for spec in found}) != len(found):
        raise UsageError(
            "evictions do not go together",
            got=repr(given)[:200],
            next_move="Give one, or a TTL and one of LRU, LFU and Score.",
        )
    return tuple(sorted(found, key=lambda spec: not isinstance(spec, TTL)))


def admission(given: object) -> AdmitSpec | None:
    """What a caller gives as `admit=`.

    Raises:
        UsageError: it is something else.
    """
    if given is not None and not isinstance(given, Count | Probability):
        raise UsageError("an admission is not one of windlass.admit", got=repr(given)[:80])
    return given


def add_to(message: control_pb2.Table, admit: AdmitSpec | None, evict: Evictions) -> None:
    """Say `admit` and `evict` in a table's message."""
    match admit:
        case Count(n):
            message.admit.CopyFrom(control_pb2.Admit(count=n))
        case Probability(p, seed):
            message.admit.CopyFrom(control_pb2.Admit(probability=p, seed=seed))
    for spec in evict:
        kind = type(spec).__name__.lower()
        match spec:
            case TTL(steps):
                message.evict.add(kind=kind, steps=steps)
            case LRU(rows_max) | LFU(rows_max):
                message.evict.add(kind=kind, rows_max=rows_max)
            case Score(rows_max, half_life):
                message.evict.add(kind=kind, rows_max=rows_max, steps=half_life)


def from_message(message: control_pb2.Table) -> tuple[AdmitSpec | None, Evictions]:
    """Read what `add_to` wrote.

    Raises:
        ProtocolError: it is none, or holds values that it may not have.
    """
    try:
        admit: AdmitSpec | None = None
        if message.HasField("admit"):
            said = message.admit
            admit = Count(said.count) if said.count else Probability(said.probability, said.seed)
        return admit, evictions([_eviction(said) for said in message.evict])
    except UsageError as cause:
        raise ProtocolError("a table's admission or eviction is not one", reason=str(cause)) from cause


def _eviction(message: control_pb2.Evict) -> EvictSpec:
    match message.kind:
        case "ttl":
            return TTL(message.steps)
        case "lru":
            return LRU(message.rows_max)
        case "lfu":
            return LFU(message.rows_max)
        case "score":
            return Score(message.rows_max, message.steps)
    raise ProtocolError("an eviction is not known", kind=message.kind[:64])


def in_words(admit: AdmitSpec | None, evict: Evictions) -> str:
    """For errors; empty if there is neither."""
    said = [] if admit is None else [f"admit={admit}"]
    return ", ".join([*said, *(f"evict={spec}" for spec in evict)])


def _whole(rule: str, name: str, number: Any, most: int) -> None:
    if type(number) is not int or not 1 <= number <= most:
        raise UsageError(f"{rule} takes a whole {name}", **{name: number}, allowed=f"1..{most}")


def _rows_max(rule: str, number: Any) -> None:
    if type(number) is not int or not limits.EVICT_ROWS_MIN <= number < math.inf:
        raise UsageError(f"{rule} takes a whole rows_max", rows_max=number, least=limits.EVICT_ROWS_MIN)
