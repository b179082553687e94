"""The cluster that `windlass up` started for this user, as a file that others of the user's processes find.

Invariant: a record is believed only while its owner lives. The owner holds a lock (`flock`) on a file beside
the record for as long as it runs, and the kernel gives it back however the owner ends; a reader that gets the
lock knows that the record is stale and removes it. So a reused process id deceives nobody, and two `up` of
one name cannot both succeed.

The folder is `$XDG_STATE_HOME/windlass`, else `~/.local/state/windlass`, else one under the temporary folder that
belongs to this user alone. Files have mode 0600. Owner: the process that holds the lock.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import re
import socket
import stat
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from windlass_proto.errors import UnavailableError, UsageError

DEFAULT_NAME: Final = "default"
_ANSWER_S: Final = 1.0
_READERS_S: Final = 0.2
_RECORD_BYTES_MAX: Final = 64 * 1024
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class RecordedCluster:
    """Where a cluster of this user is and which process to signal to end it."""

    name: str
    address: str
    cluster_id: str
    token_file: Path
    pid: int
    run_dir: Path
    servers: int

    def to_json(self) -> str:
        fields = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}
        return json.dumps(fields)


class Claim:
    """The right to be the cluster `name` of this user, held until `release` or the end of the process.

    Raises:
        UnavailableError: if another process holds it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._fd = os.open(_path(name, ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + _READERS_S
        while not _locked(self._fd):
            if time.monotonic() < deadline:  # a reader looks at the lock for a moment
                time.sleep(_READERS_S / 10)
                continue
            os.close(self._fd)
            running = read(name)
            raise UnavailableError(
                "a cluster of this user is running" if running else "a cluster of this user is starting",
                name=name,
                address=running.address if running else "not yet known",
                next_move="`windlass down` ends it; `windlass up --name NAME` starts another beside it.",
            )

    def record(self, record: RecordedCluster) -> None:
        """Make the cluster known; seen whole or not at all."""
        path = _path(self._name, ".json")
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            file.write(record.to_json())
        os.replace(file.name, path)

    def release(self) -> None:
        _path(self._name, ".json").unlink(missing_ok=True)
        os.close(self._fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def find(name: str = DEFAULT_NAME) -> RecordedCluster | None:
    """The cluster recorded under `name`, if its owner lives and its scheduler accepts connections."""
    record = read(name)
    return record if record is not None and _accepts(record.address) else None


def read(name: str = DEFAULT_NAME) -> RecordedCluster | None:
    """The cluster recorded under `name`, if its owner lives; what a dead owner left is removed."""
    path = _path(name, ".json")
    try:
        raw = path.read_bytes()
    except OSError:
        return None
    if not is_claimed(name):
        return None
    return from_json_untrusted(raw)


def names() -> list[str]:
    """Names under which this user has records, live or not."""
    return sorted(path.name.removeprefix("cluster-").removesuffix(".json") for path in folder().glob("cluster-*.json"))


def is_claimed(name: str) -> bool:
    """Whether a process holds the claim to `name`; if none does, its record is removed."""
    try:
        fd = os.open(_path(name, ".lock"), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _path(name, ".json").unlink(missing_ok=True)  # under the lock: no new owner's record is taken for it
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def folder() -> Path:
    """Where records and the runs of `up` lie; made if needed.

    Raises:
        UnavailableError: if no place is both writable and this user's alone.
    """
    candidates = []
    configured = os.environ.get("XDG_STATE_HOME", "")
    if Path(configured).is_absolute():
        candidates.append(Path(configured) / "windlass")
    home = os.path.expanduser("~")
    if Path(home).is_absolute():
        candidates.append(Path(home) / ".local" / "state" / "windlass")
    candidates.append(Path(tempfile.gettempdir()) / f"windlass-state-{os.geteuid()}")
    for candidate in candidates:
        if _is_private_and_writable(candidate):
            return candidate
    raise UnavailableError(
        "no folder for the record of a cluster is both writable and private",
        tried=", ".join(map(str, candidates)),
        next_move="Set XDG_STATE_HOME to one that is.",
    )


def _is_private_and_writable(candidate: Path) -> bool:
    try:
        candidate.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = os.lstat(candidate)
    except OSError:
        return False
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022
    return ours and os.access(candidate, os.W_OK | os.X_OK)


def _path(name: str, suffix: str) -> Path:
    if not _NAME.fullmatch(name):
        raise UsageError(
            "this is no name for a cluster",
            name=repr(name[:80]),
            next_move="Use up to 64 letters, digits, dots, dashes and underscores.",
        )
    return folder() / f"cluster-{name}{suffix}"


def from_json_untrusted(raw: bytes) -> RecordedCluster | None:
    """Read what `RecordedCluster.to_json` wrote; None for anything else."""
    if len(raw) > _RECORD_BYTES_MAX:
        return None
    try:
        fields = json.loads(raw)
        return RecordedCluster(
            name=str(fields["name"]),
            address=str(fields["address"]),
            cluster_id=str(fields["cluster_id"]),
            token_file=Path(fields["token_file"]),
            pid=int(fields["pid"]),
            run_dir=Path(fields["run_dir"]),
            servers=int(fields["servers"]),
        )
    except (ValueError, KeyError, TypeError):
        return None


def _accepts(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, ValueError):
        return False
    return True
