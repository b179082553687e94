"""Checkpoints as a worker makes and takes them: one cut over all servers, one manifest, one action however many ask.

A save is two actions of the store's step. In the first the granted worker has every server copy its blocks; under bsp
nobody can pass this step while it does, for it has not closed it. Then training goes on. In the second, in a thread of
its own, it waits for the parts to be on the disk, writes the manifest, and tells the others.

Invariant: the manifest is written after every part that it names. A restore is served by no server before all of them
have read and checked what they need. What one worker learns (the folder, an error) all learn, from the action's result.

Owner: the store, whose lock is held by the calls; a `Saving` is its thread's until that has ended.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import secrets
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from windlass import actions, live_changes, residuals, saved_rules, server_orders
from windlass._version import __version__
from windlass.ticket import Ticket
from windlass_proto import errors, storage
from windlass_proto.checkpoint_orders import Phase, Save, SavedPart, unpack_answer
from windlass_proto.errors import CorruptionError, InvariantError, UnavailableError, UsageError, WindlassError

if TYPE_CHECKING:
    from windlass.increments import Base
    from windlass.store import Store
    from windlass_proto.checkpoint_format import Manifest, Part, Residual
    from windlass_proto.gen import control_pb2

_STATE_SHOWN: Final = 200
_FIELD_SHOWN: Final = 250


@dataclass(frozen=True, slots=True)
class Resume:
    """Where a run goes on: steps closed before, the epoch then, and what was given to `checkpoint(state=)`."""

    step: int
    epoch: int
    state: dict[str, Any]


class Saving:
    """A checkpoint under way, as `store.checkpoint` returns it: everything is copied, and is being written.

    `path` is its folder, `step` its step.
    """

    def __init__(self, store: Store, path: Path, step: int) -> None:
        self.path = path
        self.step = step
        self._store = store
        self.seen = False  # was its end told to anybody?
        self._ended = False
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._gathering: residuals.Gathering | None = None
        self._asking: control_pb2.AgreeRequest | None = None

    def __repr__(self) -> str:
        return f"<windlass checkpoint of step {self.step}, {self.path}>"

    def result(self) -> Path:
        """Wait until it is whole on the disk; returns its folder. An error is raised at the next checkpoint otherwise.

        Raises:
            WindlassError: a part or the manifest could not be written.
        """
        if self._thread is not None:
            self._thread.join()
        if not self._ended and self._asking is not None:
            self._await_writer(self._asking)
        self.seen = True
        if self._error is not None:
            raise self._error
        return self.path

    @property
    def writes(self) -> bool:
        """Does this worker write the manifest, or what it keeps back?"""
        return self._thread is not None

    def end(self) -> None:
        """The connection is closed: the thread ends, if it has not."""
        if self._thread is not None:
            self._thread.join()

    # ---- the worker that carries it out ------------------------------------------------------------------------------

    def write(
        self, asking: control_pb2.AgreeRequest, written: Ticket, making: _Making, gathering: residuals.Gathering | None
    ) -> None:
        """Begin the thread that waits for the parts and writes the manifest."""
        action = actions.ask(self._store, asking, "a checkpoint")
        self._gathering = gathering
        self._thread = threading.Thread(target=self._write, args=(action.action_id, written, making), name="checkpoint")
        self._thread.start()

    def _write(self, action_id: int, written: Ticket, making: _Making) -> None:
        try:
            if self._gathering is not None:
                self._gathering.write()
            written.result()
            making.finish(self.path, self._gathering.collect() if self._gathering is not None else ())
        except Exception as error:  # noqa: BLE001 - a thread's root: `result` raises it
            self._error = error
        result = "" if self._error is None else _error_text(self._error)
        try:
            actions.agreed(self._store, action_id, result)
        except WindlassError as error:
            self._error = self._error or error

    # ---- the others --------------------------------------------------------------------------------------------------

    def wait_for_writer(self, asking: control_pb2.AgreeRequest, gathering: residuals.Gathering | None) -> None:
        """Another worker carries it out: `result` asks what came of it. This one writes what it keeps back."""
        self._asking = asking
        if gathering is not None:
            self._thread = threading.Thread(target=self._write_residual, args=(gathering,), name="residual")
            self._thread.start()

    def _write_residual(self, gathering: residuals.Gathering) -> None:
        with contextlib.suppress(WindlassError):  # the scheduler is away: then nobody hears of the checkpoint either
            gathering.write()

    def _await_writer(self, asking: control_pb2.AgreeRequest) -> None:
        from windlass_proto import checkpoint_format

        reply = actions.ask(self._store, asking, f"checkpoint of step {self.step}")
        result = reply.result
        if reply.granted:  # the writer has ended; perhaps it had done everything but say so
            try:
                checkpoint_format.read_manifest_untrusted(self.path)
            except CorruptionError as cause:
                lost = UnavailableError(
                    "the worker that wrote a checkpoint has ended before it was whole",
                    folder=self.path,
                    reason=cause.fact,
                    next_move="The checkpoints before it are as they were.",
                )
                result = _error_text(lost)
            actions.agreed(self._store, reply.action_id, result)
        self._ended = True
        self._error = _error_of(result)


class _Making:
    """What becomes a manifest: everything but the parts' lengths and digests is known when the copy is made."""

    def __init__(
        self, store: Store, root: Path, state: Mapping[str, Any], keep_last: int | None, full_every: int
    ) -> None:
        self.attempt = secrets.token_hex(4)
        self.key = secrets.token_hex(16)
        self.answers: dict[int, bytearray] = {}
        self._root = root
        self._keep_last = keep_last
        self._resumed_from = store.resumed_from
        self._blocks = _blocks_by_server(store)
        self._bands = _bands_by_server(store)
        self._manifest = _manifest(store, state)
        self._base = self._base_of(store, full_every) if full_every > 1 else None
        self.how = Save(self.attempt, self._base.attempt if self._base is not None else "", full_every > 1)

    def _base_of(self, store: Store, full_every: int) -> Base | None:
        from windlass_proto import checkpoint_format

        nothing = SavedPart(0, "", whole=True)
        coming = {server: self._part(server, nothing) for server in server_orders.places(store)[0]}
        folder = self._root / checkpoint_format.folder_name(self._manifest.step)
        from windlass import increments  # its format brings protobuf

        return increments.base_of(folder, self._manifest, coming, full_every)

    def finish(self, folder: Path, kept: tuple[Residual, ...]) -> None:
        """Write the manifest, then take away what is not part of it and what is too old."""
        from windlass_proto import checkpoint_folders, checkpoint_format

        written = [self._part(server, unpack_answer(answer)) for server, answer in sorted(self.answers.items())]
        chains = [self._base.followed_by(part) if self._base is not None else (part,) for part in written]
        parts = tuple(itertools.chain.from_iterable(chains))
        manifest = replace(self._manifest, parts=parts, residuals=kept)
        checkpoint_format.write_manifest(folder, manifest)
        with contextlib.suppress(OSError):  # what is left over costs room, not the checkpoint
            checkpoint_folders.sweep(folder, manifest)
            if self._keep_last is not None:
                checkpoint_folders.prune(self._root, folder, self._keep_last, keep=self._resumed_from)

    def _part(self, server: int, written: SavedPart) -> Part:
        from windlass_proto import checkpoint_format

        name = checkpoint_format.part_name(server, self.attempt)
        blocks, bands = self._blocks.get(server, ()), self._bands.get(server, ())
        return checkpoint_format.Part(name, written.nbytes, written.digest, blocks, bands, whole=written.whole)


# ---- saving ----------------------------------------------------------------------------------------------------------


def save(store: Store, root: Path, state: Mapping[str, Any] | None, keep_last: int | None, full_every: int) -> Saving:
    """Make a checkpoint of the store's present step below `root`; see `Store.checkpoint`."""
    from windlass_proto import checkpoint_format

    if keep_last is not None and keep_last < 1:
        raise UsageError("keep_last is not positive", keep_last=keep_last, next_move="The newest one always stays.")
    if full_every < 1:
        raise UsageError("full_every is not positive", full_every=full_every, next_move="1 makes every one full.")
    given = _as_json(state or {})
    step = store.steps_done
    saving = Saving(store, root / checkpoint_format.folder_name(step), step)
    call = actions.next_call(store, "checkpoint")
    said = json.dumps(given)
    text = f"{root}, keep_last={keep_last}, full_every={full_every}, state={said[:_STATE_SHOWN]}"
    digest = actions.digest_of_text(f"{root}\0{keep_last}\0{full_every}\0{said}")
    cut = actions.asking(store, "checkpoint", f"call {call}", digest, text)
    written = actions.asking(store, "checkpoint written", f"call {call}", digest, text)
    reply = actions.ask(store, cut, "a checkpoint")
    if not reply.granted:
        _raise(reply.result)
        told = json.loads(reply.result or "{}")  # a release before this one said nothing
        part = residuals.gathering(store, saving.path, told["attempt"], call) if "attempt" in told else None
        saving.wait_for_writer(written, part)
        return saving
    try:
        _check_folder(store, saving.path)
        making = _Making(store, root, given, keep_last, full_every)
        server_orders.send(store, Phase.COPY, making.key, saving.path, how=making.how).result()
    except WindlassError as error:
        actions.agreed(store, reply.action_id, _error_text(error))
        raise
    ticket = server_orders.send(store, Phase.WRITE, making.key, saving.path, how=making.how, answers=making.answers)
    saving.write(written, ticket, making, residuals.gathering(store, saving.path, making.attempt, call))
    actions.agreed(store, reply.action_id, json.dumps({"attempt": making.attempt}))
    return saving


def _check_folder(store: Store, folder: Path) -> None:
    """Two stores must not write over each other's checkpoints."""
    from windlass_proto import checkpoint_format

    try:
        there = checkpoint_format.read_manifest_untrusted(folder).store
    except CorruptionError:
        return
    if there != store.name:
        raise UsageError(
            "the folder of a checkpoint holds another store's",
            folder=folder,
            holds=there,
            store=store.name,
            next_move="Give each store a folder of its own: store.checkpoint(uri).",
        )


def _manifest(store: Store, state: Mapping[str, Any]) -> Manifest:
    """The manifest without its parts."""
    from windlass_proto import checkpoint_format
    from windlass_proto.checkpoint_format import Group
    from windlass_proto.group_specs import GroupSpec

    exchange, groups = store.exchange, []
    for table_id in sorted(exchange.tables):
        layout = exchange.tables[table_id].layout
        rule, mean = exchange.rules[table_id], exchange.means[table_id]
        spec = GroupSpec(store.store_id, layout, rule, mean, store.modes.declared)
        live = {name for name, place in exchange.where.items() if place[0] == table_id}
        gone = {tensor.name for tensor in layout.tensors} - live
        groups.append(Group(spec, frozenset(gone)))
    positions = store.member.positions.values()
    return checkpoint_format.Manifest(
        job=store.job,
        store=store.name,
        consistency=store.consistency,
        step=store.steps_done,
        epoch=max((epoch for _, epoch in positions), default=0),
        windlass=__version__,
        groups=tuple(groups),
        parts=(),
        positions=tuple(position for position, _ in positions),
        state=state,
        tables=tuple(table.spec for _, table in sorted(exchange.sparse.items())),
        live=saved_rules.saved(store),
    )


def _blocks_by_server(store: Store) -> dict[int, tuple[tuple[int, int], ...]]:
    held: dict[int, list[tuple[int, int]]] = {}
    for group, table_id in enumerate(sorted(store.exchange.tables)):
        for block in store.exchange.tables[table_id].layout.blocks:
            held.setdefault(store.member.server_of(block.vshard), []).append((group, block.index))
    return {server: tuple(blocks) for server, blocks in held.items()}


def _bands_by_server(store: Store) -> dict[int, tuple[tuple[int, int, int], ...]]:
    held: dict[int, list[tuple[int, int, int]]] = {}
    for number, (_, table) in enumerate(sorted(store.exchange.sparse.items())):
        for band in table.bands():
            held.setdefault(store.member.server_of(band.start), []).append((number, band.start, band.stop))
    return {server: tuple(bands) for server, bands in held.items()}


# ---- restoring -------------------------------------------------------------------------------------------------------


def restore(store: Store, place: Path) -> Resume:
    """Bring back a checkpoint, or the newest in a folder; see `Store.restore`."""
    asking = actions.asking(
        store, "restore", f"call {actions.next_call(store, 'restore')}", actions.digest_of_text(str(place)), str(place)
    )
    reply = actions.ask(store, asking, "restore")
    result = _carry_out(store, reply.action_id, place, needed=True) if reply.granted else reply.result
    _raise(result)
    return _take(store, result)[1]


def resume(store: Store, place: Path) -> Resume | None:
    """Bring back the newest checkpoint of a folder, once in the store's life; see `Store.resume`."""
    text = str(place)
    store.resumes += 1
    asking = actions.asking(store, "resume", f"call {store.resumes}", actions.digest_of_text(text), text, step=0)
    reply = actions.ask(store, asking, "resume")
    if reply.granted:
        late = UsageError(
            "a store that has made steps was to be resumed",
            store=store.name,
            steps=store.clock,
            next_move="Resume before the first step, on every worker; store.restore brings values back later.",
        )
        result = _carry_out(store, reply.action_id, place, needed=False, refused=late if store.clock else None)
    else:
        result = reply.result
    _raise(result)
    if "folder" not in json.loads(result):
        return None
    manifest, found = _take(store, result)
    store.resumed_from = storage.place_of(json.loads(result)["folder"])
    store.member.resumed.update({position.loader: position for position in manifest.positions})
    return found


def _carry_out(store: Store, action_id: int, place: Path, *, needed: bool, refused: WindlassError | None = None) -> str:
    """The granted worker restores; the result that all are told."""
    try:
        if refused is not None:
            raise refused
        result = _load(store, place, needed=needed)
    except WindlassError as error:
        actions.agreed(store, action_id, _error_text(error))
        raise
    actions.agreed(store, action_id, result)
    return result


def _load(store: Store, place: Path, *, needed: bool) -> str:
    found = choose(place)
    if found is None:
        if needed:
            raise UsageError("a folder holds no complete checkpoint", folder=place)
        return "{}"
    folder, manifest = found
    if manifest.store != store.name:
        raise UsageError("a checkpoint is of another store", folder=folder, store=store.name, checkpoint=manifest.store)
    residuals.check(folder, manifest)
    key = secrets.token_hex(16)
    before = manifest.step - store.clock
    try:
        server_orders.send(store, Phase.STAGE, key, folder, manifest=manifest.digest, steps_before=before).result()
        server_orders.send(store, Phase.APPLY, key, folder, manifest=manifest.digest).result()
        saved_rules.bring_back(store, manifest.live)
    except WindlassError:
        with contextlib.suppress(WindlassError):  # a server that staged nothing knows of nothing
            server_orders.send(store, Phase.DROP, key, folder).result()
        raise
    return json.dumps({"folder": str(folder), "manifest": manifest.digest, "step": manifest.step, "clock": store.clock})


def settle(store: Store) -> None:
    """See an earlier save through, and raise what it met if nobody has seen that."""
    saving, store.saving = store.saving, None
    if saving is not None and not saving.seen:
        saving.result()


def place_of(store: Store, uri: str | Path | None) -> Path:
    """The folder that `uri` names; unless given, that of the run."""
    if uri is not None:
        return storage.place_of(uri)
    return ((store.run_dir or Path()) / "checkpoints").absolute()


def check_holdable(store: Store, call: str) -> None:
    """Is there something to hold?

    Raises:
        UsageError: nothing is declared.
    """
    if not store.exchange.declared():
        next_move = "Call store.init or store.table first."
        raise UsageError(f"{call} was called before init", store=store.name, next_move=next_move)


def choose(place: Path) -> tuple[Path, Manifest] | None:
    """The checkpoint that `place` is, or the newest complete one in it.

    Raises:
        CorruptionError: `place` is named as a checkpoint, and is no whole one.
    """
    from windlass_proto import checkpoint_folders, checkpoint_format

    if checkpoint_format.is_named_as_one(place) or (place / checkpoint_format.MANIFEST).exists():
        return place, checkpoint_format.read_manifest_untrusted(place)
    return checkpoint_folders.newest(place, lambda said: sys.stderr.write(f"windlass: passed over: {said}\n"))


def take_offset(store: Store, result: str) -> None:
    """Count the steps that a checkpoint had, if `result` says that one came back, and none has later."""
    told = json.loads(result)
    if "folder" in told and told["clock"] >= store.restored_at:
        store.restored_at, store.steps_before = told["clock"], told["step"] - told["clock"]


def _take(store: Store, result: str) -> tuple[Manifest, Resume]:
    """What every worker does once the servers hold a checkpoint."""
    from windlass_proto import checkpoint_format

    told = json.loads(result)
    manifest = checkpoint_format.read_manifest_untrusted(storage.place_of(told["folder"]))
    if manifest.digest != told["manifest"]:
        raise CorruptionError(
            "a worker sees another manifest than the one that restored",
            file=storage.place_of(told["folder"]) / checkpoint_format.MANIFEST,
            digest=manifest.digest,
            expected=told["manifest"],
        )
    residuals.bring_back(store, storage.place_of(told["folder"]), manifest, clock=told["clock"])
    take_offset(store, result)
    store.open.unstamp()
    live_changes.watch_plateau(store)
    _refresh(store)
    return manifest, Resume(store.steps_done, manifest.epoch, dict(manifest.state))


def _refresh(store: Store) -> None:
    """The arrays that `init` returned hold what the servers hold."""
    exchange = store.exchange
    out = {
        name: exchange.params[table_id].tensors[number]
        for name, (table_id, number) in exchange.where.items()
        if table_id in exchange.params
    }
    if out:
        store.pull(list(out), out=out).result()


# ---- results of actions ----------------------------------------------------------------------------------------------


def _as_json(state: Mapping[str, Any]) -> dict[str, Any]:
    """`state` as it will be read back.

    Raises:
        UsageError: it is not JSON.
    """
    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(state), sort_keys=True, allow_nan=False))
    except (TypeError, ValueError) as cause:
        raise UsageError(
            "a checkpoint's state is not JSON",
            reason=str(cause),
            next_move="Give numbers, texts, lists and dicts; arrays belong into the store.",
        ) from cause
    return found


def _error_text(error: Exception) -> str:
    """An error as an action's result."""
    known = error if isinstance(error, WindlassError) else InvariantError("a checkpoint failed", reason=repr(error))
    values = {name: str(value)[:_FIELD_SHOWN] for name, value in list(known.values.items())[:4]}
    short = type(known)(known.fact[:_FIELD_SHOWN], next_move=known.next_move[:_FIELD_SHOWN], **values)
    return json.dumps({"error": errors.to_wire(short).decode()})


def _error_of(result: str) -> WindlassError | None:
    record = json.loads(result) if result else {}
    return errors.from_wire_untrusted(record["error"].encode()) if "error" in record else None


def _raise(result: str) -> None:
    error = _error_of(result)
    if error is not None:
        raise error
