"""What goes into a share core and what comes out of it: immutable records that cross no thread and no
wire.

A gradient's buffer is opaque here: the core hands it from a `Push` to `Apply`, `Write` and at last
`Release`. An origin is the driver's own, too: a tuple whose first element is the connection. So is a stamp, which
says with which version of the hyper-parameters a push is to be applied: stamps are compared, the newer is greater.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from windlass_proto.errors import UsageError, WindlassError
from windlass_proto.frames import Status
from windlass_proto.step_modes import ModeChange

LEFT: Final = 1 << 62
"""The clock of a session that will close no further step."""


class Member(NamedTuple):
    """A worker that counts in steps from `join_clock` on."""

    session: bytes
    rank: int
    join_clock: int


@dataclass(frozen=True, slots=True)
class Roster:
    """Who counts in a store's steps, and the modes that followed the declared one. Steps complete once it has started.

    `proposal_settled`: what was prepared under this number or a lower one is decided and holds nothing back.
    """

    version: int = 0
    started: bool = False
    members: tuple[Member, ...] = ()
    proposal_settled: int = 0
    modes: tuple[ModeChange, ...] = ()


class Source(NamedTuple):
    """A gradient for a run: its buffer, the element at which the run begins in it, its weight, and who pushed it."""

    buffer: Any
    begin: int
    weight: float
    session: bytes = b""


Totals = tuple[float, ...]
"""Sums over a whole scope, as a rule's phase asks for them."""


class Answer(NamedTuple):
    """Release the answer to `origin`; with `values`, the present weights of the segments go along."""

    origin: Any
    status: Status
    block: int
    seg_begin: int
    seg_end: int
    values: bool
    aux: int = 0
    error: WindlassError | None = None


class Apply(NamedTuple):
    """Run the rule on segments [seg_begin, seg_end) with the weighted sum of `sources` over `divisor`.

    `update` is the 1-based number of this update of the segments, `clock` the step it belongs to: that of the
    workers (bsp), or of the worker who pushed. `answer`, if given, covers exactly these segments: the kernel may
    write its values in the same pass. `totals`: of each phase of the rule, None where the driver has all it needs.
    """

    block: int
    seg_begin: int
    seg_end: int
    sources: tuple[Source, ...]
    divisor: float
    update: int
    clock: int
    stamp: Any
    answer: Answer | None
    totals: tuple[Totals | None, ...] = ()


class Measure(NamedTuple):
    """Take the block's partial of `phase` over `scope` in step `clock`: the sums of `parts`, in their order.

    A part is an Apply as it will be, but for its answer. The total of all blocks comes back as `ShareCore.reduced`.
    """

    block: int
    scope: int
    clock: int
    phase: int
    parts: tuple[Apply, ...]


class Settled(NamedTuple):
    """The block has nothing to say of steps below `clock` over `scope` beyond what it has said."""

    block: int
    scope: int
    clock: int


class Write(NamedTuple):
    """Store given values; `fresh` also resets the slots."""

    block: int
    seg_begin: int
    seg_end: int
    buffer: Any
    fresh: bool


class Release(NamedTuple):
    """The buffer of a gradient is used no more."""

    buffer: Any


Effect = Answer | Apply | Write | Release | Measure | Settled


class Push(NamedTuple):
    """One entry that writes. `clock` is its step; `finite` says whether its values may be applied.

    `refusal`: why the driver cannot apply it, though it is in order; its step goes on without it.
    """

    origin: Any
    session: bytes
    seq: int
    clock: int
    block: int
    seg_begin: int
    seg_end: int
    buffer: Any
    weight: float = 1.0
    stamp: Any = 0
    last: bool = True
    values: bool = True
    finite: bool = True
    refusal: WindlassError | None = None


def deleted_error(**values: object) -> UsageError:
    """What is said of a tensor that was deleted."""
    return UsageError(
        "a tensor was deleted",
        **values,
        next_move="Call store.delete with it on this worker as well, or store.init to declare it anew.",
    )


def absent_error(applied: list[int], block: int) -> UsageError:
    """What is said of segments without values, whose completed steps are `applied`."""
    if LEFT in applied:
        return deleted_error(block=block)
    return UsageError(
        "a tensor has no values yet",
        block=block,
        next_move="Call store.init with it on every worker before pushing or pulling.",
    )
