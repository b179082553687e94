"""Logged scalars on their way to the scheduler, and, merged over the workers, back to worker 0's run folder.

Invariant: `put` never blocks; what does not fit the queue is dropped, oldest first, and said at the end. What worker 0
logged and what never came back merged (the scheduler is away, another worker is far behind) is written as it was
logged, so its record has no holes.

Owner: `_lock` for the queue and what is outstanding; the thread `windlass-log` for what is being sent. It is a daemon,
because a program that never calls `close` ends at exit, when the interpreter has already joined the other threads.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from windlass.run_folder import RunFolder
from windlass_proto.errors import UnavailableError, UsageError, WindlassError

if TYPE_CHECKING:
    from windlass.member import Member

_SEND_S: Final = 0.25
_SEND_TIMEOUT_S: Final = 2.0
_LAST_WAIT_S: Final = 3.0
_QUEUE_MAX: Final = 8192  # 16 ms of a loop that logs every 2 us; the thread is woken when half of it is used
_RECORDS_A_CALL_MAX: Final = 1024  # the scheduler takes no more
_STEPS_REMEMBERED_MAX: Final = 4096  # as long as the scheduler gives out what follows a step


@dataclass(frozen=True, slots=True)
class Logged:
    """What one call of `cluster.log` said."""

    step: int
    unix_s: float
    weight: float
    scalars: dict[str, float]


class ScalarLog:
    """A queue and the thread that sends it.

    Args:
        run: gets what comes back merged, in worker 0.
    """

    def __init__(self, member: Member, run: RunFolder) -> None:
        self._member = member
        self._run = run
        self._queue: deque[Logged] = deque()
        self._unsent: deque[Logged] = deque()
        self._dropped = 0
        self._outstanding: dict[tuple[int, str], Logged] = {}
        self._merged_names: dict[int, set[str]] = {}
        self._lock = threading.Lock()
        self._merged = threading.Condition(self._lock)
        self._wake = threading.Event()
        self._stopping = False
        self._complained = False
        member.on_metrics = self._on_metrics
        self._thread = threading.Thread(target=self._send_until_closed, name="windlass-log", daemon=True)
        self._thread.start()

    def put(self, step: int, scalars: dict[str, Any], weight: float = 1.0) -> None:
        """Queue the scalars of a step; `weight` is this worker's in the mean over workers.

        Raises:
            UsageError: a value is not a number.
        """
        logged = Logged(step, time.time(), weight, {name: _number(name, value) for name, value in scalars.items()})
        with self._lock:
            self._queue.append(logged)
            if self._run.main:
                self._expect(logged)
            if len(self._queue) > _QUEUE_MAX:
                self._queue.popleft()
                self._dropped += 1
            crowded = len(self._queue) == _QUEUE_MAX // 2
        if crowded:
            self._wake.set()

    def close(self) -> None:
        """Send what is queued; worker 0 waits a little for the last merged values, and writes what did not come."""
        self._stopping = True
        self._wake.set()
        self._thread.join()
        if self._run.main:
            with self._merged:
                if not self._unsent:
                    self._merged.wait_for(lambda: not self._outstanding, _LAST_WAIT_S)
                self._member.on_metrics = None
                self._write_outstanding()
        self._member.on_metrics = None
        if self._dropped:
            sys.stderr.write(f"windlass: {self._dropped:,} logged records were dropped: they came faster than sent\n")

    # ---- the sending thread ------------------------------------------------------------------------------------------

    def _send_until_closed(self) -> None:
        while True:
            self._wake.wait(_SEND_S)
            self._wake.clear()
            stopping = self._stopping
            self._send()
            self._run.flush()
            if stopping:
                return

    def _send(self) -> None:
        """Send all that is queued; what the scheduler was not there to take stays for the next time."""
        with self._lock:
            self._unsent.extend(self._queue)
            self._queue.clear()
            while len(self._unsent) > _QUEUE_MAX:
                self._unsent.popleft()
                self._dropped += 1
        while self._unsent:
            chunk = list(itertools.islice(self._unsent, _RECORDS_A_CALL_MAX))
            try:
                self._member.control.log(self._request(chunk), timeout_s=_SEND_TIMEOUT_S)
            except UnavailableError:
                return
            except WindlassError as error:
                if not self._complained:
                    self._complained = True
                    sys.stderr.write(f"windlass: logged scalars were refused: {error}\n")
            for _ in chunk:
                self._unsent.popleft()

    def _request(self, chunk: list[Logged]) -> Any:
        from windlass_proto.gen import control_pb2 as pb

        records = [
            pb.LogRecord(
                step=logged.step,
                weight=logged.weight,
                scalars=[pb.Scalar(name=name, value=value) for name, value in logged.scalars.items()],
                unix_s=logged.unix_s,
            )
            for logged in chunk
        ]
        return pb.LogRequest(session=self._member.session, records=records)

    # ---- what comes back ---------------------------------------------------------------------------------------------

    def _expect(self, logged: Logged) -> None:
        given = self._merged_names.get(logged.step, ())
        for name in logged.scalars:
            if name not in given:
                self._outstanding[(logged.step, name)] = logged
        while len(self._outstanding) > _QUEUE_MAX:
            self._write_one(next(iter(self._outstanding)))

    def _on_metrics(self, metrics: Any) -> None:
        with self._merged:
            for record in metrics.records:
                scalars = {scalar.name: scalar.value for scalar in record.scalars}
                self._run.metric(record.step, record.unix_s, scalars)
                self._merged_names.setdefault(record.step, set()).update(scalars)
                for name in scalars:
                    self._outstanding.pop((record.step, name), None)
            while len(self._merged_names) > _STEPS_REMEMBERED_MAX:
                del self._merged_names[next(iter(self._merged_names))]
            self._merged.notify_all()

    def _write_outstanding(self) -> None:
        while self._outstanding:
            self._write_one(next(iter(self._outstanding)))

    def _write_one(self, first: tuple[int, str]) -> None:
        """Write what is outstanding of one call, as this worker logged it."""
        logged = self._outstanding[first]
        names = [name for name in logged.scalars if self._outstanding.get((logged.step, name)) is logged]
        for name in names:
            del self._outstanding[(logged.step, name)]
        self._run.metric(logged.step, logged.unix_s, {name: logged.scalars[name] for name in names})


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as cause:
        raise UsageError(
            "a logged value is not a number",
            name=name,
            type=type(value).__name__,
            next_move="Log a Python number or an array of one element.",
        ) from cause
