"""A loader's worker process: it makes the batches it is ordered, in slots of shared memory.

It starts anew (spawn: a fork would copy threads' locks and gRPC's state), gets the data set once, then the slots'
descriptors, and says that it is ready. An order is four numbers; its rows lie in its slot. The answer is the batch's
layout, or an error in words with its traceback. It ends when the loop's end of the connection closes, however that
came about; the terminal's Ctrl-C is the loop's to act on.
"""

from __future__ import annotations

import json
import signal
import struct
import traceback
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection

from windlass_proto.errors import UsageError, WindlassError, to_wire
from windlass_worker.data.collation import Collate, make_batch, packed
from windlass_worker.data.dataset import Dataset
from windlass_worker.data.slots import Slot

ORDER = struct.Struct("<qqqq")  # serial, epoch, slot, rows
ANSWER = struct.Struct("<qq")  # serial, and the slot's size in bytes; then JSON
READY = -1
_TRACEBACK_CHARACTERS_MAX = 16_384  # the answers of all orders must fit in a socket's buffer


@dataclass(frozen=True, slots=True)
class Task:
    """What a worker process is sent at its start."""

    dataset: Dataset
    collate: Collate | None
    seed: int
    slots: int


def work(connection: Connection, task: Task) -> None:
    """Serve orders until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        slots = [Slot(reduction.recv_handle(connection)) for _ in range(task.slots)]
        connection.send_bytes(ANSWER.pack(READY, 0))
        while True:
            serial, epoch, slot, rows = ORDER.unpack(connection.recv_bytes())
            answer = _answer(task, slots[slot], epoch, rows)
            connection.send_bytes(ANSWER.pack(serial, slots[slot].memory.size) + answer)
    except (EOFError, ConnectionError):
        return


def _answer(task: Task, slot: Slot, epoch: int, count: int) -> bytes:
    try:
        rows = slot.take_rows(count)
        batch = make_batch(task.dataset, rows, seed=task.seed, epoch=epoch, collate=task.collate, room=slot.room)
        return json.dumps({"batch": packed(batch, slot.place)}).encode()
    except Exception as error:  # noqa: BLE001 - the root of this process: every error is the loop's to see
        text = "".join(traceback.format_exception(error.__cause__ or error))
        if not isinstance(error, WindlassError):
            reason = f"{type(error).__name__}: {error}"
            error = UsageError("a batch could not be made", epoch=epoch, error=reason, next_move="Look at collate=.")
        return json.dumps({"error": to_wire(error).decode(), "traceback": text[-_TRACEBACK_CHARACTERS_MAX:]}).encode()
