"""Reducing: the runs of a block whose step is complete but whose rule still lacks norms of whole tensors.

    collecting -> reducing -> applying -> done

A rule that needs norms has *phases*, one norm after the other. A phase's norms are taken over *scopes*: a tensor, or
the whole group. What a block holds of a scope that lies in several blocks is a *span*: its segments go through
`reducing`, all others straight on. When everything in a span that a step can bring is there, the block's *partial* is
taken (`Measure`); when the total of all blocks has come (`give`), the runs go on to their next phase, or are applied.

Each block speaks for the steps of a scope in ascending order: with a partial, or with `Settled`, which says that what
it has not spoken for has brought nothing. So a total never waits for a block that has nothing to say, and one number a
block, the lowest step it may still speak for, tells all that a partner must remember of it.

Invariants:
- The runs do not overlap. A run here is of the first step that its segments have not applied.
- A partial is taken once for each step and phase, and a total taken once: one of another step or phase changes nothing.

One share core owns an object; it holds no arrays and computes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from windlass_proto.errors import InvariantError
from windlass_server.gate_runs import BlockState, GateRun
from windlass_server.share_events import LEFT, Settled, Totals


class Span(NamedTuple):
    """What one block holds of a scope: segments [seg_begin, seg_end)."""

    scope: int
    seg_begin: int
    seg_end: int


Phases = tuple[tuple[Span, ...], ...]
"""For each phase of a rule the spans of one block, in segment order."""


@dataclass(slots=True, eq=False)
class ReducingRun:
    """A run and what its step is applied with; `totals` of the phases behind it (None: no other block has a part)."""

    run: GateRun
    clock: int
    divisor: float
    stamp: Any
    totals: tuple[Totals | None, ...] = ()

    def cut(self, seg: int) -> ReducingRun:
        """Cut at `seg` and return the right part."""
        return ReducingRun(self.run.cut(seg), self.clock, self.divisor, self.stamp, self.totals)


class Reducing:
    """What one block is reducing; see the module."""

    def __init__(self, phases: Phases) -> None:
        self.phases = phases
        self.runs: list[ReducingRun] = []  # by segment
        self.asked: dict[tuple[int, int], int] = {}  # (phase, scope) -> the step whose partial was taken last
        spans = {span.scope: span for phase in phases for span in phase}
        self.told = dict.fromkeys(spans, 0)  # scope -> steps that this block has spoken for
        self._spans = tuple(spans.values())

    # ---- events ------------------------------------------------------------------------------------------------------

    def take(self, arrived: ReducingRun) -> list[ReducingRun]:
        """Keep what waits for the total of a phase; returns the parts that wait for none."""
        free, queue = [], [arrived]
        while queue:
            part = queue.pop()
            phase = len(part.totals)
            if phase == len(self.phases):
                free.append(part)
                continue
            for piece, is_shared in _cut(part, self.phases[phase]):
                if is_shared:
                    self.runs.append(piece)
                else:
                    piece.totals += (None,)
                    queue.append(piece)
        self.runs.sort(key=_by_segment)
        free.sort(key=_by_segment)
        return free

    def due(self, state: BlockState, closed_min: int) -> list[tuple[int, Span, int, list[ReducingRun]]]:
        """(phase, span, step, runs) of the partials that can be taken now; they are taken by that."""
        found = []
        for phase, spans in enumerate(self.phases):
            for span in spans:
                runs = [r for r in self._within(span) if len(r.totals) == phase]
                if not runs:
                    continue
                clock = min(r.clock for r in runs)
                runs = [r for r in runs if r.clock == clock]
                if self.asked.get((phase, span.scope)) == clock or not self._is_whole(
                    state, span, clock, runs, closed_min
                ):
                    continue
                self.asked[phase, span.scope] = clock
                self.told[span.scope] = clock + 1
                found.append((phase, span, clock, runs))
        return found

    def settled(self, state: BlockState, closed_min: int) -> list[Settled]:
        """What to say of scopes in which steps went by without anything."""
        found = []
        for span in self._spans:
            upto = self._over(state, span, closed_min)
            if upto > self.told[span.scope]:
                self.told[span.scope] = upto
                found.append(Settled(state.shape.index, span.scope, upto))
        return found

    def _over(self, state: BlockState, span: Span, closed_min: int) -> int:
        """Below which step nothing can come to the span any more; what is reduced is of a step that is not over."""
        if min(state.applied[span.seg_begin : span.seg_end]) == LEFT:
            return LEFT
        return min([closed_min, *self._coming(state, span, closed_min)])

    def _coming(self, state: BlockState, span: Span, below: int) -> Iterator[int]:
        """Steps that are reduced in the span, and open ones below `below`."""
        yield from (r.clock for r in self._within(span))
        for clock, runs in state.gates.items():
            if clock < below and any(r.seg_begin < span.seg_end and span.seg_begin < r.seg_end for r in runs):
                yield clock

    def give(self, scope: int, clock: int, phase: int, totals: Totals) -> list[ReducingRun]:
        """A total has come. Returns the runs that wait for no other; none if it is not one that is waited for."""
        if self.asked.get((phase, scope)) != clock:
            return []
        span = next(span for span in self.phases[phase] if span.scope == scope)
        taken = [r for r in self._within(span) if r.clock == clock and len(r.totals) == phase]
        self.runs = [r for r in self.runs if r not in taken]
        free = []
        for run in taken:
            run.totals += (totals,)
            free += self.take(run)
        return free

    def drop(self, seg_begin: int, seg_end: int) -> list[ReducingRun]:
        """Take out what lies in [seg_begin, seg_end)."""
        parts = [piece for run in self.runs for piece, _ in _cut(run, (Span(0, seg_begin, seg_end),))]
        dropped = [r for r in parts if seg_begin <= r.run.seg_begin and r.run.seg_end <= seg_end]
        self.runs = [r for r in parts if r not in dropped]
        return dropped

    # ---- questions ---------------------------------------------------------------------------------------------------

    def holds(self, state: BlockState, seg_begin: int, seg_end: int, clock: int) -> bool:
        """Does a step below `clock` of one of these segments wait for its total, or behind a neighbour's that does?"""
        span = Span(0, seg_begin, seg_end)
        return bool(self.runs) and any(at < clock for at in self._coming(state, span, clock))

    def taken(self, applied: list[int]) -> list[int]:
        """By segment: steps that take no further contribution."""
        if not self.runs:
            return applied
        counts = list(applied)
        for r in self.runs:
            counts[r.run.seg_begin : r.run.seg_end] = [r.clock + 1] * (r.run.seg_end - r.run.seg_begin)
        return counts

    def _within(self, span: Span) -> list[ReducingRun]:
        return [r for r in self.runs if r.run.seg_begin < span.seg_end and span.seg_begin < r.run.seg_end]

    def _is_whole(self, state: BlockState, span: Span, clock: int, runs: list[ReducingRun], closed_min: int) -> bool:
        """Can step `clock` bring nothing to the span beside `runs`?"""
        there = {seg for r in runs for seg in range(r.run.seg_begin, r.run.seg_end)}
        lacking = [s for s in range(span.seg_begin, span.seg_end) if s not in there and state.applied[s] <= clock]
        if not lacking:
            return True
        if closed_min <= clock:
            return False
        coming = [run for at, gates in state.gates.items() if at <= clock for run in gates]
        coming += [r.run for r in self.runs if r.clock <= clock and r not in runs]
        return not any(run.seg_begin <= seg < run.seg_end for run in coming for seg in lacking)

    def validate(self, applied: list[int]) -> None:
        """Check the module's invariants.

        Raises:
            InvariantError: if one does not hold.
        """
        end = 0
        for r in self.runs:
            if not end <= r.run.seg_begin < r.run.seg_end <= len(applied) or len(r.totals) >= len(self.phases):
                raise InvariantError("runs that are reduced overlap, or wait for nothing", clock=r.clock)
            end = r.run.seg_end
            if max(applied[r.run.seg_begin : r.run.seg_end]) > r.clock:
                raise InvariantError("a step that is reduced was applied", clock=r.clock)


def _cut(run: ReducingRun, spans: tuple[Span, ...]) -> Iterator[tuple[ReducingRun, bool]]:
    """The parts of `run` in segment order, each with whether it lies in one of `spans`."""
    for span in spans:
        if span.seg_end <= run.run.seg_begin or run.run.seg_end <= span.seg_begin:
            continue
        if run.run.seg_begin < span.seg_begin:
            right = run.cut(span.seg_begin)
            yield run, False
            run = right
        if span.seg_end < run.run.seg_end:
            right = run.cut(span.seg_end)
            yield run, True
            run = right
        else:
            yield run, True
            return
    yield run, False


def _by_segment(run: ReducingRun) -> int:
    return run.run.seg_begin
