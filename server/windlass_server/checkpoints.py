"""Checkpoints on this server: what is copied and being written, and what is staged to be served.

A save asks its shares as a reader does: one pull of every run of present segments (of a sparse table's band: of all of
it), at the worker's clock. So a share answers when the steps before that clock are complete on the run, under its lock,
and the copy of weights, slots and update counts is made right then (`checkpoint_copies`). When all runs have come, a
thread of its own writes the part; nobody waits for the disk but who asked. A restore reads and checks everything in
that thread, beside what is served, and then exchanges arrays with the locks of all its shares held: no reader sees a
half of it.

Invariant: copies lie in a pool of their own, kept warm for the next save, so that gradients never wait for a file. A
buffer goes back once every pull that may write to it has been answered. At most `SAVES_MAX` saves and stages are open.

Owner of `_open`: `_lock`. A save's fields are its own lock's. Locks are taken share's first, then a save's.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from windlass_proto import checkpoint_format, storage, tensor_file
from windlass_proto.checkpoint_orders import Order, Phase, Save, SavedPart
from windlass_proto.errors import InvariantError, UnavailableError, UsageError, WindlassError
from windlass_proto.frames import Op, Status
from windlass_proto.memory import BufferPool
from windlass_server.checkpoint_copies import Arrays, Copy, copies_of
from windlass_server.dense import DenseGroup, Share
from windlass_server.gate_runs import stretches
from windlass_server.part_files import PartFiles
from windlass_server.replies import Origin, Reply
from windlass_server.sparse import SparseTable
from windlass_server.staged_bands import StagedBand, read_bands_untrusted
from windlass_server.staged_blocks import StagedBlock, read_blocks_untrusted

_LOG = logging.getLogger("windlass.server")
SAVES_MAX: Final = 8

Done = Callable[[SavedPart | None, WindlassError | None], None]
Group = DenseGroup | SparseTable
Groups = list[tuple[int, Group]]
"""With the number that the manifest gives them among its groups, or among its tables."""


class _Pulls:
    """Pulls of every present segment of some groups at a clock; what stands in for their connection.

    `on_run` is called for each run with its share's lock held, `on_all` once after the last.
    """

    def __init__(self, on_run: Callable[[int, Reply], None] | None, on_all: Callable[[], None]) -> None:
        self._on_run = on_run
        self._on_all = on_all
        self._left = 1
        self._given_up = False
        self._lock = threading.Lock()

    def ask(self, share: Share, group: Group, clock: int, outs: dict[int, tuple[int, Any]]) -> None:
        """Pull the blocks of `share`; `outs`: by block, a number for `on_run` and where its weights are to go."""
        for index, state in share.core.blocks.items():
            number, out = outs[index]
            for begin, end in stretches(state.present, 0, len(state.present)):
                if not state.present[begin]:
                    continue
                first, last = state.shape.span(begin, end)
                with self._lock:
                    if self._given_up:
                        return
                    self._left += 1
                target = out[first:last] if out is not None else None
                origin = Origin(self, number, group.spec.table_id, Op.CHECKPOINT, target)
                group.execute(share, share.core.pull(origin, clock, index, begin, end), self.deliver)

    def deliver(self, reply: Reply) -> None:
        reply.origin.connection.post(reply)

    def post(self, reply: Reply) -> None:
        """A run may be read; called under its share's lock."""
        if self._on_run is not None:
            self._on_run(reply.origin.tag, reply)
        if reply.snapshot is not None:
            reply.snapshot.release()
        self.end()

    def end(self) -> None:
        """One less to come."""
        with self._lock:
            if self._given_up:
                return
            self._left -= 1
            last = self._left == 0
        if last:
            self._on_all()

    def give_up(self, groups: Groups) -> bool:
        """Ask no more; True if some had not come: `on_all` is not called then, and nothing is written from now on."""
        with self._lock:
            if self._given_up or not self._left:
                return False
            self._given_up = True
        for _, group in groups:
            for share in group.shares.values():
                with share.lock:  # who asks it now is done by then, and the next one sees that we gave up
                    share.core.drop_origin(self)
        return True

    def wake(self) -> None:
        """A connection's thread would look at its outbox; here everything is done in `post`."""


class _Action:
    """A save or a restore: what is done by now, and who wants to know."""

    def __init__(self, session: bytes, order: Order) -> None:
        self.session = session
        self.order = order
        self.lock = threading.Lock()
        self.reached: set[Phase] = set()
        self.written: SavedPart | None = None
        self.error: WindlassError | None = None
        self.ended = False
        self.staged: list[StagedBlock | StagedBand] = []
        self.give_up: Callable[[], None] = lambda: None  # what is parked for it goes, with its memory
        self._waiting: list[tuple[Phase, Done]] = []

    @property
    def finished(self) -> bool:
        """Will nothing come of it any more?"""
        return self.ended or self.error is not None or bool(self.reached & {Phase.WRITE, Phase.APPLY})

    def ask(self, phase: Phase, done: Done) -> None:
        """Call `done` once `phase` is reached, or the action has failed."""
        with self.lock:
            if phase not in self.reached and self.error is None:
                self._waiting.append((phase, done))
                return
        done(self.written, self.error)

    def reach(self, phase: Phase) -> None:
        with self.lock:
            self.reached.add(phase)
        self._answer()

    def fail(self, error: WindlassError) -> None:
        with self.lock:
            self.error = self.error or error
        self._answer()

    def _answer(self) -> None:
        with self.lock:
            ready = [done for phase, done in self._waiting if phase in self.reached or self.error is not None]
            self._waiting = [w for w in self._waiting if w[0] not in self.reached and self.error is None]
        for done in ready:
            done(self.written, self.error)


class Checkpoints:
    """Saves and restores of this server.

    Args:
        groups: the server's groups by table id.
        memory_bytes: what this machine has.
        held_bytes: what tables hold of it.
    """

    def __init__(self, groups: Mapping[int, Group], memory_bytes: int, held_bytes: Callable[[], int]) -> None:
        self.pool = BufferPool(memory_bytes)
        self._groups = groups
        self._memory_bytes = memory_bytes
        self._held_bytes = held_bytes
        self._open: dict[str, _Action] = {}
        self._lock = threading.Lock()
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")

    def carry_out(self, session: bytes, order: Order, done: Done) -> None:
        """Do what `order` says; `done` is called by some thread, once.

        Raises:
            WindlassError: it cannot be begun.
        """
        if order.phase in (Phase.COPY, Phase.STAGE):
            self._begin(session, order, done)
            return
        with self._lock:
            action = self._open.get(order.key)
        if action is None or action.session != session:
            raise UnavailableError("the server does not know of a checkpoint", key=order.key, phase=order.phase.value)
        if order.phase is Phase.APPLY:
            self._apply(action)
        elif order.phase is Phase.DROP:
            self._forget(action)
            action.reach(Phase.DROP)
        action.ask(order.phase, done)

    def end_session(self, session: bytes) -> None:
        """Nobody asks for the checkpoints of this session any more."""
        with self._lock:
            found = [action for action in self._open.values() if action.session == session]
        for action in found:
            self._forget(action)

    def close(self) -> None:
        """Finish what is being written, join the thread."""
        self._disk.shutdown()

    # ---- beginning ---------------------------------------------------------------------------------------------------

    def _begin(self, session: bytes, order: Order, done: Done) -> None:
        with self._lock:
            action = self._open.get(order.key)
            fresh = action is None
            if action is None:
                self._drop_oldest()
                action = self._open[order.key] = _Action(session, order)
        action.ask(order.phase, done)
        if not fresh:
            return
        try:
            groups = [(number, self._group(table)) for number, table in order.tables]
            if order.phase is Phase.COPY:
                self._copy(action, groups)
            else:
                self._disk.submit(self._stage, action, groups)
        except WindlassError as error:
            action.fail(error)

    def _drop_oldest(self) -> None:
        finished = [key for key, action in self._open.items() if action.finished]
        for key in finished[: max(0, len(self._open) - SAVES_MAX + 1)]:
            del self._open[key]
        if len(self._open) >= SAVES_MAX:
            raise UnavailableError(
                "too many checkpoints are being written",
                open=len(self._open),
                open_max=SAVES_MAX,
                next_move="Wait for the earlier ones.",
            )

    def _group(self, table: int) -> Group:
        group = self._groups.get(table)
        if group is None:
            raise UsageError("a checkpoint names a table that is not declared here", table=table)
        return group

    def _forget(self, action: _Action) -> None:
        with self._lock:
            action.ended, action.staged = True, []
            self._open.pop(action.order.key, None)
        action.give_up()

    # ---- saving ------------------------------------------------------------------------------------------------------

    def _copy(self, action: _Action, groups: Groups) -> None:
        """Copy blocks and bands as the steps before the order's clock left them; at once, or when they are complete."""
        self._check_room(groups)
        copies: list[Copy] = []

        def on_run(number: int, reply: Reply) -> None:
            if reply.status is Status.OK:
                copies[number].fill(reply)
            else:
                action.fail(InvariantError("a present segment could not be read", block=reply.block))

        def on_all() -> None:
            action.reach(Phase.COPY)
            self._disk.submit(self._write, action, copies)

        def give_up() -> None:
            if pulls.give_up(groups):
                for copy in copies:
                    copy.release()

        pulls = _Pulls(on_run, on_all)
        attempt = checkpoint_format.server_and_attempt(action.order.file)[1]
        save = Save(attempt, action.order.base, action.order.tracks)
        shares: list[tuple[Share, Group, dict[int, tuple[int, Any]]]] = []
        for number, group in groups:
            outs: dict[int, dict[int, tuple[int, Any]]] = {vshard: {} for vshard in group.shares}
            for vshard, index, copy in copies_of(number, group, self.pool, save):
                outs[vshard][index] = (len(copies), copy.weights)
                copies.append(copy)
            shares += [(group.shares[vshard], group, asked) for vshard, asked in outs.items()]
        action.give_up = give_up
        for share, group, asked in shares:
            with share.lock:
                pulls.ask(share, group, action.order.clock, asked)
        pulls.end()

    def _check_room(self, groups: Groups) -> None:
        """Refuse in words what would end the process by want of memory."""
        needed = sum(group.nbytes for _, group in groups)
        held = self._held_bytes() + self.pool.bytes_lent
        if held + needed > self._memory_bytes:
            raise UnavailableError(
                "the server has no memory for a checkpoint's copy",
                bytes_needed=needed,
                bytes_held=held,
                bytes_max=self._memory_bytes,
                next_move="Add servers: each copies what it holds.",
            )

    def _write(self, action: _Action, copies: list[Copy]) -> None:
        """The disk's thread: make the part of the copies, give their buffers back."""
        try:
            if action.ended or action.error is not None:
                return
            arrays: Arrays = {}
            for copy in copies:
                arrays |= copy.arrays()
            folder = storage.place_of(action.order.folder)
            storage.make_folder(folder)
            written = tensor_file.write(folder / action.order.file, arrays)
            action.written = SavedPart(*written, whole=all(copy.whole for copy in copies))
            _LOG.info("part_written file=%s bytes=%d", folder / action.order.file, action.written.nbytes)
            action.reach(Phase.WRITE)
        except Exception as error:  # noqa: BLE001 - a thread's root: the worker is told
            action.fail(_known(error, "a part could not be written"))
        finally:
            for copy in copies:
                copy.release()

    # ---- restoring ---------------------------------------------------------------------------------------------------

    def _stage(self, action: _Action, groups: Groups) -> None:
        """The disk's thread: read and check everything, then wait until the steps before the clock are complete."""
        try:
            self._check_room(groups)
            parts = PartFiles(storage.place_of(action.order.folder), action.order.manifest)
            staged: list[StagedBlock | StagedBand] = []
            for _, group in groups:
                if isinstance(group, SparseTable):
                    staged += read_bands_untrusted(parts, group)
                else:
                    staged += read_blocks_untrusted(parts, group)
            action.staged = staged
            pulls = _Pulls(None, lambda: action.reach(Phase.STAGE))
            action.give_up = lambda: _let_go(pulls, groups)
            for _, group in groups:
                for share in group.shares.values():
                    with share.lock:
                        pulls.ask(share, group, action.order.clock, dict.fromkeys(share.core.blocks, (0, None)))
            pulls.end()
        except Exception as error:  # noqa: BLE001 - a thread's root: the worker is told
            action.staged = []
            action.fail(_known(error, "a checkpoint could not be read"))

    def _apply(self, action: _Action) -> None:
        """Serve what was staged, from one moment on."""
        with action.lock:
            if Phase.APPLY in action.reached:
                return
            if Phase.STAGE not in action.reached:
                raise UsageError("a checkpoint was to be served before it was staged", key=action.order.key)
            staged, action.staged = action.staged, []
        shares = {(one.group.spec.table_id, one.share.vshard): one.share for one in staged}
        with contextlib.ExitStack() as held:
            for _, share in sorted(shares.items(), key=lambda item: item[0]):
                held.enter_context(share.lock)
            for one in staged:
                one.serve(action.order.steps_before)
        _LOG.info("checkpoint_restored folder=%s blocks_and_bands=%d", action.order.folder, len(staged))
        action.reach(Phase.APPLY)


def _let_go(pulls: _Pulls, groups: Groups) -> None:
    pulls.give_up(groups)


def _known(error: Exception, fact: str) -> WindlassError:
    if isinstance(error, WindlassError):
        return error
    _LOG.exception("checkpoint_failed")
    return InvariantError(fact, reason=repr(error)[:200])
