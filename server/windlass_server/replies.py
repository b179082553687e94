"""Replies: answers on their way, and who asked for them."""

from __future__ import annotations

from typing import Any, NamedTuple

from windlass_proto.frames import Status
from windlass_proto.memory import Buffer
from windlass_server.dense_memory import Vector


class Origin(NamedTuple):
    """Who asked, and where values go (`out`: in the worker's shared memory; None: in the answer's frame).

    `asked`: of a sparse table, the ids or the row numbers whose rows go along; of a dense tensor the rows, None: all.
    `priority`: of the answer, among those that wait to be sent.
    `base`: where weights come down as deltas, the state of the block that was read last.
    `replaced`: so many values of its gradient were not finite and are what the policy made of them.
    """

    connection: Any
    tag: int
    table: int
    op: int
    out: Vector | None
    asked: Any = None
    priority: int = 0
    base: int = 0
    replaced: int = 0


class Reply(NamedTuple):
    """An answer on its way to its connection; `snapshot` holds the values that go along."""

    origin: Origin
    status: Status
    block: int
    seg_begin: int
    seg_end: int
    aux: int
    snapshot: Buffer | None
    error: Exception | None
