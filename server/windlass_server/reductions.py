"""Reductions: how the norms of this server's groups find together, here and on other servers.

A block's partial goes to the server that coordinates its scope: to that group's `ReductionCore` here, or to a peer
(`peers`). Totals come back to blocks of this server as `ShareCore.reduced`, to other servers as answers.

Invariant: what is said comes in under the lock of a share, so it is only noted here; `carry_out` does what follows from
it, and is called with no lock held by whoever caused it: the thread that brings the last partial runs the rule. `_lock`
is held for the core alone, never while a share's lock is taken or a socket used, so no two threads or servers wait for
each other here.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from windlass_proto import limits
from windlass_proto.errors import ProtocolError
from windlass_proto.frames import Entry, Status
from windlass_proto.memory import BufferPool
from windlass_server.peers import Partial, Peers
from windlass_server.reduction_core import ReductionCore, Told
from windlass_server.share_events import LEFT, Measure, Settled, Totals

if TYPE_CHECKING:
    from windlass_server.dense import DenseGroup
    from windlass_server.replies import Reply


class GroupReductions:
    """The scopes of one group: those coordinated here, and where the others are.

    `group` is None once nothing of it lies here any more: what others hold of it may still be added up here.
    """

    def __init__(
        self, group: DenseGroup, scopes: Mapping[int, tuple[int, ...]], owned: range, server: Reductions
    ) -> None:
        blocks = group.spec.layout.blocks
        homes = {scope: blocks[held[0]].vshard for scope, held in scopes.items()}
        self.table_id = group.spec.table_id
        self.group: DenseGroup | None = group
        self.pool = group.pool
        self.core = ReductionCore({scope: held for scope, held in scopes.items() if homes[scope] in owned})
        self._away = {scope: vshard for scope, vshard in homes.items() if vshard not in owned}
        self._server = server

    def measured(self, effect: Measure, sums: Totals) -> None:
        """A block of this server has its partial."""
        self._say(Partial(self.table_id, effect.scope, effect.block, effect.clock, effect.phase, sums))

    def settled(self, effect: Settled) -> None:
        """Steps went by on a block of this server."""
        self._say(Partial(self.table_id, effect.scope, effect.block, effect.clock, 0, ()))

    def _say(self, said: Partial) -> None:
        vshard = self._away.get(said.scope)
        if vshard is not None:
            self._server.send(vshard, said)
        else:
            self._server.note(self, said, None)


class Reductions:
    """Those of all groups of a server."""

    def __init__(self) -> None:
        self.peers: Peers | None = None
        self._lock = threading.Lock()
        self._groups: dict[int, GroupReductions] = {}
        self._pending: deque[tuple[GroupReductions, Told]] = deque()

    def join(self, group: DenseGroup, scopes: Mapping[int, tuple[int, ...]], owned: range) -> GroupReductions:
        """A group is made."""
        made = self._groups[group.spec.table_id] = GroupReductions(group, scopes, owned, self)
        return made

    def leave(self, table_id: int) -> None:
        """All that lies here of a group is deleted. Other servers may hold more, which is added up here as before."""
        group = self._groups.get(table_id)
        if group is None:
            return
        if self.peers is not None:
            self.peers.forget(table_id, but_the_end=True)
        with self._lock:
            group.group = None
            self._end_if_over(group)

    def end(self, table_id: int) -> None:
        """A group is gone from every server, with its job."""
        self._groups.pop(table_id, None)
        if self.peers is not None:
            self.peers.forget(table_id)

    def holds(self, table_id: int) -> bool:
        """Is there something of a group to be said, or added up?"""
        return table_id in self._groups

    def _end_if_over(self, group: GroupReductions) -> None:
        """The caller holds `_lock`."""
        if group.group is None and group.core.is_over:
            self._groups.pop(group.table_id, None)

    # ---- saying ------------------------------------------------------------------------------------------------------

    def note(self, group: GroupReductions, said: Partial, origin: Any) -> None:
        """A partial, or how far steps have gone by, for a scope that is coordinated here."""
        with self._lock:
            if said.sums:
                told = group.core.partial(said.scope, said.block, said.clock, said.phase, said.sums, origin)
            else:
                told = group.core.settled(said.scope, said.block, said.clock)
                self._end_if_over(group)
        self._pending.extend((group, each) for each in told)

    def send(self, vshard: int, said: Partial) -> None:
        """The same for a scope of another server."""
        assert self.peers is not None, "a tensor is cut over servers that are not known"
        self.peers.say(vshard, said)

    def hear_untrusted(self, entry: Entry, raw: bytes, origin: Any) -> bool:
        """What another server says of a group of ours; True if it is answered at once, else its total answers it.

        Raises:
            ProtocolError: the scope is not coordinated here, or the sums are not sums.
        """
        group = self._groups.get(entry.table)
        if group is None or not group.core.knows(entry.seg_end, entry.block):
            raise ProtocolError("a server spoke of a norm that is not added here", table=entry.table, block=entry.block)
        sums = struct.unpack(f"<{len(raw) // 8}d", raw) if len(raw) in (0, 8, 16) else None
        if sums is None or any(value < 0 for value in sums):  # NaN where what is not finite is allowed
            raise ProtocolError("a partial norm is not one", bytes=len(raw))
        if entry.clock > LEFT:
            raise ProtocolError("a partial norm's step is out of reach", clock=entry.clock)
        said = Partial(entry.table, entry.seg_end, entry.block, entry.clock, entry.stamp, sums)
        self.note(group, said, origin)
        return not sums

    def awaited(self, table_id: int) -> list[tuple[int, int, list[int]]]:
        """Of a group's open steps that are added here: the scope, the step, and the blocks that have not spoken."""
        with self._lock:
            return self._groups[table_id].core.awaited()

    def told(self, said: Partial, totals: Totals, deliver: Callable[[Reply], None]) -> None:
        """Another server answers what was sent to it; called by its link's thread."""
        group = self._groups.get(said.table)
        if group is not None and totals:
            self._pending.append((group, Told(None, said.scope, said.block, said.clock, said.phase, totals)))
            self.carry_out(deliver)

    # ---- following ---------------------------------------------------------------------------------------------------

    def carry_out(self, deliver: Callable[[Reply], None]) -> None:
        """Tell totals to who waits for them. The caller holds no lock."""
        while self._pending:
            try:
                group, told = self._pending.popleft()
            except IndexError:  # another thread took it
                return
            if told.origin is not None:
                deliver(_answer(group.pool, told))
                continue
            dense = group.group
            if dense is None:
                continue
            share = dense.share_of_block[told.block]
            with share.lock:
                effects = share.core.reduced(told.block, told.scope, told.clock, told.phase, told.totals)
                dense.execute(share, effects, deliver)


def _answer(pool: BufferPool, told: Told) -> Reply:
    """Totals as they travel: float64, padded to a line."""
    from windlass_server.replies import Reply

    snapshot = pool.take(limits.ALIGN_BYTES, beyond=True)
    snapshot.array[:] = 0
    snapshot.array.view(np.float64)[: len(told.totals)] = told.totals
    return Reply(told.origin, Status.OK, told.block, 0, 0, len(told.totals), snapshot, None)
