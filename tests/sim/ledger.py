"""The ledger: what was pushed, what was acknowledged, and what the weights say of it.

Every segment has lanes. A push of worker u adds 1 to lane 2u, its number to lane 2u + 1 and a small integer to the
last lane. The rule is w -= g on integers below 2**24 in float32, so a sum is exact in any order, and a lane tells how
many of whose pushes a segment holds: by count and sum of numbers a lost push is told from a doubled one.

Checks raise `LedgerError`, whose `check` names them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tests.sim.wire import Values
from windlass_proto.consistency import Mode
from windlass_proto.frames import Status
from windlass_proto.step_modes import ModeChange, StepModes

LANES = 16
WORKERS_MAX = (LANES - 2) // 2
Place = tuple[int, int, int]  # table, block, segment


class LedgerError(AssertionError):
    """Something that was promised did not hold; `check` says which promise."""

    def __init__(self, check: str, text: str) -> None:
        super().__init__(f"{check}: {text}")
        self.check = check


@dataclass(slots=True)
class Pushed:
    """One push as its worker knows it; `status` is None until it is acknowledged."""

    number: int
    clock: int
    status: Status | None = None
    folds: bool = False  # it is applied also where it came late

    @property
    def is_applied(self) -> bool:
        """It was by the time that it was acknowledged."""
        return self.status in (Status.OK, Status.DUPLICATE)

    @property
    def counts(self) -> bool:
        """It is applied in the end."""
        return self.is_applied or (self.folds and self.status is Status.LATE)

    @property
    def is_open(self) -> bool:
        """Nobody has said what became of it."""
        return self.status is None


@dataclass(slots=True)
class Book:
    """One worker's account. `ended`: it died or its session was ended; it may have pushes of unknown fate."""

    worker: int
    ended: bool = False
    left: bool = False
    counting: bool = False  # it has entered the roster
    join_clock: int = 0
    clock: int = 0  # steps closed
    reached: int = 0  # the step that a late push was told is open
    late: int = 0  # pushes that came late
    stamps: dict[int, int] = field(default_factory=dict)  # step -> the version it was stamped with
    done: dict[Place, int] = field(default_factory=dict)  # steps whose last push of a place was made
    places: dict[Place, list[Pushed]] = field(default_factory=dict)
    seen: dict[tuple[Place, int], int] = field(default_factory=dict)


def gradient(worker: int, number: int) -> Values:
    """The lanes of push `number` of `worker`."""
    values = np.zeros(LANES, np.float32)
    values[2 * worker] = 1
    values[2 * worker + 1] = number
    values[LANES - 1] = number % 5 + 1
    return values


class Ledger:
    """All books of one run."""

    def __init__(self, modes: StepModes) -> None:
        self.modes = modes
        self.books: list[Book] = []

    def acknowledge(self, book: Book, push: Pushed, status: Status) -> None:
        mode = self.modes.at(push.clock)
        allowed = (Status.OK, Status.DUPLICATE, Status.LATE) if mode.needed else (Status.OK, Status.DUPLICATE)
        if status not in allowed and not book.ended:
            raise LedgerError("acknowledged", f"a push of live worker {book.worker} ended as {status.name}: {push}")
        push.status, push.folds = status, mode.folds and not book.ended
        book.late += status is Status.LATE

    def check_read(self, book: Book, place: Place, lanes: Values, clock: int, *, waits: bool) -> None:
        """`lanes` is what `book`'s worker read at `place`, having closed `clock` steps.

        Of its own pushes it sees at least those whose answers have come before: answers of a link keep their order.
        """
        for other in self.books:
            count = round(-float(lanes[2 * other.worker]))
            pushes = other.places.get(place, [])
            at_least = sum(push.is_applied for push in pushes) if other is book else 0
            if book.seen.get((place, other.worker), 0) > count:
                raise LedgerError("monotonic", f"worker {book.worker} read an older version of {place}")
            book.seen[place, other.worker] = count
            if waits and not other.ended:
                at_least = max(at_least, self._due(other, pushes, clock))
            if count < at_least:
                who = "its own" if other is book else f"worker {other.worker}'s"
                check = "read-your-writes" if other is book else "staleness"
                text = f"worker {book.worker} at clock {clock} read {count} of {who} pushes at {place}"
                raise LedgerError(check, f"{text}, at least {at_least} were due")
            alone = self.modes.at(clock - 1).is_strict and self.modes.at(clock).is_strict
            if waits and alone and count > sum(self._may_show(p, clock) for p in pushes):
                text = (
                    f"worker {book.worker} at clock {clock} read {count} of worker {other.worker}'s pushes at {place}"
                )
                raise LedgerError("same-clock", f"{text}: some belong to a later step")

    def _may_show(self, push: Pushed, clock: int) -> bool:
        """Under bsp nobody is beyond its reader's step, but a newcomer whose first step is one of a later mode."""
        return push.clock < clock or self.modes.at(push.clock).mode is not Mode.BSP

    def _due(self, other: Book, pushes: list[Pushed], clock: int) -> int:
        mode = self.modes.at(clock - 1)
        if mode.mode is Mode.ASP:
            return 0
        sure = [push for push in pushes if push.is_applied or not self.modes.at(push.clock).needed]
        return sum(push.clock < clock - mode.bound for push in sure if push.is_applied or not mode.needed)

    def check_release(self, clock: int, places: list[Place]) -> None:
        """An answer about `places` for someone who has closed `clock` steps is let go now."""
        mode = self.modes.at(clock - 1)
        closed = clock - mode.bound  # steps that are closed by now: by all, or by as many as they need
        if mode.mode is Mode.ASP or closed <= 0:
            return
        by_place = mode.mode is Mode.BSP  # a step may be complete there before it is closed
        if needed := self.modes.at(closed - 1).needed:
            self._check_needed(closed, needed, places)
            return
        for book in self.books:
            counts = book.counting and not (book.ended or book.left)
            if counts and book.clock < closed and not (by_place and _is_done(book, places, closed)):
                text = f"a pull at clock {clock} was answered while worker {book.worker} had closed {book.clock} steps"
                raise LedgerError("bound", text)

    def _check_needed(self, clock: int, needed: int, places: list[Place]) -> None:
        """A pull at `clock` is answered once so many workers are done with the step before it, or all there are."""
        there = sum(book.counting and not (book.ended or book.left) and book.join_clock < clock for book in self.books)
        done = sum(book.clock >= clock or _is_done(book, places, clock) for book in self.books)
        if done < min(needed, there):
            text = f"a pull at clock {clock} was answered when {done} of {there} workers had come so far"
            raise LedgerError("bound", text)

    def check_stamp(self, clock: int, stamp: int, pushed: list[int]) -> None:
        """Step `clock`, or a push of it, is applied with `stamp`; `pushed` are those of its gradients.

        Under bsp it is the highest that anybody gave the step: of the living for certain, of the dead where it came.
        """
        mode = self.modes.at(clock)
        if mode.mode is not Mode.BSP:
            low, high = max(pushed), max(pushed)
            if any(change.consistency.folds for change in (ModeChange(0, self.modes.declared), *self.modes.changes)):
                high = max(
                    high, *(max(book.stamps.values(), default=0) for book in self.books)
                )  # folded when bsp ended
        elif mode.needed:  # who is not among the first K may have said nothing of it yet, or jumps over it
            low = max(pushed)
            high = max(stamp for book in self.books for step, stamp in [(0, 0), *book.stamps.items()] if step <= clock)
        else:
            low = max([*pushed, *(book.stamps.get(clock, 0) for book in self.books if not book.ended)])
            high = max(book.stamps.get(clock, 0) for book in self.books)
        low, high = self.modes.stamp(clock, low), self.modes.stamp(clock, high)
        if not low <= stamp <= high:
            raise LedgerError("stamp", f"step {clock} was applied with version {stamp}, due is {low} to {high}")

    def check_balance(self, place: Place, lanes: Values) -> None:
        """At the end `final - initial` is the sum of what was acknowledged."""
        low = high = 0
        for book in self.books:
            pushes = book.places.get(place, [])
            count, total = round(-float(lanes[2 * book.worker])), round(-float(lanes[2 * book.worker + 1]))
            sure = [push for push in pushes if push.counts]
            maybe = [push for push in pushes if _may_count(book, push)]
            _balance(book, place, count, total, sure, maybe)
            self._check_whole(book, place, (count - len(sure), total - sum(push.number for push in sure)))
            low += sum(push.number % 5 + 1 for push in sure)
            high += sum(push.number % 5 + 1 for push in sure + maybe)
        shared = round(-float(lanes[LANES - 1]))
        if not low <= shared <= high:
            raise LedgerError("shared", f"the shared lane of {place} holds {shared}, due are {low} to {high}")

    def _check_whole(self, book: Book, place: Place, spare: tuple[int, int]) -> None:
        """What a dead worker pushed to a place in a step of bsp counts there as a whole, or not at all.

        `spare` is what the place holds beside what was acknowledged: how many pushes, and the sum of their numbers.
        """
        steps: dict[int, list[Pushed]] = {}
        reached = {(0, 0)}
        for push in book.places.get(place, []):
            mode = self.modes.at(push.clock)
            alone = mode.mode is not Mode.BSP or mode.needed
            if not alone:
                steps.setdefault(push.clock, []).append(push)
            elif _may_count(book, push):
                reached |= {(n + 1, total + push.number) for n, total in reached}
        for pushes in steps.values():
            maybe = [push for push in pushes if _may_count(book, push)]
            with_all = {(n + len(maybe), total + sum(push.number for push in maybe)) for n, total in reached}
            reached = with_all if any(push.counts for push in pushes) else reached | with_all
        if spare not in reached:
            text = f"{place} holds a part of a step of dead worker {book.worker}: {spare[0]} pushes beside those told"
            raise LedgerError("torn", text)


def _may_count(book: Book, push: Pushed) -> bool:
    """Is its fate unknown?"""
    return not push.counts and (push.is_open or (book.ended and push.status is Status.LATE))


def _is_done(book: Book, places: list[Place], closed: int) -> bool:
    """Has its worker made its last push of `closed` steps to all of `places`?"""
    return all(book.done.get(place, 0) >= closed for place in places)


def _balance(book: Book, place: Place, count: int, total: int, sure: list[Pushed], maybe: list[Pushed]) -> None:
    expected = sum(push.number for push in sure)
    if count < len(sure) or total < expected:
        raise LedgerError("lost", f"{place} holds {count} pushes of worker {book.worker}, {len(sure)} acknowledged")
    if maybe and not book.ended:
        raise LedgerError("acknowledged", f"pushes of worker {book.worker} at {place} were never acknowledged: {maybe}")
    if count > len(sure) + len(maybe) or total > expected + sum(push.number for push in maybe):
        raise LedgerError("doubled", f"{place} holds {count} pushes of worker {book.worker}, {len(sure)} acknowledged")
    numbers = sorted(push.number for push in maybe)
    spare = count - len(sure)
    if not sum(numbers[:spare]) <= total - expected <= sum(numbers[len(numbers) - spare :]):
        raise LedgerError("doubled", f"{place}: no set of worker {book.worker}'s pushes is {count} with sum {total}")
