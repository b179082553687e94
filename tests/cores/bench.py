"""A share core on the bench: one block of several tensors, weights that its effects move, and what was answered.

The rule is w -= g, times the first number of each total where steps are reduced (`phases`). An origin is (connection,
name); answers are kept by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from windlass_proto.consistency import Consistency
from windlass_proto.frames import Status
from windlass_proto.layout import GroupLayout, TensorSpec
from windlass_server.reducing import Phases
from windlass_server.share_core import Answer, Apply, Effect, Push, Release, Roster, ShareCore, Write
from windlass_server.share_events import Measure, Member, Settled

A, B, C, D = b"a" * 16, b"b" * 16, b"c" * 16, b"d" * 16
LINE = 16  # elements of one tensor, one segment each


class Buffer:
    """A gradient: one value an element, whose it is, and how often it was released."""

    def __init__(self, name: str, values: npt.NDArray[np.float32]) -> None:
        self.name = name
        self.values = values
        self.released = 0


class Said(NamedTuple):
    """An answer and the values it carried, one a segment."""

    status: Status
    values: list[float] | None
    answer: Answer


class Bench:
    """Drives one core and keeps everything that came of it."""

    def __init__(
        self,
        mode: str = "bsp",
        segments: int = 4,
        *,
        mean: bool = True,
        members: Iterable[bytes] = (A, B),
        phases: Phases = (),
    ) -> None:
        tensors = tuple(TensorSpec(f"t{i}", (LINE,)) for i in range(segments))
        layout = GroupLayout(1, "float32", tensors, 64 * LINE, 1)
        self.segments = segments
        self.block = layout.blocks[0]
        spans = {0: phases} if phases else {}
        self.core = ShareCore(Consistency.parse(mode), [self.block], mean=mean, phases=spans)
        self.weights = np.zeros(segments * LINE, np.float32)
        self.said: dict[str, list[Said]] = {}
        self.applied: list[Apply] = []
        self.measured: list[Measure] = []
        self.settled: list[tuple[int, int]] = []
        self.buffers: list[Buffer] = []
        self.core.blocks[0].present[:] = [True] * segments
        self.roster(*members)

    def roster(self, *members: bytes, version: int = 1, join: dict[bytes, int] | None = None, settled: int = 0) -> None:
        counted = tuple(Member(m, rank, (join or {}).get(m, 0)) for rank, m in enumerate(members))
        self.carry_out(self.core.set_roster(Roster(version, True, counted, settled)))

    def push(
        self, name: str, session: bytes, seq: int, clock: int, gradient: float = 1.0,
        segs: tuple[int, int] | None = None, *, connection: Any = "link", op: str = "push", **how: Any,
    ) -> None:  # fmt: skip
        begin, end = segs or (0, self.segments)
        buffer = Buffer(name, np.full((end - begin) * LINE, gradient, np.float32))
        self.buffers.append(buffer)
        event = Push((connection, name), session, seq, clock, 0, begin, end, buffer, **how)
        if op == "refuse_stamp":
            self.carry_out(self.core.refuse(event, Status.UNKNOWN_STAMP))
            return
        self.carry_out(getattr(self.core, op)(event))

    def pull(self, name: str, clock: int, segs: tuple[int, int] | None = None, *, connection: Any = "link") -> None:
        begin, end = segs or (0, self.segments)
        self.carry_out(self.core.pull((connection, name), clock, 0, begin, end))

    def mark(self, *sessions: bytes, clock: int, leaves: bool = False) -> None:
        for session in sessions:
            self.carry_out(self.core.mark(session, clock, leaves=leaves))

    def total(self, scope: int, clock: int, phase: int, value: float) -> None:
        self.carry_out(self.core.reduced(0, scope, clock, phase, (value,)))

    def end(self, session: bytes) -> None:
        self.carry_out(self.core.end_session(session))

    def status(self, name: str) -> Status | None:
        """How `name` was answered, the last time."""
        said = self.said.get(name)
        return said[-1].status if said else None

    def values(self, name: str) -> list[float] | None:
        return self.said[name][-1].values

    def held(self) -> list[float]:
        """The weight of each segment; all its elements are equal."""
        lines = self.weights.reshape(self.segments, LINE)
        assert (lines == lines[:, :1]).all()
        return [float(line[0]) for line in lines]

    def carry_out(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Apply):
                self._apply(effect)
            elif isinstance(effect, Answer):
                self._answer(effect)
            elif isinstance(effect, Write):
                assert not effect.buffer.released
                begin, end = self.block.span(effect.seg_begin, effect.seg_end)
                self.weights[begin:end] = effect.buffer.values
            elif isinstance(effect, Measure):
                self.measured.append(effect)
                for part in effect.parts:
                    assert not any(source.buffer.released for source in part.sources), "a released buffer was measured"
            elif isinstance(effect, Settled):
                self.settled.append((effect.scope, effect.clock))
            elif isinstance(effect, Release):
                effect.buffer.released += 1
                assert effect.buffer.released == 1, "a buffer was released twice"
        self.core.validate()

    def _apply(self, effect: Apply) -> None:
        self.applied.append(effect)
        begin, end = self.block.span(effect.seg_begin, effect.seg_end)
        total = np.zeros(end - begin, np.float32)
        for source in effect.sources:
            assert not source.buffer.released, "a released buffer was used"
            values = source.buffer.values[source.begin : source.begin + end - begin]
            assert values.size == end - begin
            total += np.float32(source.weight) * values
        for sums in effect.totals:
            total *= np.float32(sums[0] if sums is not None else 1.0)
        self.weights[begin:end] -= total / np.float32(effect.divisor)
        if effect.answer is not None:
            assert (effect.answer.seg_begin, effect.answer.seg_end) == (effect.seg_begin, effect.seg_end)
            self._answer(effect.answer)

    def _answer(self, answer: Answer) -> None:
        values = self.held()[answer.seg_begin : answer.seg_end] if answer.values else None
        self.said.setdefault(answer.origin[1], []).append(Said(answer.status, values, answer))
