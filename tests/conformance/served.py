"""A server in the test's process: real listeners, ingress, node and kernels, without a scheduler.

`Served` says what the scheduler would (key ranges, rosters). `Session` is the normal client: a pump, a table and steps.
`raw_link` is a socket that has passed the preamble and then does what the test wants.
"""

from __future__ import annotations

import secrets
import socket
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from windlass.data_link import Target, open_socket
from windlass.dense_table import DenseTable
from windlass.pump import Mark, Pump
from windlass.ticket import Ticket
from windlass.window_core import Request, WindowCore
from windlass_proto import frames, keys, limits
from windlass_proto.consistency import Consistency
from windlass_proto.frames import Entry, EntryFlag, Header, Kind, Op
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import GroupLayout, TensorSpec
from windlass_proto.links import preamble
from windlass_proto.links.arena import ArenaHeap
from windlass_proto.memory import BufferPool
from windlass_proto.rule_specs import SGD, RuleSpec
from windlass_server.dense import DenseGroup
from windlass_server.ingress import Ingress, listen_tcp, listen_unix
from windlass_server.node import ServerNode
from windlass_server.share_events import Member, Roster

KEY = preamble.link_key(b"a-token-of-the-tests", "a-cluster")
STORE = 3
TABLE = 7


class Served:
    """One server that owns every key, listening on loopback and on a Unix socket."""

    def __init__(self, *, pool_bytes: int = 256 * limits.MIB) -> None:
        self._switch_s = sys.getswitchinterval()
        sys.setswitchinterval(0.0005)  # as servers and workers set it
        self._folder = tempfile.TemporaryDirectory(prefix="wl-")
        path = Path(self._folder.name) / "s.sock"
        self.pool = BufferPool(pool_bytes)
        self.node = ServerNode(self.pool)
        tcp = listen_tcp("127.0.0.1", 0)
        self.ingress = Ingress([tcp, listen_unix(path)], KEY, self.node)
        self.node.own(range(keys.VSHARDS_DEFAULT), 1)
        address = f"127.0.0.1:{tcp.getsockname()[1]}"
        self.targets = {
            "tcp": Target("tcp", address),
            "unix": Target("unix", str(path)),
            "shm": Target("shm", str(path)),
        }
        self._rosters = 0
        self._pause = threading.Event()

    def declare(
        self,
        elements: int,
        *,
        consistency: str = "asp",
        block_elements: int = 16 * limits.KIB,
        table: int = TABLE,
        store: int = STORE,
        rule: RuleSpec | None = None,
    ) -> GroupSpec:
        """A group of one tensor "w", SGD with lr 1 unless told otherwise, sums over workers."""
        layout = GroupLayout(table, "float32", (TensorSpec("w", (elements,)),), block_elements, keys.VSHARDS_DEFAULT)
        spec = GroupSpec(store, layout, rule or SGD(lr=1.0), mean=False, consistency=Consistency.parse(consistency))
        self.node.declare(spec)
        return spec

    def count(self, *sessions: bytes, store: int = STORE) -> None:
        """These sessions count in the store's steps, in the order of their ranks."""
        self._rosters += 1
        members = tuple(Member(session, rank, 0) for rank, session in enumerate(sessions))
        self.node.set_roster(store, Roster(self._rosters, True, members), self.ingress.deliver)

    def weights(self, table: int = TABLE) -> np.ndarray:
        """What the server holds of "w"."""
        group = self.node.groups[table]
        assert isinstance(group, DenseGroup)
        flat = np.zeros(group.spec.layout.flat_elements, np.float32)
        for block in group.spec.layout.blocks:
            share = group.share_of_block[block.index]
            with share.lock:
                flat[block.flat_begin : block.flat_begin + block.elements] = share.arrays[block.index].weights
        return flat[: group.spec.layout.tensors[0].elements]

    def validate(self) -> None:
        """Every share's invariants hold."""
        for group in self.node.groups.values():
            for share in group.shares.values():
                with share.lock:
                    share.core.validate()

    def raw_link(self, kind: str = "tcp", session: bytes | None = None) -> socket.socket:
        """A blocking socket beyond the preamble."""
        sock = open_socket(self.targets[kind], KEY, session or secrets.token_bytes(16), 5.0)
        sock.settimeout(10.0)
        return sock

    def await_connections(self, count: int, within_s: float = 10.0) -> None:
        """Until so many connections stand; accepting and closing happen in the server's threads."""
        deadline = time.monotonic() + within_s
        while self.ingress.connections() != count:
            assert time.monotonic() < deadline, f"{self.ingress.connections()} connections, not {count}"
            self._pause.wait(0.002)

    def await_frames(self, count: int, within_s: float = 10.0) -> None:
        """Until the server has taken so many frames in all."""
        deadline = time.monotonic() + within_s
        while self.node.counters["frames"] < count:
            assert time.monotonic() < deadline, f"{self.node.counters['frames']} frames, not {count}"
            self._pause.wait(0.002)

    def close(self) -> None:
        self.ingress.close()
        self._folder.cleanup()
        sys.setswitchinterval(self._switch_s)

    def __enter__(self) -> Served:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Session:
    """The normal client on one table of one server."""

    def __init__(
        self,
        spec: GroupSpec,
        target: Target,
        *,
        session: bytes | None = None,
        frame_bytes: int = 0,
        rpc_s: float = 30.0,
    ) -> None:
        self.session = session or secrets.token_bytes(16)
        self.heap = ArenaHeap() if target.kind == "shm" else None
        self.spec = spec
        self.clock = 0
        self.table = DenseTable(spec.layout, spec.store_id, self.heap)
        self.pump = Pump(self.session, KEY, self.heap, rpc_s=rpc_s)
        if frame_bytes:
            window = WindowCore(self.pump.window.server_of, frame_bytes=frame_bytes)
            self.pump.window = window
        self.pump.route(lambda _: 0, 1, {0: target})

    def ask(self, op: Op, values: np.ndarray | None = None, *, last: bool = True, close: bool = True) -> Ticket:
        """One request a block; `result()` of the ticket is the flat array that was pulled, if any."""
        layout = self.spec.layout
        source = target = None
        if values is not None:
            source = self.table.take_flat()
            source.array[: values.size] = values
        if op in (Op.PULL, Op.PUSH_PULL):
            target = self.table.take_flat()
        spans = self.table.spans((0,), source, target)

        def finish() -> Any:
            found = None if target is None else target.array[: layout.tensors[0].elements].copy()
            for flat in (source, target):
                if flat is not None:
                    self.table.give_flat(flat)
            return found

        ticket = Ticket(self.pump, op.name, len(spans), clock=self.clock, finish=finish)
        requests = [
            Request(
                op,
                self.spec.store_id,
                span.share,
                span.block,
                span.seg_begin,
                span.seg_end,
                owner=ticket,
                clock=self.clock,
                payload=span.payload,
                nbytes=span.payload.nbytes if span.payload is not None and self.heap is None else 0,
                out=span.out,
                last=last,
                nowait=op is Op.PULL,
            )
            for span in spans
        ]
        mark = None
        if close and op in (Op.PUSH, Op.PUSH_PULL):
            mark = Mark(self.spec.store_id, self.clock, (0,))
            self.clock += 1
        self.pump.submit(requests, mark)
        return ticket

    def init(self, values: np.ndarray) -> None:
        self.ask(Op.INIT, values).result(30.0)

    def pull(self) -> np.ndarray:
        found: np.ndarray = self.ask(Op.PULL).result(30.0)
        return found

    def push_pull(self, values: np.ndarray) -> np.ndarray:
        found: np.ndarray = self.ask(Op.PUSH_PULL, values).result(30.0)
        return found

    def close(self) -> None:
        self.pump.close()
        if self.heap is not None:
            self.heap.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def frame(entries: list[Entry], payload: bytes = b"", *, checksum: bool = True, **fields: int) -> bytes:
    """The bytes of one frame, header right unless `fields` say otherwise."""
    from windlass_proto.links.stream import checksum_of

    table = frames.pack_entries(entries)
    header = Header(Kind.REQUEST, 0, len(entries), STORE, len(payload), 1, 0, 0, 0)
    if checksum:
        header = header._replace(checksum=checksum_of(table, [memoryview(payload)] if payload else []))
    return frames.pack_header(header._replace(**fields)) + table + payload


def push_entry(spec: GroupSpec, block: int, seq: int, /, *, offset: int = 0, **fields: Any) -> Entry:
    """A push_pull of one whole block whose values lie at `offset` of the payload."""
    shape = spec.layout.blocks[block]
    entry = Entry(
        op=Op.PUSH_PULL,
        status=0,
        flags=EntryFlag.LAST,
        table=spec.layout.table_id,
        block=block,
        tag=seq,
        seq=seq,
        clock=0,
        seg_begin=0,
        seg_end=len(shape.segments),
        offset=offset,
        nbytes=shape.elements * spec.layout.dtype.itemsize,
        arena=0,
        out_arena=0,
        out_offset=0,
        weight=1.0,
        stamp=0,
        vshard=shape.vshard,
        aux=0,
    )
    return entry._replace(**fields)
