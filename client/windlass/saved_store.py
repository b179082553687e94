"""The files of a store: its checkpoints, and its weights as a plain file. Every `Store` is one."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from windlass import checkpoints, plain_files

if TYPE_CHECKING:
    from windlass.store import Store


class SavedStore:
    """See the module."""

    _lock: threading.RLock

    def __init__(self, run_dir: Path | None) -> None:
        self.run_dir = run_dir
        self.saving: checkpoints.Saving | None = None
        self._resume: checkpoints.Resume | None = None

    @property
    def _store(self) -> Store:
        return cast("Store", self)

    def checkpoint(
        self,
        uri: str | Path | None = None,
        state: Mapping[str, Any] | None = None,
        *,
        keep_last: int | None = None,
        full_every: int = 1,
    ) -> checkpoints.Saving:
        """Save tensors, tables, slots and data positions as of the steps closed so far. Training goes on meanwhile.

        The call returns when every server has copied what it holds; the parts are then written, and the folder
        counts as a checkpoint once its manifest is there. `result()` of what it returns waits for that; else the
        next checkpoint and `close` do. Call it on every worker at the same step, or on one; it is one action.

        Args:
            uri: the folder that holds the run's checkpoints, a path or a URL of fsspec that every server and worker
                reaches. Default `<run_dir>/checkpoints`.
            state: JSON that `resume` gives back, equal on every worker.
            keep_last: remove older checkpoints, so that this many complete ones are left, and the one that the run
                was resumed from, with what these build on.
            full_every: of so many checkpoints one is full; the others hold what changed since the one before them.

        Raises:
            UsageError: the place is not supported, this step has pushes, or workers call it differently.
        """
        root = checkpoints.place_of(self._store, uri)
        with self._lock:
            self._store.check_between_steps("checkpoint")
            checkpoints.check_holdable(self._store, "checkpoint")
            checkpoints.settle(self._store)
            self.saving = checkpoints.save(self._store, root, state, keep_last, full_every)
            return self.saving

    def restore(self, uri: str | Path) -> checkpoints.Resume:
        """Bring back a checkpoint, or the newest complete one in a folder, once the steps before this one are complete.

        Weights, slots and update counts are what they were, on any number of servers; the arrays that `init`
        returned hold them. Every declared tensor and table must be in it as declared. Call it on every worker.

        Raises:
            UsageError: there is none, or it holds other tensors or another rule's slots.
            CorruptionError: its manifest or a part is not what was written; nothing was restored.
        """
        place = checkpoints.place_of(self._store, uri)
        with self._lock:
            self._store.check_between_steps("restore")
            checkpoints.check_holdable(self._store, "restore")
            return checkpoints.restore(self._store, place)

    def resume(self, uri: str | Path | None = None) -> checkpoints.Resume | None:
        """Go on where an earlier run was: restore the newest complete checkpoint in a folder, or the one named.

        Call it after `init` and before the first step, on every worker. It happens once in a store's life: a worker
        that joins later, or a cell run twice, gets the same answer and live values. `cluster.batches` goes on after
        the rows that were read.

        Args:
            uri: as given to `checkpoint`.

        Returns:
            Steps, epoch and state of the checkpoint, None if the folder holds none.
        """
        place = checkpoints.place_of(self._store, uri)
        with self._lock:
            self._store.check_between_steps("resume")
            checkpoints.check_holdable(self._store, "resume")
            if self._resume is None:
                self._resume = checkpoints.resume(self._store, place)
            return self._resume

    def export(self, path: str | Path) -> None:
        """Write present weights to one safetensors file, which `wl.load_tensors` and other programs read.

        A sparse table makes two arrays, `<name>.ids`, sorted, and `<name>.rows`.
        """
        plain_files.export(self._store, path)
