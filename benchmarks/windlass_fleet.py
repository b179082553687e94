"""Opens windlass: a private cluster for one worker, `windlass up` and the launcher's variables for several.

Both live in a folder of their own (`benchmarks.isolation`), so that a cluster the user has up is neither
found nor disturbed.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.child import REPOSITORY, Child, NotMeasuredError
from benchmarks.contender import LOGS, Fleet
from benchmarks.isolation import inherited, moved_into, own_folder

COMMAND_S = 60.0
POLL_S = 0.1


def open_windlass(link: str, consistency: str = "asp", workers: int = 1, servers: int = 1) -> Fleet:
    """`workers` processes on a cluster of `servers`, joined by `link` ("tcp", "unix", "shm")."""
    name = f"windlass {link}"
    argv = [sys.executable, "-m", "benchmarks.windlass_worker", "--consistency", consistency]
    log = LOGS / f"windlass-{link}.log"
    with ExitStack() as opened:
        folder = opened.enter_context(own_folder())
        environments = [{**_link_environment(link), **moved_into(folder)}]
        servants = []
        if workers == 1:
            argv += ["--servers", str(servers)]
        else:
            cluster = Cluster(servers, folder, log)
            opened.callback(cluster.close)
            servants.append(cluster.child)
            environments = [{**environments[0], **cluster.launch(rank, workers)} for rank in range(workers)]
        members = []
        for environment in environments:
            members.append(Child(name, argv, log, environment))
            opened.callback(members[-1].close)
        return Fleet(name, members, servants).take_over(opened)


class Cluster:
    """A local cluster that `windlass up` runs below this process, known only inside `folder`."""

    def __init__(self, servers: int, folder: Path, log: Path) -> None:
        self._folder = folder
        argv = [sys.executable, "-m", "windlass", "up", "--servers", str(servers)]
        self.child = Child("windlass up", argv, log, moved_into(folder), ends_with_input=False)
        try:
            self._variables = self._await_ready()
        except NotMeasuredError:
            self.close()
            raise

    def launch(self, rank: int, workers: int) -> dict[str, str]:
        """The variables that a launcher hands to worker `rank` of `workers`."""
        return {
            **self._variables,
            **moved_into(self._folder),
            "WINDLASS_JOB": "bench",
            "WINDLASS_WORKERS": str(workers),
            "WINDLASS_RANK": str(rank),
            "WINDLASS_RUN_DIR": str(self._folder / "run"),
        }

    def close(self) -> None:
        self.child.close()

    def _await_ready(self) -> dict[str, str]:
        """What `windlass env` prints, once it does."""
        command = [sys.executable, "-m", "windlass", "env"]
        deadline = time.monotonic() + COMMAND_S
        while time.monotonic() < deadline:
            done = subprocess.run(
                command,
                env={**inherited(), **moved_into(self._folder)},
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                timeout=COMMAND_S,
                check=False,
            )
            variables = assignments(done.stdout)
            if done.returncode == 0 and "WINDLASS_SCHEDULER" in variables:
                return variables
            status = self.child.wait(POLL_S)
            if status is not None:
                raise NotMeasuredError(f"`windlass up` ended with status {status}")
        raise NotMeasuredError(f"`windlass up` was not ready within {COMMAND_S:.0f} s")


def assignments(text: str) -> dict[str, str]:
    """`export NAME=value` lines as a dictionary, the value as a shell would read it."""
    words = [word for line in text.splitlines() for word in shlex.split(line) if "=" in word]
    return dict(word.split("=", 1) for word in words)


def _link_environment(link: str) -> dict[str, str]:
    return {"WINDLASS_LINK": link, "OPENBLAS_NUM_THREADS": "1"}
