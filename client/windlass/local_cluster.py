"""A cluster on this machine: one scheduler and its servers as child processes, and the folder they share.

Invariant: what is started here ends with the process that started it, however that ends. Two kinds of pipe
see to it. A *leash* a child: only the owner holds its write end; the child reads the other (`--parent-fd`) and
stops at its end-of-file. The *presence* pipe: the owner and every child hold its write end; a shell (`Sweeper`)
reads the other and removes the cluster's private folder (token, sockets, state) when the last of them is gone.
So an orderly stop and SIGKILL of the owner leave the same: nothing.

Children are started by `python -P -m` with what this process can import, so that a checkout, a `--target`
folder and a virtual environment work alike; their output goes to `<run_dir>/logs/<role>-<n>.log`.

Owner: the thread that called `start`. `stop` may be called by any thread, and more than once.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import select
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from windlass_proto.errors import UnavailableError, UsageError
from windlass_proto.keys import VSHARDS_DEFAULT
from windlass_proto.limits import UNIX_PATH_BYTES_MAX

READY_S: Final = 60.0  # compiling every kernel on a slow machine takes 20
STOP_S: Final = 5.0  # after SIGTERM; what is still there then gets SIGKILL
_READY_LINE_BYTES_MAX: Final = 4096
_LOG_TAIL_LINES: Final = 8
_LOG_TAIL_BYTES: Final = 16 * 1024
_SOCKET_NAME_BYTES_MAX: Final = len("/server-1023.sock") + 8
_TOKEN_BYTES: Final = 32

SERVER_DEVICES: Final = "WINDLASS_SERVER_DEVICES"
_PACKAGES: Final = ("windlass_proto", "windlass_scheduler", "windlass_server", "windlass_rules")
# What a launcher hands a worker is not for the processes that the worker talks to.
LAUNCHER_VARIABLES: Final = (
    "WINDLASS_SCHEDULER",
    "WINDLASS_JOB",
    "WINDLASS_WORKERS",
    "WINDLASS_RANK",
    "WINDLASS_TOKEN_FILE",
    "WINDLASS_RUN_DIR",
)
_WILDCARDS: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}  # noqa: S104 - compared with, not bound
KEEP_JOB_S: Final = 600.0
"""A restart, a resumed run or the next cell of a notebook comes sooner; memory is given back after it."""

_SWEEP: Final = 'trap "" HUP INT TERM; while read -r _; do :; done; rm -rf -- "$1"'


def child_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment in which a child Python imports the same windlass as this process.

    Folders that hold our packages and that no interpreter would look in by itself come first in PYTHONPATH;
    what the user had there follows. The folder of the user's script is left out: a `queue.py` beside it is
    the script's affair.
    """
    found = dict(os.environ if environ is None else environ)
    for name in (*LAUNCHER_VARIABLES, "PYTHONINSPECT", "PYTHONSTARTUP"):
        found.pop(name, None)
    known = {sysconfig.get_path(name) for name in ("purelib", "platlib")} | {site.getusersitepackages()}
    roots = [root for root in _package_roots() if root not in known]
    inherited = [entry for entry in found.get("PYTHONPATH", "").split(os.pathsep) if entry]
    path = dict.fromkeys([*roots, *map(os.path.abspath, inherited)])
    if path:
        found["PYTHONPATH"] = os.pathsep.join(path)
    return found


def _package_roots() -> list[str]:
    roots = [str(Path(__file__).resolve().parents[1])]
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise UnavailableError(
                "a part of windlass is not installed where this process imports from",
                package=name,
                next_move="Install the whole distribution: pip install windlass.",
            )
        roots.append(str(Path(spec.origin).resolve().parents[1]))
    return list(dict.fromkeys(roots))


class Sweeper:
    """A shell that removes `folder` when every holder of `presence_fd` is gone, orderly or not."""

    def __init__(self, folder: Path) -> None:
        read_fd, self.presence_fd = os.pipe()
        try:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _SWEEP, "windlass-sweeper", str(folder)],
                stdin=read_fd,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # Ctrl-C at the terminal is not for it
            )
        except BaseException:
            os.close(self.presence_fd)
            raise
        finally:
            os.close(read_fd)
        _OURS_ALONE.add(self.presence_fd)

    def join(self, wait_s: float = STOP_S) -> None:
        """Give up our presence and wait until the folder is gone; to be called when all children are."""
        _OURS_ALONE.discard(self.presence_fd)
        os.close(self.presence_fd)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._shell.wait(wait_s)
            return
        self._shell.kill()  # a process of somebody else's holds our pipe: the folder stays with it
        self._shell.wait()


@dataclass(slots=True)
class _Child:
    """One role: its process, its log, and the pipe on which it says that it serves."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    ready_fd: int
    leash_fd: int
    said: bytes = b""

    def await_ready(self, deadline_s: float) -> dict[str, Any]:
        """The fields of the ready line.

        Raises:
            UnavailableError: if the process ended first, or `deadline_s` (of the monotonic clock) has passed.
        """
        while b"\n" not in self.said:
            left_s = max(0.0, deadline_s - time.monotonic())
            if not select.select([self.ready_fd], [], [], left_s)[0]:
                raise self._unavailable("was not ready in time")
            received = os.read(self.ready_fd, _READY_LINE_BYTES_MAX)
            if not received or len(self.said) > _READY_LINE_BYTES_MAX:
                raise self.failure()
            self.said += received
        fields: dict[str, Any] = json.loads(self.said.split(b"\n", 1)[0])
        return fields

    def failure(self) -> UnavailableError:
        """Why the process ended, in its own last words."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_S)
        return self._unavailable("ended")

    def _unavailable(self, what: str) -> UnavailableError:
        return UnavailableError(
            f"{self.name} {what}",
            status=self.process.poll(),
            said=log_tail(self.log) or "nothing",
            next_move=f"All it said is in {self.log}",
        )


def log_tail(path: Path, lines: int = _LOG_TAIL_LINES) -> str:
    """The last lines of a log file, empty if there are none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.strip().splitlines()[-lines:])


@dataclass(slots=True)
class LocalCluster:
    """A scheduler and `servers` servers that serve. Made by `LocalCluster.start`; a context that stops them.

    `address` is the scheduler's as this host reaches it; the token in `token_file` (mode 0600, its folder 0700)
    opens it.
    """

    run_dir: Path
    folder: Path
    servers: int
    address: str = ""
    cluster_id: str = ""
    _sweeper: Sweeper | None = None
    _children: list[_Child] = field(default_factory=list)
    _stopping: threading.Lock = field(default_factory=threading.Lock)
    _stopped: bool = False

    @classmethod
    def start(
        cls,
        *,
        servers: int = 2,
        run_dir: Path,
        state_dir: Path | None = None,
        listen: str = "127.0.0.1:0",
        vshards: int = VSHARDS_DEFAULT,
        insecure: bool = False,
        server_devices: str | None = None,
        allowed_rules: Sequence[str] = (),
        allowed_readers: Sequence[str] = (),
        keep_job_s: float = KEEP_JOB_S,
        job_quotas: Sequence[str] = (),
        ready_s: float = READY_S,
    ) -> LocalCluster:
        """Start the processes and return when all of them serve.

        Args:
            run_dir: logs go to its folder `logs`.
            state_dir: the scheduler's state, kept after the end; None: a private folder that goes with it.
            listen: where the scheduler is heard; port 0 takes a free one. Servers listen on the same host.
            server_devices: where each server in turn has its dense tensors, such as "gpu:0,gpu:1,memory"; None: as
                $WINDLASS_SERVER_DEVICES says, else in memory.
            allowed_rules: rules of installed packages that servers may run, each as NAME or NAME==VERSION.
            allowed_readers: readers of installed packages, likewise.
            keep_job_s: how long a job's tensors are kept after its last worker has gone.
            job_quotas: bytes of tensors a job may hold, each as SIZE for all or JOB=SIZE, such as "big=8GiB".
            ready_s: how long all of them together may take.

        Raises:
            UsageError: if `servers` is not positive.
            UnavailableError: if a process ended or was not ready in time; nothing of the cluster is left then.
        """
        if servers < 1:
            raise UsageError("a cluster needs at least one server", servers=servers)
        cluster = cls(run_dir=run_dir.resolve(), folder=private_folder(), servers=servers)
        try:
            cluster._open()
            flags = ["--insecure"] if insecure else []
            devices = (server_devices or os.environ.get(SERVER_DEVICES) or "memory").split(",")
            state = state_dir or cluster.folder / "state"
            jobs = ["--keep-job-s", str(keep_job_s)]
            jobs += [flag for quota in job_quotas for flag in ("--job-quota", quota)]
            allowed = [flag for rule in allowed_rules for flag in ("--allow-rule", rule)]
            allowed += [flag for reader in allowed_readers for flag in ("--allow-reader", reader)]
            cluster._start_all(listen, state, vshards, flags, devices, allowed, jobs, ready_s)
        except BaseException:
            cluster.stop()
            raise
        return cluster

    @property
    def token_file(self) -> Path:
        return self.folder / "token"

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name, "scheduler-0" first."""
        return {child.name: child.process.pid for child in self._children}

    def failure(self) -> UnavailableError | None:
        """The first child that has ended although nobody stopped it, with its last words."""
        ended = (child for child in self._children if child.process.poll() is not None)
        return next((child.failure() for child in ended), None)

    def stop(self, grace_s: float = STOP_S) -> None:
        """End every process, SIGKILL after `grace_s`, and remove the private folder. Joins all of them."""
        with self._stopping:
            if self._stopped:
                return
            self._stopped = True
            deadline = time.monotonic() + grace_s
            # Servers first, so that they can still tell the scheduler that they leave.
            for group in (self._children[1:], self._children[:1]):
                _end(group, deadline)
            self._close_pipes()
            if self._sweeper is not None:
                self._sweeper.join()

    def __enter__(self) -> LocalCluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _open(self) -> None:
        self._sweeper = Sweeper(self.folder)
        write_token(self.token_file)
        (self.folder / "sockets").mkdir(mode=0o700)
        try:
            (self.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:  # training does not need it
            said = f"{self.run_dir} cannot be made ({error.strerror}); the servers' logs go to {self.folder}"
            sys.stderr.write(f"windlass: {said} and end with them\n")
            self.run_dir = self.folder
            (self.run_dir / "logs").mkdir()

    def _start_all(
        self,
        listen: str,
        state_dir: Path,
        vshards: int,
        flags: Sequence[str],
        devices: Sequence[str],
        allowed: Sequence[str],
        jobs: Sequence[str],
        ready_s: float,
    ) -> None:
        deadline = time.monotonic() + ready_s
        environment = child_environment()
        shared = ["--token-file", str(self.token_file), *flags]
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        scheduler = ["--listen", listen, "--state", str(state_dir), "--servers", str(self.servers)]
        scheduler += ["--vshards", str(vshards), *jobs]
        child = self._spawn("windlass_scheduler", "scheduler-0", [*scheduler, *shared], environment)
        fields = child.await_ready(deadline)
        host, _, port = str(fields["address"]).rpartition(":")
        self.address = f"{_WILDCARDS.get(host, host)}:{port}"
        self.cluster_id = str(fields["cluster_id"])
        server = ["--scheduler", self.address, "--listen", f"{host}:0"]
        if host in _WILDCARDS:
            server += ["--advertise", socket.gethostname()]
        server += ["--socket-dir", str(self.folder / "sockets"), *shared]
        server += allowed
        for index in range(self.servers):
            name = f"server-{index}"
            device = devices[index % len(devices)].strip()
            self._spawn("windlass_server", name, [*server, "--name", name, "--device", device], environment)
        for child in self._children[1:]:
            child.await_ready(deadline)

    def _spawn(self, module: str, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> _Child:
        assert self._sweeper is not None
        read_fd, ready_fd = os.pipe()
        parent_fd, leash_fd = os.pipe()
        pipes = ["--parent-fd", str(parent_fd), "--ready-fd", str(ready_fd)]
        log = self.run_dir / "logs" / f"{name}.log"
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, *arguments, *pipes],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=environment,
                    pass_fds=(parent_fd, ready_fd, self._sweeper.presence_fd),
                    start_new_session=True,  # Ctrl-C at the terminal reaches the owner, who ends them in order
                )
        except BaseException:
            os.close(read_fd)
            os.close(leash_fd)
            raise
        finally:
            os.close(ready_fd)
            os.close(parent_fd)
        _OURS_ALONE.add(leash_fd)
        self._children.append(_Child(name, process, log, read_fd, leash_fd))
        return self._children[-1]

    def _close_pipes(self) -> None:
        for child in self._children:
            _OURS_ALONE.discard(child.leash_fd)
            os.close(child.leash_fd)
            os.close(child.ready_fd)


def _end(children: Sequence[_Child], deadline_s: float) -> None:
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(signal.SIGTERM)
    for child in children:
        try:
            child.process.wait(max(0.0, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def private_folder() -> Path:
    """A new folder of mode 0700 for a token and sockets: below `$XDG_RUNTIME_DIR/windlass`, else temporary.

    A Unix socket's path ends at 107 bytes, so a base that is too long is passed over, `/tmp` at last.
    """
    configured = os.environ.get("XDG_RUNTIME_DIR", "")
    bases = [Path(configured) / "windlass"] if Path(configured).is_absolute() else []
    for base in (*bases, Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - mkdtemp makes it private
        if len(os.fsencode(base)) + len("/windlass-12345678/sockets") + _SOCKET_NAME_BYTES_MAX > (UNIX_PATH_BYTES_MAX):
            continue
        with contextlib.suppress(OSError):
            base.mkdir(mode=0o700, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix="windlass-", dir=base))
    raise UnavailableError(
        "no folder is both writable and short enough for sockets",
        tried=", ".join(map(str, bases)) or tempfile.gettempdir(),
        next_move="Set XDG_RUNTIME_DIR to a short path that you can write to.",
    )


def write_token(path: Path) -> None:
    """Write a fresh secret, readable by this user alone, to a file that is not there yet."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(_TOKEN_BYTES))


# Write ends that a forked child must not keep open, or it would keep a cluster alive after its owner.
_OURS_ALONE: Final[set[int]] = set()


def _drop_in_fork() -> None:
    for fd in _OURS_ALONE:
        with contextlib.suppress(OSError):
            os.close(fd)
    _OURS_ALONE.clear()


os.register_at_fork(after_in_child=_drop_in_fork)
