"""Residuals: what a worker's encoders keep back of its gradients, in a checkpoint and back from it.

A codec with feedback owes the model what it has not sent yet. So that a resumed run goes on as one that was left alone,
every worker that takes part in a checkpoint writes what it owes to a file of its own, a copy made at the cut. Each says
to the scheduler what it wrote, and they meet; then the worker that writes the manifest lists the files with their
digests.

Invariant: the manifest is written after every residual that it names. Of what workers kept nothing is counted twice
and, while every worker took part, nothing is lost: a resumption with fewer workers adds what one kept that is not there
any more to what another keeps (`heir`).

Owner: a `Gathering` is its thread's, from the call on that makes it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from windlass import actions
from windlass_proto import storage, tensor_file
from windlass_proto.errors import CorruptionError, UnavailableError, WindlassError, from_wire_untrusted, to_wire

if TYPE_CHECKING:
    from windlass.row_residuals import RowResiduals
    from windlass.store import Store
    from windlass_proto.checkpoint_format import Manifest, Residual
    from windlass_proto.gen import control_pb2

Vector = npt.NDArray[np.float32]

# How long a checkpoint waits for workers that have not called it. Under bsp all are within one step of each other.
GATHER_S: Final = 10.0


class Gathering:
    """This worker's part in one checkpoint: what it keeps back now, and what the others say that they wrote.

    Args:
        folder: the checkpoint's.
        attempt: that of its parts.
        call: which call of `checkpoint` at this step it is.
    """

    def __init__(self, store: Store, folder: Path, attempt: str, call: int) -> None:
        self._store = store
        self._folder = folder
        self._attempt = attempt
        self._call = call
        self._step = store.clock
        self._rank: int = store.member.joined.rank
        self._ranks = sorted({member.rank for member in _roster(store).members} | {self._rank})
        self._arrays: dict[str, npt.NDArray[Any]] = {name: kept.copy() for name, kept in _kept(store)}
        self._arrays |= {name: kept.packed() for name, kept in _kept_of_rows(store)}

    def write(self) -> None:
        """Write this worker's file, say so, and meet the others; what goes wrong is for the manifest's writer.

        Raises:
            WindlassError: the scheduler does not answer.
        """
        from windlass_proto import checkpoint_format

        action = actions.ask(self._store, self._asking(self._rank), "a checkpoint")
        file = checkpoint_format.residual_name(self._rank, self._attempt)
        try:
            storage.make_folder(self._folder)
            written = tensor_file.write(self._folder / file, self._arrays)
            said = json.dumps({"file": file, "bytes": written.nbytes, "xxh3_128": written.digest})
        except WindlassError as error:
            said = json.dumps({"error": to_wire(error).decode()})
        self._arrays.clear()
        actions.agreed(self._store, action.action_id, said)
        self._meet(action.action_id)

    def collect(self) -> tuple[Residual, ...]:
        """What all have written, in the order of ranks, after `write`.

        Raises:
            WindlassError: a worker could not write its file.
        """
        found = [residual for rank in self._ranks if (residual := self._said_by(rank)) is not None]
        missing = set(self._ranks) - {residual.rank for residual in found}
        if missing:
            sys.stderr.write(
                f"windlass: the checkpoint {self._folder} lacks what workers {', '.join(map(str, sorted(missing)))} "
                "keep back under their codec: under a codec with feedback every worker calls checkpoint\n"
            )
        return tuple(found)

    def _said_by(self, rank: int) -> Residual | None:
        from windlass_proto import checkpoint_format

        file = checkpoint_format.residual_name(rank, self._attempt)
        if not (self._folder / file).is_file():
            return None
        reply = actions.ask(self._store, self._asking(rank), "a checkpoint")
        if reply.granted:  # it ended before it could say what it wrote
            actions.agreed(self._store, reply.action_id)
        if reply.granted or not reply.result:
            return None
        record = json.loads(reply.result)
        if "error" in record:
            raise from_wire_untrusted(record["error"].encode())
        return checkpoint_format.residual_untrusted(record | {"rank": rank})

    def _asking(self, rank: int) -> control_pb2.AgreeRequest:
        key = f"call {self._call}, {self._attempt}, worker {rank}"
        text = f"what worker {rank} keeps back"
        return actions.asking(self._store, "residual", key, actions.digest_of_text(key), text, step=self._step)

    def _meet(self, call: int) -> None:
        """Wait until every worker of the job has written its file, or for `GATHER_S`; `call` is above those before."""
        from windlass_proto.gen import control_pb2 as pb

        member = self._store.member
        name = f"windlass residuals of {self._store.name}"
        asking = pb.BarrierRequest(session=member.session, job=self._store.job, name=name, call=call)
        with contextlib.suppress(UnavailableError):
            member.control.barrier(asking, timeout_s=GATHER_S)


def gathering(store: Store, folder: Path, attempt: str, call: int) -> Gathering | None:
    """This worker's part in a checkpoint, if it keeps anything back."""
    return Gathering(store, folder, attempt, call) if _keeps(store) else None


def heir(rank: int, workers: int) -> int:
    """Which of `workers` workers goes on with what worker `rank` kept back."""
    return rank % workers


def check(folder: Path, manifest: Manifest) -> None:
    """Are the files that a manifest names there, in full length?

    Raises:
        CorruptionError: one is not.
    """
    for residual in manifest.residuals:
        with storage.opened_untrusted(folder / residual.file) as file:
            if storage.length_of(file) != residual.nbytes:
                raise CorruptionError(
                    "a file of a checkpoint has another length",
                    file=folder / residual.file,
                    bytes=storage.length_of(file),
                    expected=residual.nbytes,
                )


def bring_back(store: Store, folder: Path, manifest: Manifest, *, clock: int) -> None:
    """Keep back what the checkpoint says; nothing, if steps were made since it was brought back at `clock`.

    Raises:
        CorruptionError: a file is not what was written.
    """
    kept, rows = dict(_kept(store)), dict(_kept_of_rows(store))
    for array in kept.values():
        array.fill(0)
    for table in rows.values():
        table.clear()
    if not (kept or rows) or store.clock != clock:
        return
    workers, rank = max(1, _roster(store).declared), store.member.joined.rank
    mine = [residual for residual in manifest.residuals if heir(residual.rank, workers) == rank]
    for number, residual in enumerate(mine):
        for name, saved in _read_untrusted(folder / residual.file, residual).items():
            if name in rows and saved.dtype == np.uint8:
                _bring_back_rows(rows[name], saved, folder / residual.file, first=not number)
            if name not in kept or kept[name].shape != saved.shape or saved.dtype != np.float32:
                continue
            if number:
                kept[name] += saved
            else:
                np.copyto(kept[name], saved)  # to add it to zeros would change the sign of -0


def _bring_back_rows(table: RowResiduals, saved: npt.NDArray[np.uint8], file: Path, *, first: bool) -> None:
    try:
        (table.unpack if first else table.add)(saved)
    except ValueError as cause:
        raise CorruptionError("what was kept back of a table's rows cannot be read", file=file, reason=cause) from cause


def _read_untrusted(path: Path, residual: Residual) -> dict[str, npt.NDArray[Any]]:
    digest = tensor_file.digest_of(path, residual.nbytes)
    if digest != residual.digest:
        raise CorruptionError(
            "a file of a checkpoint is not what was written", file=path, digest=digest, expected=residual.digest
        )
    return tensor_file.load(path)


def _keeps(store: Store) -> bool:
    keeps = any(encoder.error is not None for encoder in store.exchange.encoders.values())
    return keeps or any(True for _ in _kept_of_rows(store))


def _kept(store: Store) -> Iterator[tuple[str, Vector]]:
    """What is kept back now, by tensor, as this worker goes on with it."""
    exchange = store.exchange
    for name, (table_id, number) in exchange.where.items():
        encoder = exchange.encoders.get(table_id)
        if encoder is not None and encoder.error is not None:
            layout = encoder.table.layout
            yield name, layout.views(encoder.error)[layout.tensors[number].name]


def _kept_of_rows(store: Store) -> Iterator[tuple[str, RowResiduals]]:
    """The same of tables, whose names no tensor has."""
    for table in store.exchange.sparse.values():
        if table.encoder is not None and table.encoder.residuals is not None:
            yield table.name, table.encoder.residuals


def _roster(store: Store) -> control_pb2.Roster:
    return store.member.rosters[store.store_id]
