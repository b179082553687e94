"""Logged scalars on their way to the scheduler, and, merged over the workers, back to rank 0's run folder.

Invariant: `put` never blocks and never raises; what does not fit the queue is counted and dropped, oldest first.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from windlass.run_folder import RunFolder
from windlass_proto.errors import WindlassError

if TYPE_CHECKING:
    from windlass.member import Member

_QUEUE_MAX = 4096
_SEND_S = 0.25
_LAST_WAIT_S = 3.0


class ScalarLog:
    """A queue and the thread that sends it."""

    def __init__(self, member: Member, run: RunFolder) -> None:
        self._member = member
        self._run = run
        self._queue: deque[tuple[int, float, dict[str, float]]] = deque(maxlen=_QUEUE_MAX)
        self._stopping = threading.Event()
        self._merged = threading.Condition()
        self._merged_step = -1
        self._logged_step = -1
        member.on_metrics = self._on_metrics
        self._thread = threading.Thread(target=self._send_all, name="windlass-log")
        self._thread.start()

    def put(self, step: int, scalars: dict[str, float]) -> None:
        """Queue the scalars of a step."""
        self._logged_step = max(self._logged_step, step)
        self._queue.append((step, time.time(), {name: float(value) for name, value in scalars.items()}))

    def close(self) -> None:
        """Send what is queued; rank 0 waits a little for the last merged values."""
        self._stopping.set()
        self._thread.join()
        if self._run.main:
            with self._merged:
                self._merged.wait_for(lambda: self._merged_step >= self._logged_step, _LAST_WAIT_S)
        self._member.on_metrics = None

    def _send_all(self) -> None:
        from windlass_proto.gen import control_pb2 as pb

        while True:
            stopping = self._stopping.wait(_SEND_S)
            records = []
            while self._queue:
                step, unix_s, scalars = self._queue.popleft()
                named = [pb.Scalar(name=name, value=value) for name, value in scalars.items()]
                records.append(pb.LogRecord(step=step, weight=1.0, scalars=named, unix_s=unix_s))
            if records:
                try:
                    self._member.control.log(pb.LogRequest(session=self._member.session, records=records))
                except WindlassError:
                    self._logged_step = self._merged_step  # nothing to wait for: the scheduler is away
            if stopping:
                return

    def _on_metrics(self, metrics: Any) -> None:
        with self._merged:
            for record in metrics.records:
                self._run.metric(record.step, record.unix_s, {s.name: s.value for s in record.scalars})
                self._merged_step = max(self._merged_step, record.step)
            self._merged.notify_all()
