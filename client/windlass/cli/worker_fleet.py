"""The workers of one `windlass run`: N processes of the user's script, their output line by line, their end.

Invariant: none outlives the launcher. Each leads a process group of its own, so that what it started ends with
it; a shell (`_GUARD`) learns every group on a pipe whose write end only the launcher holds, and ends the groups
if that pipe closes before the launcher said "done", as it does when the launcher is killed.

All output also goes, byte for byte, to `logs/worker-<rank>.log`. Owner: the launcher's main thread, which calls
`pump`; there is no other thread.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

_READ_BYTES: Final = 64 * 1024
_LINE_BYTES_MAX: Final = 64 * 1024
_AFTER_EXIT_S: Final = 0.5  # how long output is awaited of what a worker that has ended left running
_GUARD: Final = (
    'trap "" HUP INT TERM; groups=; while read -r word; do [ "$word" = done ] && exit 0; groups="$groups -$word";'
    ' done; [ -n "$groups" ] || exit 0; kill -s TERM -- $groups; sleep 2; kill -s KILL -- $groups'
)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a worker's output, without its end. `error`: it came on standard error."""

    rank: int
    text: str
    error: bool


@dataclass(slots=True)
class _Stream:
    """One of a worker's pipes and what has come of a line that is not complete."""

    worker: _Worker
    error: bool
    pending: bytes = b""

    def lines(self, received: bytes) -> list[Line]:
        """What is complete now; at the end of file (`received` empty) the rest."""
        self.pending += received
        complete = self.pending.split(b"\n")
        self.pending = b"" if not received else complete.pop()
        if len(self.pending) > _LINE_BYTES_MAX:
            complete.append(self.pending)
            self.pending = b""
        # A bar that redraws itself with carriage returns is shown as it was last.
        self.pending = self.pending.rpartition(b"\r")[2] or self.pending
        if not received and complete and not complete[-1]:
            complete.pop()
        return [Line(self.worker.rank, _shown(raw), self.error) for raw in complete]


def _shown(raw: bytes) -> str:
    return raw.removesuffix(b"\r").rpartition(b"\r")[2].decode(errors="replace")


@dataclass(slots=True)
class _Worker:
    rank: int
    process: subprocess.Popen[bytes]
    log: BinaryIO
    streams: int = 2
    ended_s: float = 0.0

    @property
    def status(self) -> int | None:
        """Exit status as a shell says it, 128 + n after signal n; None while it runs."""
        code = self.process.poll()
        if code is not None and not self.ended_s:
            self.ended_s = time.monotonic()
        return code if code is None or code >= 0 else 128 - code


@dataclass(slots=True)
class WorkerFleet:
    """Start one worker for each environment; a context that ends them all.

    Args:
        command: what each runs.
        environments: by rank.
        logs: folder of the log files.
        on_line: gets each line of output, from `pump`.
    """

    command: Sequence[str]
    environments: Sequence[Mapping[str, str]]
    logs: Path
    on_line: Callable[[Line], None]
    failed: tuple[int, int] | None = None  # rank and status of the first that failed
    _workers: list[_Worker] = field(default_factory=list)
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    _guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> WorkerFleet:
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "windlass-guard"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        try:
            for rank, environment in enumerate(self.environments):
                self._start(rank, environment)
        except BaseException:
            self.end(0.0)
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(0.0)
        self._close()

    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers]

    def running(self) -> list[int]:
        """Ranks that have not ended, or whose output has not."""
        return [worker.rank for worker in self._workers if worker.status is None or worker.streams]

    def pump(self, wait_s: float) -> None:
        """Pass on what the workers have written, waiting at most `wait_s` for it, and note who has ended."""
        for key, _ in self._selector.select(wait_s):
            self._read(key)
        for worker in self._workers:
            status = worker.status
            if status and self.failed is None:
                self.failed = (worker.rank, status)
            if status is not None and worker.streams:
                self._part(worker, time.monotonic() - worker.ended_s)

    def signal(self, number: int) -> None:
        """Send a signal to every worker that runs, and to what it has started."""
        for worker in self._workers:
            if worker.status is None:
                _signal_group(worker, number)

    def end(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after `grace_s`; returns when none runs and all output has been passed on."""
        self.signal(signal.SIGTERM if grace_s else signal.SIGKILL)
        deadline = time.monotonic() + grace_s
        while self.running():
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
            self.pump(0.05)
        for worker in self._workers:
            _signal_group(worker, signal.SIGKILL)

    def _start(self, rank: int, environment: Mapping[str, str]) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        log = (self.logs / f"worker-{rank}.log").open("wb", buffering=0)
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,  # the terminal is the launcher's
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                process_group=0,  # Ctrl-C reaches the launcher, which passes it on
            )
        except BaseException:
            log.close()
            raise
        worker = _Worker(rank, process, log)
        self._workers.append(worker)
        self._guard.stdin.write(f"{process.pid}\n".encode())
        self._guard.stdin.flush()
        for pipe, error in ((process.stdout, False), (process.stderr, True)):
            assert pipe is not None
            self._selector.register(pipe, selectors.EVENT_READ, _Stream(worker, error))

    def _read(self, key: selectors.SelectorKey) -> None:
        stream: _Stream = key.data
        received = os.read(key.fd, _READ_BYTES)
        if not received:
            self._selector.unregister(key.fileobj)
            stream.worker.streams -= 1
        stream.worker.log.write(received)
        for line in stream.lines(received):
            self.on_line(line)

    def _part(self, worker: _Worker, since_s: float) -> None:
        """A worker has ended and something still holds its output: end its group, then stop listening."""
        if since_s > _AFTER_EXIT_S:
            _signal_group(worker, signal.SIGKILL)
        if since_s > 2 * _AFTER_EXIT_S:  # it has left the group: a daemon on purpose
            for key in [k for k in self._selector.get_map().values() if k.data.worker is worker]:
                self._selector.unregister(key.fileobj)
                worker.streams -= 1

    def _close(self) -> None:
        assert self._guard is not None
        assert self._guard.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._guard.stdin.write(b"done\n")
            self._guard.stdin.close()
        self._guard.wait()
        self._selector.close()
        for worker in self._workers:
            worker.log.close()
            for pipe in (worker.process.stdout, worker.process.stderr):
                assert pipe is not None
                pipe.close()


def _signal_group(worker: _Worker, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, number)
