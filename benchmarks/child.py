"""A child process that ends with the bench, whatever ends the bench.

Each child gets SIGKILL from the kernel when this process dies (Linux), is asked to end by closing its
standard input, and is waited for with a deadline; then its whole tree is looked at again, and what is left
is killed by id. Output goes to a log file of its own, whose last line explains a failure.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.isolation import inherited
from benchmarks.processor_time import tree

REPOSITORY = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
CLOSE_S = 8.0
_prctl = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


class NotMeasuredError(Exception):
    """A contender that could not be measured; the text is the reason the table prints."""


class Child:
    """A process with a line to it and a line back. Owned by the thread that made it."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        *,
        ends_with_input: bool = True,
    ) -> None:
        self.name = name
        self._ends_with_input = ends_with_input
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log_from_byte = log.stat().st_size if log.exists() else 0
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                list(argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**inherited(), **_paths(), **(env or {})},
                cwd=REPOSITORY,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 - the bench has one thread
                pass_fds=tuple(pass_fds),
            )
        self._pending = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, request: Mapping[str, Any]) -> None:
        """Write one request; the answer is taken by `reply`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise NotMeasuredError(self._epitaph()) from error

    def reply(self, limit_s: float) -> dict[str, Any]:
        """The next JSON line. Raises NotMeasuredError when it is late or never comes."""
        fields: dict[str, Any] = json.loads(self.line(limit_s))
        return fields

    def line(self, limit_s: float) -> str:
        """The next line of the child's output."""
        deadline = time.monotonic() + limit_s
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        while b"\n" not in self._pending:
            if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise NotMeasuredError(f"{self.name} gave no answer within {limit_s:.0f} s")
            received = os.read(fd, 1 << 16)
            if not received:
                raise NotMeasuredError(self._epitaph())
            self._pending += received
        line, self._pending = self._pending.split(b"\n", 1)
        return line.decode()

    def wait(self, limit_s: float) -> int | None:
        """The exit status, or None when the child is still running after `limit_s`."""
        try:
            return self._process.wait(limit_s)
        except subprocess.TimeoutExpired:
            return None

    def interrupt(self) -> None:
        """What Ctrl-C sends."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)

    def close(self) -> None:
        """End the child and everything under it."""
        below = tree([self.pid])
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        if not self._ends_with_input or self.wait(CLOSE_S) is None:
            self._process.terminate()
            if self.wait(CLOSE_S) is None:
                self._process.kill()
                self._process.wait()
        self._process.stdout.close()
        _kill_remaining([pid for pid in below if pid != self.pid])

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self.close()

    def _epitaph(self) -> str:
        status = self.wait(1.0)
        with self.log.open("rb") as log:
            log.seek(self._log_from_byte)
            lines = log.read().decode(errors="replace").strip().splitlines()
        return f"{self.name} ended with status {status}: {lines[-1] if lines else 'no message'}"


def _paths() -> dict[str, str]:
    """The search path of this process, so that children import the same checkout."""
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), *([inherited] if inherited else [])])}


def _end_with_parent() -> None:
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _kill_remaining(pids: Sequence[int]) -> None:
    """Give the grandchildren a moment to notice, then kill those that did not."""
    deadline = time.monotonic() + CLOSE_S / 4
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        select.select([], [], [], 0.02)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
