"""A user's shell for tests of the command line: folders of its own, real processes, and a look at what is left.

Everything started from one shell inherits a mark in its environment, so that what is left can be counted by
looking at every process of the machine, whoever its parent has become.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 30.0
_POLL_S = 0.02
_MARK = "WINDLASS_TEST_MARK"
_SOURCES = ("proto", "client", "server", "scheduler", "worker")


def wait_until(condition: Callable[[], Any], what: str, limit_s: float = DEADLINE_S) -> Any:
    """Look until `condition` is true and return it; fail after `limit_s` with `what`."""
    deadline = time.monotonic() + limit_s
    pause = threading.Event()
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        pause.wait(_POLL_S)
    return found


@dataclass(frozen=True, slots=True)
class Done:
    status: int
    out: str
    err: str


@dataclass(slots=True)
class Shell:
    """Runs `windlass` in `cwd`; a context that ends what a failed test left, and removes the folders."""

    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="wl")))  # short, for socket paths
    _mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    _open: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def cwd(self) -> Path:
        return self.home / "cwd"

    @property
    def runtime(self) -> Path:
        """Where private folders of clusters lie: empty when no cluster is there."""
        return self.home / "run" / "windlass"

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("WINDLASS_", "NO_COLOR"))}
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in _SOURCES),
            "XDG_STATE_HOME": str(self.home / "state"),
            "XDG_RUNTIME_DIR": str(self.home / "run"),
            _MARK: self._mark,
            **variables,
        }

    def __enter__(self) -> Shell:
        for folder in (self.cwd, self.home / "run"):
            folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._open:
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
        shutil.rmtree(self.home)

    def script(self, text: str, name: str = "script.py") -> str:
        (self.cwd / name).write_text(text, encoding="utf-8")
        return name

    def windlass(self, *arguments: str, **variables: str) -> Done:
        """Run a command to its end."""
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=DEADLINE_S)
        return Done(process.returncode, out, err)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "windlass", *arguments],
            cwd=self.cwd,
            env=self.environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._open.append(process)
        return process

    def up(self, *arguments: str) -> dict[str, Any]:
        """`windlass up --detach`; the record it prints."""
        done = self.windlass("up", "--detach", "--json", "--servers", "1", *arguments)
        assert done.status == 0, done.err
        record: dict[str, Any] = json.loads(done.out)
        return record

    def processes(self) -> list[int]:
        """Every process of the machine that was started from here and is not a zombie."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if f"{_MARK}={self._mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
        return found

    def await_nothing_left(self, address: str = "") -> None:
        """No process, no private folder, and nobody at `address`."""
        wait_until(lambda: not self.processes(), f"processes end, now {self.processes()}")
        wait_until(lambda: not self.private_folders(), f"folders go, now {self.private_folders()}")
        if address:
            assert not answers(address)

    def private_folders(self) -> list[Path]:
        return list(self.runtime.iterdir()) if self.runtime.is_dir() else []


def answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def line_with(process: subprocess.Popen[str], text: str) -> str:
    """Read the process's output up to the line that holds `text`."""
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return line
    raise AssertionError(f"ended with {process.wait()} before it said {text!r}")
