"""Whatever is measured: it is prepared for a load, exchanges it so many times, and costs processor time.

Two kinds exist. A *floor* runs in this process (against an echo process); a *fleet* is worker processes of
one library that this process asks over pipes, with the servers they need. `Contender` is what the rounds see
of both.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from benchmarks.aligned import MemoryCopy
from benchmarks.child import REPOSITORY, Child, NotMeasuredError
from benchmarks.frame_echo import EchoClient, listen, warm_buffer
from benchmarks.load import Load, Timing
from benchmarks.processor_time import processor_seconds, processor_seconds_alone
from benchmarks.served import measure

LOGS = REPOSITORY / "build" / "bench" / "logs"
READY_S = 60.0
ANSWER_S = 120.0


class Contender(Protocol):
    name: str
    workers: int

    def prepare(self, load: Load) -> None: ...

    def measure(self, load: Load, count: int) -> Timing: ...

    def drop(self, load: Load) -> None: ...

    def processor_seconds(self) -> float: ...

    def close(self) -> None: ...


class EchoFloor:
    """The framed echo over one kind of socket: client here, server in a process of its own."""

    workers = 1

    def __init__(self, link: str) -> None:
        self.name = f"floor: framed echo {link}"
        self._buffers: dict[str, tuple[memoryview, memoryview]] = {}
        with ExitStack() as opened, tempfile.TemporaryDirectory(prefix="wlb") as folder:
            listener = opened.enter_context(listen(link, Path(folder)))
            argv = [sys.executable, "-m", "benchmarks.frame_echo", str(listener.fileno())]
            self._server = Child("echo", argv, LOGS / "echo.log", pass_fds=(listener.fileno(),))
            opened.callback(self._server.close)
            connection = opened.enter_context(socket.socket(listener.family))
            connection.connect(listener.getsockname())
            self._client = EchoClient(connection)
            listener.close()
            opened.pop_all()

    def prepare(self, load: Load) -> None:
        self._buffers[load.key] = (warm_buffer(load.payload_bytes), warm_buffer(load.payload_bytes))
        self.measure(load, 2)

    def measure(self, load: Load, count: int) -> Timing:
        sent, received = self._buffers[load.key]
        return measure(lambda: self._client.exchange(sent, received), count)

    def drop(self, load: Load) -> None:
        del self._buffers[load.key]

    def processor_seconds(self) -> float:
        return processor_seconds_alone([os.getpid(), self._server.pid])

    def close(self) -> None:
        self._client.close()
        self._server.close()


class CopyFloor:
    """memcpy there and back in this process: what shared memory cannot beat if it copies each byte."""

    name = "floor: memcpy"
    workers = 1

    def __init__(self) -> None:
        self._copies: dict[str, MemoryCopy] = {}

    def prepare(self, load: Load) -> None:
        self._copies[load.key] = MemoryCopy(load.payload_bytes)
        self.measure(load, 2)

    def measure(self, load: Load, count: int) -> Timing:
        return measure(self._copies[load.key].exchange, count)

    def drop(self, load: Load) -> None:
        del self._copies[load.key]

    def processor_seconds(self) -> float:
        return processor_seconds_alone([os.getpid()])

    def close(self) -> None:
        self._copies.clear()


class Fleet:
    """Worker processes of one library, asked together, and the processes they need."""

    def __init__(self, name: str, workers: Sequence[Child], servants: Sequence[Child] = ()) -> None:
        self.name = name
        self.workers = len(workers)
        self._workers = workers
        self._servants = servants
        self._opened = ExitStack()
        self._broken: NotMeasuredError | None = None

    def take_over(self, opened: ExitStack) -> Self:
        """Wait until every worker is connected; from then on `close` ends what `opened` holds."""
        for worker in self._workers:
            answer = worker.reply(READY_S)
            if "error" in answer:
                raise NotMeasuredError(f"{worker.name}: {answer['error']}")
        self._opened = opened.pop_all()
        return self

    def prepare(self, load: Load) -> None:
        self._ask({"ask": "prepare", "load": load.to_json()})
        self.measure(load, 3)

    def measure(self, load: Load, count: int) -> Timing:
        """All workers exchange `count` times at once; it lasts from the first start to the last end."""
        answers = self._ask({"ask": "measure", "key": load.key, "count": count})
        timings = [Timing.from_json(answer) for answer in answers]
        return Timing(
            min(timing.begin_s for timing in timings),
            max(timing.end_s for timing in timings),
            tuple(second for timing in timings for second in timing.seconds),
        )

    def drop(self, load: Load) -> None:
        self._ask({"ask": "drop", "key": load.key})

    def processor_seconds(self) -> float:
        return processor_seconds([child.pid for child in (*self._workers, *self._servants)])

    def close(self) -> None:
        self._opened.close()

    def _ask(self, request: dict[str, object]) -> list[dict[str, object]]:
        """Send to all, then take all answers, so that a refusal leaves no answer unread in a pipe."""
        if self._broken is not None:
            raise self._broken
        try:
            for worker in self._workers:
                worker.send(request)
            answers = [worker.reply(ANSWER_S) for worker in self._workers]
        except NotMeasuredError as error:
            self._broken = error
            raise
        for worker, answer in zip(self._workers, answers, strict=True):
            if "error" in answer:
                raise NotMeasuredError(f"{worker.name}: {answer['error']}")
        return answers


class View:
    """A fleet measured under another name with loads of its own: one set of processes, several rows."""

    def __init__(self, name: str, fleet: Contender, own: Callable[[Load], Load]) -> None:
        self.name = name
        self.workers = fleet.workers
        self._fleet = fleet
        self._own = own

    def prepare(self, load: Load) -> None:
        self._fleet.prepare(self._own(load))

    def measure(self, load: Load, count: int) -> Timing:
        return self._fleet.measure(self._own(load), count)

    def drop(self, load: Load) -> None:
        self._fleet.drop(self._own(load))

    def processor_seconds(self) -> float:
        return self._fleet.processor_seconds()

    def close(self) -> None:
        """The fleet is closed by its opener."""


class Field:
    """The contenders of one case, opened one after another; those that cannot be are kept with the reason."""

    def __init__(self) -> None:
        self.contenders: list[Contender] = []
        self.not_measured: dict[str, str] = {}
        self._opened = ExitStack()

    def enter(self, name: str, opener: Callable[[], Contender]) -> Contender | None:
        """Open a contender; None, and a reason in `not_measured`, when that fails."""
        try:
            contender = opener()
        except (NotMeasuredError, OSError) as error:
            self.not_measured[name] = str(error)
            return None
        self._opened.callback(contender.close)
        self.contenders.append(contender)
        return contender

    def replace(self, contender: Contender, views: Sequence[Contender]) -> None:
        at = self.contenders.index(contender)
        self.contenders[at : at + 1] = views

    def give_up(self, contender: Contender, reason: str) -> None:
        self.contenders.remove(contender)
        self.not_measured[contender.name] = reason

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._opened.close()
