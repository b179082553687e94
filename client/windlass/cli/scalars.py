"""Scalars that the workers of a run logged, merged by the scheduler: their latest values, course and rate.

`ScalarWatch` receives them (as an observer of the job, on the watch thread); `Scalars` keeps what is shown.
Owner of `Scalars`: the launcher's main thread. Between the two: a bounded queue; when the terminal is slow the
oldest records go, the run does not wait.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Final

from windlass_proto.errors import WindlassError

if TYPE_CHECKING:
    from windlass_proto.control_link import Beater, ControlLink
    from windlass_proto.gen import control_pb2 as pb

PROGRESS: Final = "progress"  # a scalar of this name, from 0 to 1, says how far the run is
_RECORDS_MAX: Final = 4096
_COURSE_POINTS_MAX: Final = 512
_RATE_WINDOW_S: Final = 5.0
_JOIN_S: Final = 5.0
_LEAVE_S: Final = 1.0


@dataclass(slots=True)
class Scalars:
    """`latest` by name in the order first logged; `course` holds the last values of each."""

    step: int = -1
    latest: dict[str, float] = field(default_factory=dict)
    course: dict[str, deque[float]] = field(default_factory=dict)
    _marks: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, step: int, values: dict[str, float], now_s: float) -> None:
        self.step = max(self.step, step)
        for name, value in values.items():
            self.latest[name] = value
            self.course.setdefault(name, deque(maxlen=_COURSE_POINTS_MAX)).append(value)
        self._marks.append((now_s, self.step))
        while len(self._marks) > 2 and self._marks[1][0] < now_s - _RATE_WINDOW_S:
            self._marks.popleft()

    def steps_s(self) -> float:
        """Steps a second over the last seconds; 0 while unknown."""
        if len(self._marks) < 2 or self._marks[-1][0] <= self._marks[0][0]:
            return 0.0
        (begin_s, begin_step), (end_s, end_step) = self._marks[0], self._marks[-1]
        return (end_step - begin_step) / (end_s - begin_s)

    def words(self) -> str:
        """One line: step, every scalar, the rate."""
        steps_s = self.steps_s()
        shown = [f"step {self.step:,}"]
        shown += [f"{name} {number(value)}" for name, value in self.latest.items() if name != PROGRESS]
        if PROGRESS in self.latest:
            shown.append(f"{self.latest[PROGRESS]:.0%}")
        return "  ".join([*shown, *([f"{steps_s:,.0f} steps/s"] if steps_s else [])])


def number(value: float) -> str:
    """Four significant digits, whole numbers whole."""
    return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e9 else f"{value:.4g}"


class ScalarWatch:
    """Context that joins `job` as an observer and collects its merged scalars.

    A run whose scalars cannot be watched goes on: one line says why, and its workers say themselves what is wrong.
    """

    def __init__(self, link: ControlLink, token: bytes, job: str) -> None:
        self._received: deque[pb.LogRecord] = deque(maxlen=_RECORDS_MAX)
        self._link = link
        self._token = token
        self._job = job
        self._left: pb.LeaveRequest | None = None
        self._beater: Beater | None = None

    def __enter__(self) -> ScalarWatch:
        try:
            self._join()
        except WindlassError as error:
            sys.stderr.write(f"windlass: no live figures: {error}\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._beater is not None:
            self._beater.close()
        if self._left is not None:
            with contextlib.suppress(WindlassError):  # without it the lease ends the session
                self._link.leave(self._left, timeout_s=_LEAVE_S)

    def drain(self, scalars: Scalars, now_s: float) -> None:
        """Move what has come into `scalars`."""
        while self._received:
            record = self._received.popleft()
            scalars.add(record.step, {s.name: s.value for s in record.scalars}, now_s)

    def _join(self) -> None:
        from windlass_proto import beats, limits
        from windlass_proto.control_link import Beater
        from windlass_proto.gen import control_pb2 as pb

        joined = self._link.join(
            pb.JoinRequest(
                role=pb.ROLE_OBSERVER,
                protocol_min=limits.PROTOCOL_MIN,
                protocol_max=limits.PROTOCOL_MAX,
                host=socket.gethostname(),
                pid=os.getpid(),
                job=self._job,
            ),
            timeout_s=_JOIN_S,
        )
        self._left = pb.LeaveRequest(member_id=joined.member_id, session=joined.session)
        self._beater = Beater(
            self._link.address.rpartition(":")[0],
            joined.beat_port,
            joined.member_id,
            joined.beat_s,
            beats.derive_key(self._token, joined.cluster_id),
            oldest_frame_age_ms=lambda: 0,
            clocks=lambda: (),
        )
        request = pb.WatchRequest(member_id=joined.member_id, session=joined.session, metrics=True)
        self._link.watch(request, self._on_update, lambda _lost: None)  # the link opens a lost stream again

    def _on_update(self, update: pb.Update) -> None:
        if update.WhichOneof("what") == "metrics" and update.metrics.job == self._job:
            self._received.extend(update.metrics.records)
