"""One worker's connection: a thread that receives, applies and answers.

Invariant: the thread polls for reading, writing and its wake-up at once and blocks in nothing else, so a worker that
does not read delays nobody, itself included. It runs cores and kernels itself: there is no hand-over between a frame's
arrival and its answer. Answers that other connections' threads release come through the outbox.

A peer that breaks the protocol loses this connection; the process and the other connections never notice.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from windlass_proto import checkpoint_orders, frames, group_specs, limits, own_readers, rule_records, weight_deltas
from windlass_proto.checkpoint_orders import SavedPart
from windlass_proto.consistency import Mode
from windlass_proto.errors import ProtocolError, UnavailableError, WindlassError
from windlass_proto.frames import Entry, EntryFlag, Flag, Header, Kind, Op, Status
from windlass_proto.layout import Block, GroupLayout
from windlass_proto.links import preamble
from windlass_proto.links.bell import Bell
from windlass_proto.links.stream import Frame, FrameReader, FrameWriter, Place
from windlass_proto.memory import Buffer
from windlass_proto.rule_records import DECLARED
from windlass_server import dense_rows
from windlass_server.answers import lay_out
from windlass_server.dense import DenseGroup, Share
from windlass_server.dense_memory import Gradient, Values, Vector
from windlass_server.dense_rows import NamedRows
from windlass_server.node import ServerNode
from windlass_server.outbox import Outbox
from windlass_server.peer_segments import PeerSegments
from windlass_server.readers import part_of_untrusted
from windlass_server.replies import Origin, Reply
from windlass_server.share_events import Push, deleted_error
from windlass_server.sparse import Rows, SparseTable

_LOG = logging.getLogger("windlass.server")
_SINK = memoryview(bytearray(limits.MIB))
_STALL_LOOK_MS = 1000
_FRAMES_A_TURN = 8
_DENSE_WRITES = frozenset({Op.PUSH, Op.PUSH_PULL, Op.INIT, Op.ASSIGN})
_ROW_WRITES = frozenset({Op.PUSH, Op.PUSH_PULL, Op.ERASE})
_ROW_READS = frozenset({Op.PULL, Op.STATS, Op.SCAN})
_WEIGHTS = frozenset({Op.PULL, Op.PUSH_PULL})
_WRITES = _DENSE_WRITES | _ROW_WRITES
_NO_BYTES = np.empty(0, np.uint8)
_NO_IDS = np.empty(0, np.uint64)
_NO_ROWS = np.empty(0, np.float32)


class Connection:
    """A link whose peer has proven the token.

    `serve` says so to it and runs, in a thread of its own, until the link ends or `stop` is called.
    """

    def __init__(
        self, sock: socket.socket, session: bytes, node: ServerNode, builder: Executor, *, local: bool
    ) -> None:
        self.sock = sock
        self.session = session
        self.node = node
        self.builder = builder
        self.local = local
        self.frame_began_s = 0.0
        self._reader = FrameReader(sock, self._place, checksum=not local, descriptors=local)
        self._writer = FrameWriter(sock, checksum=not local)
        self._segments = PeerSegments()
        self._outbox = Outbox()
        self._entries_taken = 0
        self._answers_bytes_max = min(limits.CREDIT_BYTES, node.pool.bytes_max // 4)
        self._stopping = False
        self._bell = Bell()
        self._woken: set[Connection] = set()
        self.ended = threading.Event()

    # ---- the thread --------------------------------------------------------------------------------------------------

    def serve(self) -> None:
        """Serve until the peer goes, breaks the protocol, or `stop` is called."""
        reason = "stopped"
        try:
            preamble.accept(self.sock)
            self._serve()
        except ProtocolError as error:
            reason = str(error)
            _LOG.warning("link_closed session=%s reason=%r", self.session.hex()[:8], reason)
        except UnavailableError as error:
            reason = str(error)
        except Exception:  # noqa: BLE001 - a thread's root: the process goes on
            reason = "an error of this server"
            _LOG.exception("connection_failed session=%s", self.session.hex()[:8])
        finally:
            self._close()

    def stop(self) -> None:
        """Ask the thread to end; called by any thread."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        """Make the thread look at its outbox."""
        self._outbox.while_open(self._bell.ring)  # else its number may be another socket's by now

    def _serve(self) -> None:
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.register(self.sock, select.POLLIN)
        writing = more = False
        written, since = 0, 0.0
        while not self._stopping:
            events_of = dict(poll.poll(0 if more else _STALL_LOOK_MS if writing else None))
            if writing and self._writer.bytes_written == written and time.monotonic() - since > limits.RPC_S:
                raise UnavailableError("the peer has taken none of its answers", waited_s=limits.RPC_S)
            if not writing or self._writer.bytes_written != written:
                written, since = self._writer.bytes_written, time.monotonic()
            if self._bell.fileno() in events_of:
                self._bell.hear()
            if more or events_of.get(self.sock.fileno(), 0) & ~select.POLLOUT:
                more = self._read_frames()
            self._send_answers()
            if self._writer.waiting() != writing:
                writing = not writing
                poll.modify(self.sock, select.POLLIN | (select.POLLOUT if writing else 0))

    def _read_frames(self) -> bool:
        """Take the frames that are there, up to a turn's worth; True if more may have been read already."""
        for _ in range(_FRAMES_A_TURN):
            frame = self._reader.read()
            if frame is None:
                return False
            self.frame_began_s = time.monotonic()
            self._take(frame)
            self.frame_began_s = 0.0
            self._send_answers()
            if not self._reader.mid_frame():
                return False
        return True

    def _close(self) -> None:
        self._outbox.close()
        self.node.drop_connection(self)
        self._writer.abandon()
        unfinished: Buffer | None = self._reader.close()
        if unfinished is not None:
            unfinished.release()
        self.sock.close()
        self._bell.close()
        self._segments.close()
        self.ended.set()

    # ---- receiving ---------------------------------------------------------------------------------------------------

    def _place(self, header: Header, entries: list[Entry]) -> Place:
        """Memory for a frame's payload; a sink when there is no room and nothing in it extends an open step."""
        if not header.payload_bytes:
            return Place([])
        if header.kind != Kind.REQUEST:
            raise ProtocolError("a frame of its kind carries no values", kind=header.kind)
        if not self._crowded():
            with contextlib.suppress(UnavailableError):
                buffer = self.node.pool.take(header.payload_bytes)
                return Place([buffer.array.data], buffer)
        if any(self._extends(entry) for entry in entries):
            buffer = self.node.pool.take(header.payload_bytes, beyond=True)
            return Place([buffer.array.data], buffer)
        whole, rest = divmod(header.payload_bytes, len(_SINK))
        return Place([_SINK] * whole + [_SINK[:rest]])

    def _crowded(self) -> bool:
        """Must this peer come again: is the pool lent out, or are too many of its answers still to be read?"""
        return self.node.pool.full or self._outbox.answers_bytes > self._answers_bytes_max

    def _extends(self, entry: Entry) -> bool:
        if entry.op in (Op.SET_RULE, Op.REDUCE):
            return True  # a step may complete by this frame's mark, and by no other version than this one; or by a norm
        group = self.node.groups.get(entry.table)
        share = group.share_of_block.get(entry.block) if group is not None else None
        if share is None or entry.op not in _WRITES:
            return False
        core = share.core
        return core.modes.at(entry.clock).mode is Mode.BSP and core.clocks.begun >= entry.clock

    def _take(self, frame: Frame) -> None:
        header = frame.header
        counters = self.node.counters
        counters["frames"] += 1
        if header.kind == Kind.REQUEST:
            buffer: Buffer | None = frame.placed
            refused = header.payload_bytes > 0 and buffer is None
            self._entries_taken += header.entry_count
            try:
                if self._entries_taken - self._outbox.answered > limits.OPEN_ENTRIES_MAX:
                    raise ProtocolError("a worker left too many entries open", open_max=limits.OPEN_ENTRIES_MAX)
                for entry in frame.entries:
                    self._take_entry(entry, buffer, refused)
            finally:
                if buffer is not None:
                    buffer.release()
            if header.flags & Flag.MARK:
                leaves = bool(header.flags & Flag.LEAVE)
                self.node.mark(header.store, self.session, header.clock, self._deliver, leaves=leaves)
            self.node.reductions.carry_out(self._deliver)
            self._wake_others()
        elif header.kind == Kind.ARENA:
            self._segments.attach_untrusted(frame)
        elif header.kind == Kind.GOODBYE:
            self._stopping = True
        else:
            raise ProtocolError("a worker sent a frame of another role", kind=header.kind)

    def _take_entry(self, entry: Entry, buffer: Buffer | None, refused: bool) -> None:
        if entry.op == Op.CHECKPOINT:
            self._carry_out(entry, buffer)
            return
        if entry.op == Op.REDUCE:
            self._reduce(entry, buffer)
            return
        if not Op.PUSH <= entry.op <= Op.READ:
            raise ProtocolError("an entry asks for an unknown operation", op=entry.op)
        if entry.op == Op.DECLARE:
            self._declare(entry, buffer)
            return
        if entry.op == Op.SET_RULE:
            self._set_rule(entry, buffer)
            return
        group = self.node.groups.get(entry.table)
        if group is None:
            self._reply_unknown(entry)
            return
        share = group.share_of_block.get(entry.block)
        if share is None:
            blocks = group.spec.vshards if isinstance(group, SparseTable) else len(group.spec.layout.blocks)
            if entry.block >= blocks:
                raise ProtocolError("an entry names a block that its table lacks", block=entry.block)
            self._reply_plain(entry, Status.FENCED)
            return
        if entry.op not in _WRITES and (refused or self._crowded()):
            self._reply_plain(entry, Status.RETRY)
            return
        if entry.op == Op.READ:
            self._have_read(entry, group, share, buffer)
        elif isinstance(group, SparseTable):
            self._run_rows(entry, group, share, buffer, refused)
        else:
            self._run(entry, group, share, buffer, refused)

    def _run(self, entry: Entry, group: DenseGroup, share: Share, buffer: Buffer | None, refused: bool) -> None:
        """One entry through its share's core. Five calls from here to the kernel: push, execute, apply, update, it."""
        block = group.spec.layout.blocks[entry.block]
        if not entry.seg_begin < entry.seg_end <= len(block.segments):
            raise ProtocolError("an entry names segments that its block lacks", end=entry.seg_end)
        layout = group.spec.layout
        if entry.clock > share.core.clocks.begun + limits.CLOCK_AHEAD_MAX:
            raise ProtocolError("an entry's step is out of reach", clock=entry.clock)
        op = entry.op
        named, raw = self._named(entry, block, layout, buffer) if not refused else (None, _NO_BYTES)
        out = None
        if entry.out_arena and named is not None:
            out = self._out(entry, named.elements * layout.dtype.itemsize, layout.dtype)
        elif entry.out_arena and not entry.flags & EntryFlag.ROWS:
            nbytes = group.wire.bytes_down(block, entry.seg_begin, entry.seg_end)
            out = self._out(entry, nbytes, group.wire.answers_in)
        says_base = group.wire.deltas and op in _WEIGHTS and not entry.flags & EntryFlag.ROWS
        base = entry.aux & weight_deltas.EXACT_BASE if says_base else 0
        group.check_base_untrusted(share, entry.block, base)
        origin = Origin(self, entry.tag, entry.table, op, out, named, frames.priority_of(entry), base)
        if op == Op.PULL:
            self._read(entry, group, share, origin)
            return
        if op == Op.DROP:
            self.node.drop(group, entry.block, entry.seg_begin, entry.seg_end, self._deliver)
            self._reply_plain(entry, Status.OK)
            return
        if op not in _DENSE_WRITES:
            raise ProtocolError("an entry asks for an unknown operation", op=op)
        stamp = self.node.record(group.spec.store_id, entry.stamp) if entry.stamp else DECLARED
        values, finite = (None, True) if refused else self._values(entry, group, share, buffer, named, raw)
        if values is not None and group.heeds_staleness:
            values = values._replace(read=entry.aux >> 32 if says_base else dense_rows.read_said(entry))
        if values is not None and values.replaced:
            origin = origin._replace(replaced=values.replaced)
        event = Push(
            origin, self.session, entry.seq, entry.clock, entry.block, entry.seg_begin, entry.seg_end, values,
            entry.weight, stamp, bool(entry.flags & EntryFlag.LAST), op == Op.PUSH_PULL,
            (finite and entry.weight == entry.weight) or not group.wire.looks,
        )  # fmt: skip
        counters = self.node.counters
        counters["pushes"] += 1
        counters["bytes_in"] += entry.nbytes
        with share.lock:
            if values is None:
                effects = share.core.refuse(event)
            elif stamp is None:
                effects = share.core.refuse(event, Status.UNKNOWN_STAMP)
            elif op == Op.INIT:
                effects = share.core.init(event)
            elif op == Op.ASSIGN:
                effects = share.core.assign(event)
            else:
                effects = share.core.push(event)
            group.execute(share, effects, self._deliver)

    def _named(
        self, entry: Entry, block: Block, layout: GroupLayout, buffer: Buffer | None
    ) -> tuple[NamedRows | None, npt.NDArray[np.uint8]]:
        """The rows that an entry names, and the bytes of its values; None if it is about whole segments."""
        raw = _NO_BYTES
        if not entry.flags & EntryFlag.ROWS:
            return None, raw
        if dense_rows.numbers_bytes_untrusted(entry, block, layout):
            raw, _ = self._raw(entry, entry.nbytes, buffer)
        return dense_rows.named_untrusted(raw, entry, block, layout), raw

    def _read(self, entry: Entry, group: DenseGroup, share: Share, origin: Origin) -> None:
        self.node.counters["pulls"] += 1
        clock = 0 if entry.flags & EntryFlag.NOWAIT else entry.clock
        with share.lock:
            effects = share.core.pull(origin, clock, entry.block, entry.seg_begin, entry.seg_end)
            group.execute(share, effects, self._deliver)

    def _run_rows(self, entry: Entry, table: SparseTable, share: Share, buffer: Buffer | None, refused: bool) -> None:
        """One entry of a sparse table through its band's core: `_run` for ids and rows."""
        if entry.clock > share.core.clocks.begun + limits.CLOCK_AHEAD_MAX:
            raise ProtocolError("an entry's step is out of reach", clock=entry.clock)
        op, counters = entry.op, self.node.counters
        if op == Op.DROP:
            self.node.drop(table, entry.block, 0, 1, self._deliver)
            self._reply_plain(entry, Status.OK)
            return
        writes = op in _ROW_WRITES
        if not writes and op not in _ROW_READS:
            raise ProtocolError("an entry asks a sparse table for what dense tensors do", op=op)
        nbytes = table.answer_bytes_untrusted(entry)
        out = self._out(entry, nbytes, table.wire.answers_in) if entry.out_arena and nbytes else None
        rows = None if refused else self._rows(entry, table, share, buffer)
        counted = op in (Op.SCAN, Op.STATS)
        asked = range(entry.seg_begin, entry.seg_end) if counted else rows.ids if rows is not None else None
        into, replaced = (out if op in (Op.PULL, Op.PUSH_PULL) else None), (rows.replaced if rows is not None else 0)
        priority = frames.priority_of(entry)
        origin = Origin(self, entry.tag, entry.table, op, into, asked, priority, replaced=replaced)
        if not writes:
            counters["pulls"] += 1
            clock = 0 if entry.flags & EntryFlag.NOWAIT else entry.clock
            with share.lock:
                table.execute(share, share.core.pull(origin, clock, entry.block, 0, 1), self._deliver)
            return
        counters["pushes"] += 1
        counters["bytes_in"] += entry.nbytes
        stamp = self.node.record(table.spec.store_id, entry.stamp) if entry.stamp else DECLARED
        event = Push(
            origin, self.session, entry.seq, entry.clock, entry.block, 0, 1, rows, entry.weight, stamp,
            bool(entry.flags & EntryFlag.LAST), op == Op.PUSH_PULL, rows is None or table.finite(rows),
        )  # fmt: skip
        if rows is not None and op != Op.ERASE:
            table.take_memory(entry.block, rows)
        with share.lock:
            if rows is None:
                effects = share.core.refuse(event)
            elif stamp is None:
                effects = share.core.refuse(event, Status.UNKNOWN_STAMP)
            elif op == Op.ERASE:
                effects = share.core.assign(event)
            else:
                if event.finite:
                    event = event._replace(refusal=table.make_room(share, self.session, entry.seq, rows))
                effects = share.core.push(event)
            table.execute(share, effects, self._deliver)

    def _rows(self, entry: Entry, table: SparseTable, share: Share, buffer: Buffer | None) -> Rows | None:
        """An entry's ids, copied out of what the peer may still change, and its rows; None: no room to decode them."""
        _check_weight(entry)
        if entry.op in (Op.STATS, Op.SCAN):
            return Rows(_NO_IDS, _NO_ROWS, None)
        ids_bytes, nbytes = table.ids_bytes_untrusted(entry)
        if not nbytes:
            return Rows(_NO_IDS, _NO_ROWS, None)
        raw, held = self._raw(entry, nbytes, buffer)
        ids = raw[:ids_bytes].view(np.uint64).copy()
        table.check_untrusted(entry.block, ids)
        if nbytes == ids_bytes:
            return Rows(ids, _NO_ROWS, None)
        rank = share.core.clocks.rank(self.session, -1)
        extends = table.wire.decodes and self._extends(entry)
        encoded = raw[frames.aligned(ids_bytes) :]
        values = table.wire.rows_untrusted(encoded, held, ids, rank, band=entry.block, extends=extends)
        if values is None:
            return None
        return Rows(ids, values.array, values.buffer, read=entry.aux, replaced=values.replaced)

    def _values(
        self,
        entry: Entry,
        group: DenseGroup,
        share: Share,
        buffer: Buffer | None,
        named: NamedRows | None,
        rows: npt.NDArray[np.uint8],
    ) -> tuple[Values | None, bool]:
        """An entry's values, or the gradient that `rows` of it stand for, where they wait, and whether all are finite.

        None where there is no room.
        """
        block, wire = group.spec.layout.blocks[entry.block], group.wire
        _check_weight(entry, factor=group.factors and entry.op in (Op.PUSH, Op.PUSH_PULL))
        rank = share.core.clocks.rank(self.session, -1)
        extends = (wire.decodes or named is not None) and self._extends(entry)
        what = Gradient(entry.op, block, entry.seg_begin, entry.seg_end, rank, extends)
        if named is not None:
            held = None if entry.arena else buffer
            return wire.rows_arrived_untrusted(named, rows, held, what, group.memory, lazy=group.lazy is not None)
        nbytes = wire.bytes_up(entry.op, block, entry.seg_begin, entry.seg_end)
        if entry.nbytes != nbytes:
            raise ProtocolError("an entry's values have another length", got=entry.nbytes, expected=nbytes)
        return wire.arrived_untrusted(*self._raw(entry, nbytes, buffer), what, group.memory)

    def _raw(self, entry: Entry, nbytes: int, buffer: Buffer | None) -> tuple[npt.NDArray[np.uint8], Buffer | None]:
        """The bytes of an entry's values where they are, and what must be held to keep them (None: shared memory)."""
        if entry.arena:
            return self._segments.part_untrusted(entry.arena, entry.offset, nbytes), None
        if buffer is None:
            raise ProtocolError("an entry came without its values", nbytes=nbytes)
        return buffer.array[entry.offset : entry.offset + nbytes], buffer

    def _out(self, entry: Entry, nbytes: int, dtype: np.dtype[np.floating]) -> Vector:
        return self._segments.part_untrusted(entry.out_arena, entry.out_offset, nbytes).view(dtype)

    def _set_rule(self, entry: Entry, buffer: Buffer | None) -> None:
        """A version of a store's hyper-parameters comes ahead of what is stamped with it; there is no answer."""
        if buffer is None or entry.arena or entry.nbytes > rule_records.RECORD_BYTES_MAX:
            raise ProtocolError("a rule record came without its bytes, or is too long", nbytes=entry.nbytes)
        raw = buffer.array[entry.offset : entry.offset + entry.nbytes].tobytes()
        self.node.set_rule(entry.table, self.session, entry.clock, rule_records.from_bytes_untrusted(raw))

    def _declare(self, entry: Entry, buffer: Buffer | None) -> None:
        """Rules are compiled in the builder's thread; the answer follows."""
        if buffer is None or entry.arena:
            raise ProtocolError("a declaration came without its bytes")
        spec = group_specs.from_bytes_untrusted(buffer.array[entry.offset : entry.offset + entry.nbytes].tobytes())
        origin = Origin(self, entry.tag, spec.table_id, Op.DECLARE, None)

        def build() -> None:
            status, error = Status.OK, None
            try:
                self.node.declare(spec)
                self.node.reductions.carry_out(hand_over)
            except WindlassError as refused:
                status, error = Status.ERROR, refused
            except Exception:  # noqa: BLE001 - a thread's root: the worker is told
                _LOG.exception("declaration_failed table=%d", spec.table_id)
                status = Status.ERROR
                error = UnavailableError("the server could not declare a table", table=spec.table_id)
            self.post(Reply(origin, status, 0, 0, 0, 0, None, error))
            self.wake()

        self.builder.submit(build)

    def _reduce(self, entry: Entry, buffer: Buffer | None) -> None:
        """Another server speaks of a norm that is added here; its total answers it, whoever brings the last partial."""
        if entry.arena or (entry.nbytes and buffer is None):
            raise ProtocolError("a partial norm came without its bytes")
        if not self.node.reductions.holds(entry.table) and entry.table not in self.node.groups:
            if self.node.is_dropped(entry.table):  # it was said, and is said again because its answer was lost
                self._reply_plain(entry, Status.OK)
            else:
                self._reply_unknown(entry)
            return
        raw = b"" if buffer is None else buffer.array[entry.offset : entry.offset + entry.nbytes].tobytes()
        origin = Origin(self, entry.tag, entry.table, Op.REDUCE, None)
        if self.node.reductions.hear_untrusted(entry, raw, origin):
            self._reply_plain(entry, Status.OK)

    def _carry_out(self, entry: Entry, buffer: Buffer | None) -> None:
        """An order for a checkpoint: answered when its phase is reached, by whatever thread reaches it."""
        if entry.arena or not entry.nbytes:
            raise ProtocolError("an order came without its bytes")
        if buffer is None:  # there was no room for them
            self._reply_plain(entry, Status.RETRY)
            return
        raw = buffer.array[entry.offset : entry.offset + entry.nbytes].tobytes()
        order = checkpoint_orders.from_bytes_untrusted(raw)
        origin = Origin(self, entry.tag, entry.table, Op.CHECKPOINT, None)

        def done(written: SavedPart | None, error: WindlassError | None) -> None:
            status, snapshot = Status.ERROR, None
            if error is None:
                status = Status.OK
                snapshot = self.node.pool.take(checkpoint_orders.ANSWER_BYTES, beyond=True)
                snapshot.array[:] = np.frombuffer(checkpoint_orders.pack_answer(written), np.uint8)
            self.post(Reply(origin, status, 0, 0, 0, 0, snapshot, error))
            self.wake()

        try:
            self.node.checkpoints.carry_out(self.session, order, done)
        except WindlassError as refused:
            done(None, refused)

    def _have_read(self, entry: Entry, group: DenseGroup | SparseTable, share: Share, buffer: Buffer | None) -> None:
        """A reader of a package is asked; it answers from a thread of its own."""
        if entry.arena or buffer is None:
            raise ProtocolError("a reading came without its bytes", nbytes=entry.nbytes)
        raw = buffer.array[entry.offset : entry.offset + entry.nbytes].tobytes()
        reading = own_readers.from_bytes_untrusted(raw)
        part = part_of_untrusted(entry, group, share)
        origin = Origin(self, entry.tag, entry.table, Op.READ, None)

        def done(answer: bytes, error: WindlassError | None) -> None:
            snapshot = None
            if error is None:
                snapshot = self.node.pool.take(own_readers.answer_room(reading.answer_bytes), beyond=True)
                own_readers.pack_answer(answer, snapshot.array)
            status = Status.OK if error is None else Status.ERROR
            self.post(Reply(origin, status, entry.block, entry.seg_begin, entry.seg_end, 0, snapshot, error))
            self.wake()

        try:
            self.node.readers.carry_out(reading, part, done)
        except WindlassError as refused:
            done(b"", refused)

    # ---- answering ---------------------------------------------------------------------------------------------------

    def post(self, reply: Reply) -> None:
        """Queue an answer for this connection; any thread may. Its thread must then be woken."""
        self._outbox.post(reply)

    def _deliver(self, reply: Reply) -> None:
        """Called under a share's lock: queue only; `_wake_others` rings afterwards."""
        connection: Connection = reply.origin.connection
        connection.post(reply)
        if connection is not self:
            self._woken.add(connection)

    def _wake_others(self) -> None:
        for connection in self._woken:
            connection.wake()
        self._woken.clear()

    def _reply_plain(self, entry: Entry, status: Status) -> None:
        origin = Origin(self, entry.tag, entry.table, Op(entry.op), None)
        self.post(Reply(origin, status, entry.block, entry.seg_begin, entry.seg_end, 0, None, None))

    def _reply_unknown(self, entry: Entry) -> None:
        if not self.node.is_dropped(entry.table):
            self._reply_plain(entry, Status.UNKNOWN)
            return
        origin = Origin(self, entry.tag, entry.table, Op(entry.op), None)
        error = deleted_error(table=entry.table)
        self.post(Reply(origin, Status.ERROR, entry.block, entry.seg_begin, entry.seg_end, 0, None, error))

    def _send_answers(self) -> None:
        """Turn the outbox into frames as far as the socket takes them: what waits longer may still be overtaken."""
        while self._writer.flush() and self._outbox:
            self._put(self._outbox.next_batch())

    def _put(self, replies: list[Reply]) -> None:
        batch = lay_out(replies)
        header = Header(Kind.ANSWER, 0, len(replies), 0, batch.payload_bytes, self.node.generation, 0, 0, 0)
        self.node.counters["bytes_out"] += batch.values_bytes
        self._writer.put(
            header, frames.pack_entries(batch.entries), batch.payload, self._outbox.releasing(batch.snapshots)
        )


def hand_over(reply: Reply) -> None:
    """Hand an answer to its connection from outside its thread."""
    reply.origin.connection.post(reply)
    reply.origin.connection.wake()


def _check_weight(entry: Entry, *, factor: bool = False) -> None:
    """`factor`: it is what a push is multiplied with; NaN says that its worker has no norm of it."""
    if factor and (entry.weight != entry.weight or 0.0 <= entry.weight <= 1.0):
        return
    if factor or not (0.0 <= entry.weight <= 1e30):
        raise ProtocolError("an entry's weight is out of range", weight=entry.weight)
