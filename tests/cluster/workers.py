"""Worker scripts as processes: started with what a launcher hands a worker, read without threads, ended for certain.

    with LocalCluster.start(servers=2, run_dir=tmp_path) as cluster:
        with Workers(cluster, SCRIPT, count=2, run_dir=tmp_path) as workers:
            workers.await_text(0, "step 10")
            workers[1].process.kill()
            first, second = workers.finish()

Output is read in `await_text` and `finish`, from all workers at once, so that none blocks on a full pipe. Each worker
leads a process group, which `__exit__` kills. Owner: the test's thread.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from windlass.local_cluster import LocalCluster, child_environment

FINISH_S = 60.0
_READ_BYTES = 1 << 16


@dataclass(slots=True)
class Worker:
    """One process; `out` and `err` are what it has written so far."""

    rank: int
    process: subprocess.Popen[bytes]
    out: str = ""
    err: str = ""

    @property
    def status(self) -> int | None:
        """Exit status, -n after signal n, None while it runs."""
        return self.process.poll()

    def story(self) -> str:
        return f"worker {self.rank}, status {self.status}\n--- out\n{self.out}--- err\n{self.err}"


class Workers:
    """`count` processes of one script on a cluster.

    Args:
        script: a path, or the source of a program.
        arguments: of the script.
        job: the store's namespace; two `Workers` of one job and count never run at once.
        environ: what else each finds in its environment.
    """

    def __init__(
        self,
        cluster: LocalCluster,
        script: Path | str,
        *,
        count: int,
        run_dir: Path,
        arguments: Sequence[str] = (),
        job: str = "test",
        environ: Mapping[str, str] | None = None,
        finish_s: float = FINISH_S,
    ) -> None:
        program = [str(script)] if isinstance(script, Path) else ["-c", script]
        self._command = [sys.executable, "-W", "error", *program, *arguments]
        self._environ = launcher_environment(cluster, job=job, count=count, run_dir=run_dir) | dict(environ or {})
        self._count = count
        self._finish_s = finish_s
        self._selector = selectors.DefaultSelector()
        self._all: list[Worker] = []

    def __getitem__(self, rank: int) -> Worker:
        return self._all[rank]

    def __enter__(self) -> Workers:
        try:
            for rank in range(self._count):
                self.start(rank)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, KeyboardInterrupt):
            error.add_note("\n".join(worker.story() for worker in self._all))
        self._end()

    def start(self, rank: int, *, environ: Mapping[str, str] | None = None) -> Worker:
        """Start one more worker, for instance one that takes a dead one's rank."""
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environ | {"WINDLASS_RANK": str(rank)} | dict(environ or {}),
            start_new_session=True,
        )
        worker = Worker(rank, process)
        self._all.append(worker)
        for pipe, name in ((process.stdout, "out"), (process.stderr, "err")):
            assert pipe is not None
            self._selector.register(pipe, selectors.EVENT_READ, (worker, name))
        return worker

    def await_text(self, rank: int, text: str, timeout_s: float = FINISH_S) -> None:
        """Read until worker `rank` has written `text` on either stream; fails if it ends without."""
        worker = self._all[rank]
        deadline = time.monotonic() + timeout_s
        while text not in worker.out and text not in worker.err:
            if not self._read(deadline) or not self._reads(worker):
                raise AssertionError(f"worker {rank} never wrote {text!r}")

    def finish(self, *, check: bool = True) -> list[Worker]:
        """Wait until all have ended; `check`: with status 0. Returns them by start."""
        deadline = time.monotonic() + self._finish_s
        while self._selector.get_map():
            if not self._read(deadline):
                raise AssertionError(f"workers did not end within {self._finish_s} s")
        for worker in self._all:
            worker.process.wait(max(0.1, deadline - time.monotonic()))
        assert not check or all(worker.status == 0 for worker in self._all), "a worker failed"
        return list(self._all)

    def _reads(self, worker: Worker) -> bool:
        return any(key.data[0] is worker for key in self._selector.get_map().values())

    def _read(self, deadline: float) -> bool:
        """Take what has come; False if nothing came in time."""
        ready = self._selector.select(max(0.0, deadline - time.monotonic()))
        for key, _ in ready:
            worker, name = key.data
            received = os.read(key.fd, _READ_BYTES)
            if not received:
                self._selector.unregister(key.fileobj)
            setattr(worker, name, getattr(worker, name) + received.decode(errors="replace"))
        return bool(ready)

    def _end(self) -> None:
        for worker in self._all:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid, signal.SIGKILL)
            worker.process.wait()
            for pipe in (worker.process.stdout, worker.process.stderr):
                assert pipe is not None
                pipe.close()
        self._selector.close()


def launcher_environment(cluster: LocalCluster, *, job: str, count: int, run_dir: Path) -> dict[str, str]:
    """What a launcher hands a worker, without its rank; one BLAS thread each."""
    return child_environment() | {
        "WINDLASS_SCHEDULER": cluster.address,
        "WINDLASS_TOKEN_FILE": str(cluster.token_file),
        "WINDLASS_JOB": job,
        "WINDLASS_WORKERS": str(count),
        "WINDLASS_RUN_DIR": str(run_dir),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
