"""What the scheduler must not forget: a small versioned key-value store in SQLite.

    folder/cluster.sqlite3    records(key, value: JSON, version), WAL, synchronous FULL, user_version 1
    folder/lock               held (flock) while a scheduler runs on the folder

A commit with full synchronisation costs about 4 ms, so one writer thread takes everything that waits and
commits it as one transaction: a change is durable when its future is done, in the order submitted. Heartbeats
and metrics are never in here.

Owner: the writer thread owns the connection; `submit` may be called from any thread.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias, cast

from windlass_proto.errors import ClosedError, CorruptionError, UnavailableError, UsageError
from windlass_scheduler.effects import Record

USER_VERSION: Final = 1
_BUSY_MAX: Final = 16_384
_GROUP_MAX: Final = 512


@dataclass(frozen=True, slots=True)
class Change:
    """Store `record` under `key` (None: the key goes); with `version`, only if the key has it (0: none)."""

    key: str
    record: Record | None
    version: int | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    key: str
    record: Record
    version: int


@dataclass(frozen=True, slots=True)
class _Job:
    changes: tuple[Change, ...]
    done: Future[bool]


Watcher: TypeAlias = Callable[[Sequence[str]], None]


class StateStore:
    """Open the store in `folder`, making it if it is not there. `close()` stops the writer and joins it.

    Raises:
        UsageError: if another scheduler runs on the folder, or a later release wrote it.
        UnavailableError: if the folder cannot be written.
        CorruptionError: if the file is not a store.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "cluster.sqlite3"
        self._lock_fd = _locked(folder)
        try:
            self._db = self._opened()
        except BaseException:
            os.close(self._lock_fd)
            raise
        self._db_lock = threading.Lock()
        self._jobs: queue.Queue[_Job | None] = queue.Queue(_BUSY_MAX)
        self._watchers: list[tuple[str, Watcher]] = []
        self._closed = False
        self._failed: BaseException | None = None
        self._writer = threading.Thread(target=self._write, name="windlass-state-writer")
        self._writer.start()

    def _opened(self) -> sqlite3.Connection:
        try:
            db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version > USER_VERSION:
                db.close()
                raise UsageError(
                    "the state was written by a later release",
                    path=self._path,
                    state_version=version,
                    this_release=USER_VERSION,
                    next_move="Start the release that wrote it, or another folder.",
                )
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute(
                "CREATE TABLE IF NOT EXISTS records "
                "(key TEXT PRIMARY KEY, value TEXT NOT NULL, version INTEGER NOT NULL)"
            )
            db.execute(f"PRAGMA user_version={USER_VERSION}")
        except sqlite3.DatabaseError as cause:
            if isinstance(cause, sqlite3.OperationalError):
                raise UnavailableError("the state cannot be opened", path=self._path, reason=str(cause)) from cause
            raise CorruptionError(
                "the state file is not a scheduler's",
                path=self._path,
                reason=str(cause),
                next_move="Start on another folder, or restore this one from a copy.",
            ) from cause
        return db

    # What is committed

    def get(self, key: str) -> Stored | None:
        with self._db_lock:
            row = self._db.execute("SELECT value, version FROM records WHERE key = ?", (key,)).fetchone()
        return None if row is None else Stored(key, cast("Record", json.loads(row[0])), row[1])

    def listed(self, prefix: str) -> list[Stored]:
        """Every record whose key starts with `prefix`, in key order."""
        with self._db_lock:
            rows = self._db.execute(
                "SELECT key, value, version FROM records WHERE substr(key, 1, ?) = ? ORDER BY key",
                (len(prefix), prefix),
            ).fetchall()
        return [Stored(key, cast("Record", json.loads(value)), version) for key, value, version in rows]

    # Writing

    def submit(self, changes: Sequence[Change]) -> Future[bool]:
        """Make `changes` durable, all or none; the future is False if a version did not match.

        Raises:
            ClosedError: after `close()`.
            UnavailableError: if an earlier write failed (a full disk): it is lost, so nothing may follow it.
        """
        if self._closed:
            raise ClosedError("the state store is closed", path=self._path)
        if self._failed is not None:
            raise UnavailableError("the state cannot be written", path=self._path, reason=str(self._failed))
        done: Future[bool] = Future()
        try:
            self._jobs.put_nowait(_Job(tuple(changes), done))
        except queue.Full:
            raise UnavailableError("too many changes wait for the disk", path=self._path, waiting=_BUSY_MAX) from None
        return done

    def compare_and_set(self, key: str, version: int, record: Record, timeout_s: float = 30.0) -> bool:
        """Store `record` if `key` has `version` (0: does not exist); whether it was stored."""
        return self.submit([Change(key, record, version)]).result(timeout_s)

    def watch(self, prefix: str, changed: Watcher) -> None:
        """Call `changed(keys)` in the writer thread after commits under `prefix`. A hint: read to know."""
        self._watchers.append((prefix, changed))

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        self._writer.join()
        self._db.close()
        os.close(self._lock_fd)

    # The writer thread

    def _write(self) -> None:
        while True:
            job = self._jobs.get()
            group: list[_Job] = []
            while job is not None and len(group) < _GROUP_MAX:
                group.append(job)
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            else:
                if job is not None:
                    group.append(job)
            if group:
                self._commit(group)
            if job is None:
                return

    def _commit(self, group: list[_Job]) -> None:
        try:
            if self._failed is not None:
                raise self._failed
            with self._db_lock:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    results = [self._apply(job) for job in group]
                    self._db.execute("COMMIT")
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
        except Exception as cause:  # noqa: BLE001 - the thread's root: the failure goes to those who wait
            self._failed = cause
            for job in group:
                error = UnavailableError("the state cannot be written", path=self._path, reason=str(cause))
                job.done.set_exception(error)
            return
        for job, result in zip(group, results, strict=True):
            job.done.set_result(result)
        self._hint([change.key for job, result in zip(group, results, strict=True) if result for change in job.changes])

    def _apply(self, job: _Job) -> bool:
        for change in job.changes:
            if change.version is not None:
                row = self._db.execute("SELECT version FROM records WHERE key = ?", (change.key,)).fetchone()
                if (row[0] if row else 0) != change.version:
                    return False
        for change in job.changes:
            if change.record is None:
                self._db.execute("DELETE FROM records WHERE key = ?", (change.key,))
            else:
                self._db.execute(
                    "INSERT INTO records VALUES (?, ?, 1) "
                    "ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = version + 1",
                    (change.key, json.dumps(change.record, separators=(",", ":"))),
                )
        return True

    def _hint(self, keys: list[str]) -> None:
        for prefix, changed in self._watchers:
            found = [key for key in keys if key.startswith(prefix)]
            if found:
                changed(found)


def _locked(folder: Path) -> int:
    """Make `folder` (0700) and hold its lock, so that two schedulers never write one state."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as cause:
        raise UnavailableError("the state folder cannot be used", path=folder, reason=cause.strerror) from cause
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as cause:
        os.close(fd)
        raise UsageError(
            "another scheduler runs on this state folder",
            path=folder,
            next_move="Stop it first, or give this one another --state folder.",
        ) from cause
    return fd
