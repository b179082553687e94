"""Totals of norms: what the server that coordinates a scope knows of it, and when a total is made.

A scope is a tensor or a whole group that lies in several blocks; its first block's server coordinates it. Every block
says its *partial* of a step, or how far the steps have gone by without it (`settled`); it speaks for steps in ascending
order. When none can say anything more of a step's phase, the partials are added in the order of the blocks, whatever
the order they came in, and everybody who said one is told.

Invariants:
- A block has at most one partial that it has not been told the total of, so at most as many steps are open as there
  are blocks, and of all totals made only a scope's last can be asked for again.
- What comes twice changes nothing: partials and what settles may be repeated, after a link broke, in any order.

One object for each group of a server; its lock is the driver's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from windlass_proto.errors import InvariantError
from windlass_server.share_events import LEFT, Totals


class Told(NamedTuple):
    """`origin`, who said the partial of `block`, is told the totals; () where the step is long over."""

    origin: Any
    scope: int
    block: int
    clock: int
    phase: int
    totals: Totals


@dataclass(slots=True)
class _Open:
    """A step's phase: partials by block with who said them, and how many blocks may still say one."""

    lacking: int
    parts: dict[int, tuple[Totals, Any]] = field(default_factory=dict)


class _Scope:
    """One scope. `heard`: for each block, in order, the lowest step it may still speak for."""

    __slots__ = ("heard", "last", "open")

    def __init__(self, blocks: tuple[int, ...]) -> None:
        self.heard = dict.fromkeys(blocks, 0)
        self.open: dict[tuple[int, int], _Open] = {}
        self.last: tuple[tuple[int, int], Totals] | None = None

    def pass_by(self, block: int, clock: int) -> None:
        """`block` speaks for no step below `clock` any more."""
        before = self.heard[block]
        if clock <= before:
            return
        self.heard[block] = clock
        for (at, _), step in self.open.items():
            if before <= at < clock and block not in step.parts:
                step.lacking -= 1

    def lacking(self, clock: int) -> int:
        return sum(heard <= clock for heard in self.heard.values())


class ReductionCore:
    """The scopes of one group that this server coordinates: scope -> its blocks, in order."""

    def __init__(self, scopes: Mapping[int, tuple[int, ...]]) -> None:
        self._scopes = {scope: _Scope(blocks) for scope, blocks in scopes.items()}

    def knows(self, scope: int, block: int) -> bool:
        """Is `block` part of a scope that is coordinated here?"""
        return scope in self._scopes and block in self._scopes[scope].heard

    @property
    def is_over(self) -> bool:
        """Will no block of any scope say anything more? Their tensors are deleted, here and elsewhere."""
        return all(heard >= LEFT for known in self._scopes.values() for heard in known.heard.values())

    # ---- events ------------------------------------------------------------------------------------------------------

    def partial(self, scope: int, block: int, clock: int, phase: int, sums: Totals, origin: Any) -> list[Told]:
        """What `block` has of a step's phase."""
        known, key = self._scopes[scope], (clock, phase)
        if known.last is not None and known.last[0] == key:
            return [Told(origin, scope, block, clock, phase, known.last[1])]
        if clock < known.heard[block]:
            return [Told(origin, scope, block, clock, phase, ())]
        known.pass_by(block, clock)
        step = known.open.get(key)
        if step is None:
            step = known.open[key] = _Open(known.lacking(clock))
        if block not in step.parts:
            step.lacking -= 1
        step.parts[block] = (sums, origin)
        return self._complete(scope, known)

    def settled(self, scope: int, block: int, clock: int) -> list[Told]:
        """`block` has nothing to say of steps below `clock` beyond what it has said."""
        known = self._scopes[scope]
        known.pass_by(block, clock)
        return self._complete(scope, known)

    def _complete(self, scope: int, known: _Scope) -> list[Told]:
        told = []
        for key in [key for key, step in known.open.items() if not step.lacking]:
            parts = known.open.pop(key).parts
            totals: Totals = ()
            for sums in (parts[block][0] for block in known.heard if block in parts):
                totals = tuple(a + b for a, b in zip(totals, sums, strict=True)) if totals else sums
            if known.last is None or known.last[0] < key:
                known.last = (key, totals)
            told += [Told(origin, scope, block, *key, totals) for block, (_, origin) in parts.items()]
        return told

    # ---- questions ---------------------------------------------------------------------------------------------------

    def awaited(self) -> list[tuple[int, int, list[int]]]:
        """Of each open step: its scope, its number, and the blocks that have not spoken."""
        return [
            (scope, clock, [b for b, heard in known.heard.items() if heard <= clock and b not in step.parts])
            for scope, known in self._scopes.items()
            for (clock, _), step in known.open.items()
        ]

    def validate(self) -> None:
        """Check the module's invariants.

        Raises:
            InvariantError: if one does not hold.
        """
        for scope, known in self._scopes.items():
            for (clock, phase), step in known.open.items():
                due = sum(heard <= clock and block not in step.parts for block, heard in known.heard.items())
                if step.lacking != due or not due:
                    raise InvariantError("a step's partials are miscounted", scope=scope, clock=clock, phase=phase)
            if len(known.open) > len(known.heard):
                raise InvariantError("more steps are open than blocks can have begun", scope=scope)
