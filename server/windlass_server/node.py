"""What one server process holds: its groups, the rosters that govern them, its buffer pool and counters.

Invariant: a group is made once, from one spec; a roster reaches every share of its store, also those declared later.
`_lock` guards the dictionaries; shares have locks of their own, and the two are never held together the other way round
(node lock first, then a share's).
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy.typing as npt

from windlass_proto import limits, memory
from windlass_proto.consistency import Mode
from windlass_proto.errors import ClosedError, InvariantError, ProtocolError, UnavailableError, UsageError
from windlass_proto.group_specs import GroupSpec
from windlass_proto.memory import BufferPool
from windlass_proto.rule_records import RuleRecord
from windlass_proto.table_specs import TableSpec
from windlass_rules import build, norms
from windlass_rules.rows import build_rows
from windlass_server.checkpoints import Checkpoints
from windlass_server.dense import DenseGroup, Share
from windlass_server.dense_memory import HostMemory
from windlass_server.device_memory import ParameterDevice
from windlass_server.lazy_rows import LazyRows
from windlass_server.readers import Readers
from windlass_server.reductions import Reductions
from windlass_server.replies import Reply
from windlass_server.share_events import LEFT, Effect, Roster, deleted_error
from windlass_server.sparse import SparseTable
from windlass_server.step_stamps import ANNOUNCED_MAX
from windlass_server.step_waits import StepWaits
from windlass_server.store_figures import StoreFigures, figures_of

Group = DenseGroup | SparseTable

ENDED_KEPT = 4096
CLOCK_FIRST_MAX = 1 << 40  # a store may be far along when this server first hears of it; a step takes no microsecond
RECORDS_KEPT = 128  # a store; 1 KiB each. Pushes hold theirs, and whoever stamps with an older one sends it again
TRAFFIC_TABLES_MAX = 32  # four figures each, of the 256 that a member may report
DROPPED_KEPT = 65_536  # 100 B each; a table id is never given again


class ServerNode:
    """The state of one server.

    Args:
        pool: lends receive buffers and snapshots.
        routing_wait_s: how long a declaration waits for this server's key ranges.
        device: in whose memory dense groups lie; None: in this host's, as tables always do.
    """

    def __init__(
        self,
        pool: BufferPool,
        *,
        routing_wait_s: float = 10.0,
        device: ParameterDevice | None = None,
        readers: Readers | None = None,
    ) -> None:
        self.pool = pool
        self.device = device
        self.memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        self.groups: dict[int, Group] = {}
        self.rosters: dict[int, Roster] = {}
        self.counters = {"frames": 0, "pushes": 0, "pulls": 0, "bytes_in": 0, "bytes_out": 0}
        self.generation = 0
        self.checkpoints = Checkpoints(self.groups, self.memory_bytes, self._host_bytes)
        self.reductions = Reductions()
        self.readers = readers if readers is not None else Readers()
        self._pages = ThreadPoolExecutor(1, thread_name_prefix="pages")  # begins with the first table that grows
        self._ended: dict[bytes, str] = {}
        self._dropped: dict[int, None] = {}
        self._marks: dict[int, dict[bytes, tuple[int, bool]]] = {}  # store -> session -> its newest mark, does it leave
        self._records: dict[int, dict[int, RuleRecord]] = {}  # store -> version -> record
        self._announced: dict[int, dict[bytes, list[tuple[int, RuleRecord]]]] = {}  # store -> session -> (step, record)
        self._prepared: dict[int, tuple[int, int, bool]] = {}  # store -> the newest proposal, settled or not
        self._waits: dict[int, StepWaits] = {}  # store -> whom its workers wait for
        self._clocks: dict[int, int] = {}  # store -> the highest step that a mark has closed
        self._vshards: range | None = None
        self._routing_wait_s = routing_wait_s
        self._lock = threading.Lock()
        self._routed = threading.Condition(self._lock)

    # ---- control plane -----------------------------------------------------------------------------------------------

    def own(self, vshards: range, generation: int) -> None:
        """The scheduler handed this server `vshards`."""
        with self._routed:
            if self._vshards is None:
                self._vshards = vshards
            self.generation = max(self.generation, generation)
            self._routed.notify_all()

    def set_roster(self, store_id: int, roster: Roster, deliver: Callable[[Reply], None]) -> None:
        """A store's steps count another set of sessions."""
        with self._lock:
            known = self.rosters.get(store_id)
            if known is not None and known.version > roster.version:
                return
            self.rosters[store_id] = roster
            shares = list(self._shares_of(store_id))
            waits = self._waits.setdefault(store_id, StepWaits())
            waits.change(roster.members, self._apart(store_id, roster), time.monotonic())
        for group, share in shares:
            self._run(group, share, lambda core=share.core: core.set_roster(roster), deliver)  # type: ignore[misc]
        self.reductions.carry_out(deliver)

    def prepare(self, store_id: int, clock: int, proposal: int, *, mode: bool = False) -> tuple[bool, int]:
        """May the roster (or `mode`) of a store change from `clock` on? The vote, and the highest clock begun here."""
        with self._lock:
            self._prepared[store_id] = (clock, proposal, mode)
            shares = list(self._shares_of(store_id))
        highest, accepted = -1, True
        for _, share in shares:
            with share.lock:
                accepted = share.core.clocks.prepare(clock, proposal, mode=mode) and accepted
                highest = max(highest, share.core.clocks.begun)
        return accepted, max(0, highest)

    def end_session(self, session: bytes, reason: str, deliver: Callable[[Reply], None]) -> None:
        """The scheduler ended a session: nothing waits for it, nothing more is taken from it."""
        with self._lock:
            self._ended[session] = reason
            for marks in self._marks.values():
                marks.pop(session, None)
            for announced in self._announced.values():
                announced.pop(session, None)
            while len(self._ended) > ENDED_KEPT:
                del self._ended[next(iter(self._ended))]
            shares = [(group, share) for group in self.groups.values() for share in group.shares.values()]
        self.checkpoints.end_session(session)
        for group, share in shares:
            self._run(group, share, lambda share=share: share.end_session(session), deliver)  # type: ignore[misc]
        self.reductions.carry_out(deliver)

    def check_session(self, session: bytes) -> None:
        """May this session talk to us?

        Raises:
            ClosedError: the scheduler has ended it.
        """
        reason = self._ended.get(session)
        if reason is not None:
            raise ClosedError(
                "this worker's session has ended",
                reason=reason,
                next_move="Connect again with windlass.connect().",
            )

    # ---- data plane --------------------------------------------------------------------------------------------------

    def declare(self, spec: GroupSpec | TableSpec) -> Group:
        """Make the group or table of `spec` (compiling its rule), or return it if it is here already.

        Raises:
            UsageError: another group has this table id.
            UnavailableError: this server has not been handed its key ranges, or lacks the memory.
        """
        make = self._sparse(spec) if isinstance(spec, TableSpec) else self._dense(spec)
        with self._routed:
            if not self._routed.wait_for(lambda: self._vshards is not None, self._routing_wait_s):
                raise UnavailableError(
                    "this server has no key ranges yet",
                    waited_s=self._routing_wait_s,
                    next_move="Start as many servers as the cluster was told to expect.",
                )
            assert self._vshards is not None
            if spec.table_id in self._dropped:
                raise deleted_error(table=spec.table_id)
            known = self.groups.get(spec.table_id)
            if known is None:
                known = make(self._vshards)
                self._tell_what_is_known(known)
                self.groups[spec.table_id] = known
        if known.spec != spec:
            raise UsageError(
                "a table was declared differently",
                table=spec.table_id,
                here=_in_words(known.spec),
                declared=_in_words(spec),
                next_move="Declare the same tensors and rule on every worker.",
            )
        if isinstance(known, DenseGroup) and known.kernels.copies:
            self._check_room(known.spec, 1)  # for the copy of the worker that declares
        return known

    def _dense(self, spec: GroupSpec) -> Callable[[range], Group]:
        kernels = build(spec.rule, spec.layout.held)
        _check_norms(spec)
        lazy = LazyRows(kernels, build_rows(spec.rule, spec.layout.held)) if spec.lazy else None
        here = self.device is None or spec.lazy  # as rows of tables
        lies_in = HostMemory(kernels) if here or self.device is None else self.device.memory_for(spec, kernels)

        def make(owned: range) -> Group:
            self._check_room(spec, 1 + len(kernels.slots))
            return DenseGroup(spec, kernels, owned, self.pool, lies_in, self.reductions, lazy)

        return make

    def _sparse(self, spec: TableSpec) -> Callable[[range], Group]:
        rule = build_rows(spec.rule, spec.held)

        def make(owned: range) -> Group:
            table = SparseTable(spec, rule, owned, self.pool, self._take_ahead)
            if spec.quota_bytes:
                share = spec.quota_bytes * len(owned) // spec.vshards
                table.job_room = lambda more: self._refuse_rows(spec.job, more, share)
            return table

        return make

    def _refuse_rows(self, job: str, more: int, share: int) -> UsageError | None:
        """Why `job` may not have rows of so many bytes on this server, whose part of its quota is `share`."""
        held = sum(group.nbytes for group in list(self.groups.values()) if group.spec.job == job)
        if held + more <= share:
            return None
        return UsageError(
            "rows of a table would take more than this server's part of their job's quota",
            job=job,
            bytes_held=held,
            bytes_asked=more,
            quota_bytes_here=share,
            next_move="Erase rows, or ask whoever runs the cluster for a larger --job-quota. The push was not applied.",
        )

    def _take_ahead(self, array: npt.NDArray[Any]) -> None:
        """Take memory for a table soon. A band asks again once half of what it asked for is used, so few ever wait."""
        self._pages.submit(memory.populate, array)

    def close(self) -> None:
        """No connection is left: finish what is being written, join the threads."""
        self.checkpoints.close()
        self._pages.shutdown()

    def _check_room(self, spec: GroupSpec, vectors: int) -> None:
        """Refuse in words what would end the process by want of memory: so many vectors as long as the group."""
        assert self._vshards is not None
        elements = sum(block.elements for block in spec.layout.blocks if block.vshard in self._vshards)
        needed = elements * spec.layout.held.itemsize * vectors
        held, bytes_max = self._host_bytes(), self.memory_bytes
        if self.device is not None:
            held, bytes_max = self._parameter_bytes() - held, self.device.parameter_bytes_max
        if held + needed > bytes_max:
            raise UnavailableError(
                "the server has no memory for a table",
                table=spec.layout.table_id,
                where=self.device_in_words,
                bytes_needed=needed,
                bytes_held=held,
                bytes_max=bytes_max,
                next_move="Add servers, or declare less.",
            )

    def _parameter_bytes(self) -> int:
        return sum(group.nbytes for group in list(self.groups.values()))

    def _host_bytes(self) -> int:
        """Of parameters, what lies in this host's memory."""
        on_host = (
            group for group in list(self.groups.values()) if self.device is None or isinstance(group, SparseTable)
        )
        return sum(group.nbytes for group in on_host)

    @property
    def device_in_words(self) -> str:
        """Where dense groups lie, for status."""
        return "memory" if self.device is None else self.device.in_words

    def _tell_what_is_known(self, group: Group) -> None:
        """A share that is made while its store is running hears of the roster and of the marks that came before it.

        It holds nothing yet, so all that can follow is what it says of norms: steps that went by.
        """
        store_id = group.spec.store_id
        roster = self.rosters.get(store_id)
        marks = dict(self._marks.get(store_id, {}))
        announced = self._announced.get(store_id, {})
        prepared = self._prepared.get(store_id)
        for share in group.shares.values():
            effects = share.core.set_roster(roster) if roster is not None else []
            if prepared is not None:
                clock, proposal, mode = prepared
                share.core.clocks.prepare(clock, proposal, mode=mode)
            for session, said in announced.items():
                for clock, record in said:
                    share.core.announce(session, clock, record)
            for session, (clock, leaves) in marks.items():
                effects += share.core.mark(session, clock, leaves=leaves)
            group.execute(share, effects, _no_answer)

    def drop(self, group: Group, block: int, seg_begin: int, seg_end: int, deliver: Callable[[Reply], None]) -> None:
        """Tensors of a group are deleted; with the last of them the group and its memory go."""
        share = group.share_of_block[block]
        with share.lock:
            group.execute(share, share.core.drop(block, seg_begin, seg_end), deliver)
        blocks = [state for share in group.shares.values() for state in share.core.blocks.values()]
        if any(steps < LEFT for state in blocks for steps in state.applied):
            return
        with self._lock:
            self.groups.pop(group.spec.table_id, None)
            self._remember_dropped(group.spec.table_id)
        self.reductions.leave(group.spec.table_id)

    def free_stores(self, store_ids: frozenset[int]) -> None:
        """Their job is over: what is held of these stores goes, with its memory. Who asks for it is told so."""
        with self._lock:
            for table_id in [t for t, group in self.groups.items() if group.spec.store_id in store_ids]:
                del self.groups[table_id]
                self._remember_dropped(table_id)
                self.reductions.end(table_id)
            for store_id in store_ids:
                self.rosters.pop(store_id, None)
                self._marks.pop(store_id, None)
                self._records.pop(store_id, None)
                self._announced.pop(store_id, None)
                self._clocks.pop(store_id, None)
                self._waits.pop(store_id, None)
                self._prepared.pop(store_id, None)

    def _remember_dropped(self, table_id: int) -> None:
        self._dropped[table_id] = None
        while len(self._dropped) > DROPPED_KEPT:
            del self._dropped[next(iter(self._dropped))]

    def is_dropped(self, table_id: int) -> bool:
        """Were all tensors of this table deleted?"""
        return table_id in self._dropped

    def mark(
        self, store_id: int, session: bytes, clock: int, deliver: Callable[[Reply], None], *, leaves: bool
    ) -> None:
        """`session` has closed `clock` of a store: tell every share of it.

        Raises:
            ProtocolError: nobody could have come so far.
        """
        with self._lock:  # a group that is being declared hears of this mark from `_marks`, or is in `groups` already
            groups = [group for group in self.groups.values() if group.spec.store_id == store_id]
            if not groups and store_id not in self.rosters:
                return
            known = self._clocks.get(store_id, CLOCK_FIRST_MAX - limits.CLOCK_AHEAD_MAX)
            if clock > known + limits.CLOCK_AHEAD_MAX:
                raise ProtocolError("a mark's step is out of reach", clock=clock)
            self._clocks[store_id] = max(clock, self._clocks.get(store_id, 0))
            self._marks.setdefault(store_id, {})[session] = (clock, leaves)
            if store_id in self._waits:
                self._waits[store_id].close(session, LEFT if leaves else clock + 1, time.monotonic())
        for group in groups:
            for share in group.shares.values():
                with share.lock:
                    effects = share.core.mark(session, clock, leaves=leaves)
                    if effects:
                        group.execute(share, effects, deliver)

    def set_rule(self, store_id: int, session: bytes, clock: int, record: RuleRecord) -> None:
        """From its step `clock` on `session` stamps what it says of a store with `record`.

        Raises:
            ProtocolError: the record does not fit the store's tensors.
        """
        with self._lock:
            groups = [group for group in self.groups.values() if group.spec.store_id == store_id]
            if not groups and store_id not in self.rosters:
                return
            records = self._records.setdefault(store_id, {})
            record = records[record.version] = records.pop(record.version, record)
            if len(records) > RECORDS_KEPT:
                del records[next(iter(records))]
            said = self._announced.setdefault(store_id, {}).setdefault(session, [])
            said.append((clock, record))
            del said[:-ANNOUNCED_MAX]
        for group in groups:
            group.check(record)
            for share in group.shares.values():
                with share.lock:
                    share.core.announce(session, clock, record)

    def record(self, store_id: int, version: int) -> RuleRecord | None:
        """A version of a store's hyper-parameters; None: it has not come, or others have come since."""
        return self._records.get(store_id, {}).get(version)

    def drop_connection(self, connection: object) -> None:
        """A connection closed: what is parked for it goes."""
        for group in list(self.groups.values()):
            for share in group.shares.values():
                with share.lock:
                    share.core.drop_origin(connection)

    def figures(self) -> dict[str, float]:
        """Counters since start, and what is held now."""
        groups = list(self.groups.values())
        busiest = sorted(groups, key=lambda group: -group.wire.traffic.raw_in)
        traffic = {
            f"table_{group.spec.table_id}_{name}": float(count)
            for group in busiest[:TRAFFIC_TABLES_MAX]
            for name, count in group.wire.traffic.figures().items()
        }
        cores = [share.core for group in groups for share in group.shares.values()]
        return {
            **{name: float(count) for name, count in self.counters.items()},
            **traffic,
            "parameter_bytes": float(self._parameter_bytes()),
            "pool_bytes": float(self.pool.bytes_lent),
            "checkpoint_bytes": float(self.checkpoints.pool.bytes_lent + self.checkpoints.pool.bytes_kept),
            **_table_figures([group for group in groups if isinstance(group, SparseTable)]),
            "duplicates": float(sum(core.tallies.duplicates for core in cores)),
            "late": float(sum(core.tallies.late for core in cores)),
            "rejected": float(sum(core.tallies.rejected for core in cores)),
        }

    def store_figures(self) -> list[StoreFigures]:
        """What was counted in each store."""
        with self._lock:
            now_s = time.monotonic()
            return [
                dataclasses.replace(
                    figures_of(store_id, waits, [share.core.tallies for _, share in self._shares_of(store_id)], now_s),
                    nbytes=sum(group.nbytes for group in self._groups_of(store_id)),
                    rows_nbytes=sum(g.nbytes for g in self._groups_of(store_id) if isinstance(g, SparseTable)),
                )
                for store_id, waits in self._waits.items()
            ]

    def _groups_of(self, store_id: int) -> list[Group]:
        return [group for group in self.groups.values() if group.spec.store_id == store_id]

    def _apart(self, store_id: int, roster: Roster) -> int | None:
        """How many steps the workers of a store may be apart; None: as many as they are."""
        if roster.modes:
            return roster.modes[-1].consistency.apart
        declared = [group.spec.consistency for group in self.groups.values() if group.spec.store_id == store_id]
        return declared[0].apart if declared else None

    def _shares_of(self, store_id: int) -> Iterator[tuple[Group, Share]]:
        for group in self.groups.values():
            if group.spec.store_id == store_id:
                for share in group.shares.values():
                    yield group, share

    def _run(
        self,
        group: Group,
        share: Share,
        event: Callable[[], list[Effect]],
        deliver: Callable[[Reply], None],
    ) -> None:
        with share.lock:
            group.execute(share, event(), deliver)


def _no_answer(reply: Reply) -> None:
    raise InvariantError("a share that was just made answers somebody", block=reply.block)


def _check_norms(spec: GroupSpec) -> None:
    if norms.Norm.TRUST not in norms.phases(spec.rule):
        return
    cut = [t.name for t, places in zip(spec.layout.tensors, spec.layout.segments_of, strict=True) if len(places) > 1]
    if cut and spec.consistency.mode is not Mode.BSP:
        raise UsageError(
            f"{spec.consistency} applies a push on arrival, which has no norm of weights that lie in several blocks",
            rule=spec.rule,
            tensors=", ".join(cut[:4]),
            next_move='Declare them with layout="whole", which cuts no tensor, or take consistency="bsp".',
        )


def _table_figures(tables: list[SparseTable]) -> dict[str, float]:
    """Of all tables together, if there are any; the share of its calls is the hottest row's of any table."""
    if not tables:
        return {}
    rows = [rows for table in tables for rows in table.tables.values()]
    lives = [held.life for held in rows if held.life is not None]
    return {
        "table_rows": float(sum(map(len, rows))),
        "rows_evicted": float(sum(life.evicted for life in lives)),
        "pushes_not_admitted": float(sum(life.refused for life in lives)),
        "hottest_row_share": max(table.hottest_share() for table in tables),
    }


def _in_words(spec: GroupSpec | TableSpec) -> str:
    if isinstance(spec, TableSpec):
        said = f"{spec.dtype_name} table {spec.name} of {spec.dim}, {spec.init}, {spec.rule}, {spec.consistency}"
        return f"{said}, {spec.transfer.in_words()}"
    tensors = ", ".join(f"{t.name}{list(t.shape)}" for t in spec.layout.tensors[:4])
    more = f" and {len(spec.layout.tensors) - 4} more" if len(spec.layout.tensors) > 4 else ""
    lazy = "lazy " if spec.lazy else ""
    return (
        f"{lazy}{spec.layout.dtype_name} {tensors}{more}, {spec.rule}, {spec.consistency}, {spec.transfer.in_words()}"
    )
