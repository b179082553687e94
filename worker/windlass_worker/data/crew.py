"""A loader's worker processes, as the loop sees them: orders out, batches back, in any order of arrival.

Invariants: a slot is free, or of one order that is out, or of one answer that is in, or leased to the loop. Every order
is answered, dropped, or ends in an error: a process that ends takes its connection along, and one that does not answer
meets a deadline. `close` leaves no process, descriptor or thread.

A batch goes to the loop in place, without a copy, and its slot is reused once the last array of it is gone. A loop that
keeps its batches would so take every slot; from the third that it holds on, batches are copied out.

Owner: the thread that iterates. Only `_free` is touched by others (wherever an array is collected), and a deque's
append is atomic.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
import weakref
from collections import deque
from multiprocessing import connection as connections
from multiprocessing import reduction
from typing import Any

import numpy as np

from windlass_proto.errors import UnavailableError, UsageError, from_wire_untrusted
from windlass_worker.data.collation import Collate, unpacked
from windlass_worker.data.dataset import Dataset, Rows
from windlass_worker.data.sample_process import ANSWER, ORDER, READY, Task, work
from windlass_worker.data.slots import Lease, Slot

_LEASED_IN_PLACE = 2  # the batch that the loop has, and the one it is given next
_END_S = 0.5
_KILLED_S = 5.0


class _Hand:
    """One process, the loop's end of its connection, and the slots of its orders by serial."""

    def __init__(self, process: Any, link: connections.Connection) -> None:
        self.process = process
        self.link = link
        self.orders: dict[int, int] = {}
        self.ready = False


class Crew:
    """`workers` processes with memory for `ahead` batches beside those that the loop holds.

    Raises:
        UsageError: the data set, or collate, cannot be sent to another process.
    """

    def __init__(
        self, dataset: Dataset, collate: Collate | None, *, seed: int, workers: int, ahead: int, timeout_s: float
    ) -> None:
        count = ahead + _LEASED_IN_PLACE
        self._timeout_s = timeout_s
        self._serial = 0
        self._in: dict[int, tuple[int, int, dict[str, Any]]] = {}
        self._dropped: set[int] = set()
        self._slots = [Slot.create() for _ in range(count)]
        self._free = deque(range(count))
        self._hands: list[_Hand] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            task = Task(dataset, collate, seed, count)
            for number in range(workers):
                self._hands.append(_started(number, task))
            for hand in self._hands:
                self._equip(hand)
            undo.pop_all()

    def _equip(self, hand: _Hand) -> None:
        try:
            for slot in self._slots:
                reduction.send_handle(hand.link, slot.descriptor, hand.process.pid)
        except OSError as cause:
            raise self._ended(hand) from cause

    def order(self, rows: Rows, epoch: int) -> int:
        """Have a batch made; its serial. At most `ahead` orders are out or in at a time."""
        self._serial += 1
        while not self._free:  # those of dropped orders come back
            self._receive(time.monotonic() + self._timeout_s)
        slot = self._free.popleft()
        hand = min(self._hands, key=lambda hand: len(hand.orders))
        self._slots[slot].put_rows(rows)
        hand.orders[self._serial] = slot
        try:
            hand.link.send_bytes(ORDER.pack(self._serial, epoch, slot, len(rows)))
        except OSError as cause:
            raise self._ended(hand) from cause
        return self._serial

    def batch(self, serial: int) -> Any:
        """The batch of an order, once.

        Raises:
            UsageError: it could not be made; the traceback is a note to the error.
            UnavailableError: a process ended, or did not answer in time.
        """
        deadline = time.monotonic() + self._timeout_s
        while serial not in self._in:
            self._receive(deadline)
        slot, size, answer = self._in.pop(serial)
        if "error" in answer:
            self._free.append(slot)
            error = from_wire_untrusted(answer["error"].encode())
            error.add_note("In the worker process:\n" + answer["traceback"])
            raise error
        return self._delivered(slot, size, answer["batch"])

    def drop(self, serials: list[int]) -> None:
        """Nobody asks for the batches of these orders any more."""
        for serial in serials:
            if serial in self._in:
                self._free.append(self._in.pop(serial)[0])
            else:
                self._dropped.add(serial)

    def _delivered(self, slot: int, size: int, layout: Any) -> Any:
        memory = self._slots[slot].reach(size)
        out = sum(len(hand.orders) for hand in self._hands) + len(self._in)
        leased = len(self._slots) - len(self._free) - out - 1
        if leased >= _LEASED_IN_PLACE:
            copy = memory[:size].copy()
            self._free.append(slot)
            return unpacked(layout, copy)
        lease = Lease(memory)
        weakref.finalize(lease, self._free.append, slot).atexit = False
        return unpacked(layout, np.asarray(lease))

    def _receive(self, deadline: float) -> None:
        """Take every answer that is there, or wait for one."""
        links = {hand.link: hand for hand in self._hands}
        arrived = connections.wait(list(links), max(0.0, deadline - time.monotonic()))
        if not arrived:
            late = [hand.process.pid for hand in self._hands if hand.orders]
            raise UnavailableError(
                "a batch was not made in time",
                timeout_s=self._timeout_s,
                processes=late,
                next_move="Look for what waits in the data set or its transforms, or give timeout_s=.",
            )
        for link in arrived:
            hand = links[link]  # type: ignore[index] # wait gives back what it was given
            try:
                answer = hand.link.recv_bytes()
            except (EOFError, OSError) as cause:
                raise self._ended(hand) from cause
            self._take(hand, answer)

    def _take(self, hand: _Hand, answer: bytes) -> None:
        hand.ready = True
        serial, size = ANSWER.unpack_from(answer)
        if serial == READY:
            return
        slot = hand.orders.pop(serial)
        if serial in self._dropped:
            self._dropped.discard(serial)
            self._free.append(slot)
        else:
            self._in[serial] = slot, size, json.loads(answer[ANSWER.size :])

    def _ended(self, hand: _Hand) -> UnavailableError:
        hand.process.join(_KILLED_S)
        if hand.ready:
            next_move = "Look for what ended it: the system, for want of memory, or a library of the data set's."
        else:
            next_move = (
                "Its own words are above. It imports the script anew: keep what the script does below "
                '`if __name__ == "__main__":`, and what it defines above.'
            )
        fact = "a worker process of a loader ended" + ("" if hand.ready else " before it was ready")
        return UnavailableError(fact, process=hand.process.pid, exit_status=hand.process.exitcode, next_move=next_move)

    def close(self) -> None:
        """End the processes; give the memory back, but for what the loop still holds. May be repeated."""
        hands, self._hands = self._hands, []
        for hand in hands:
            hand.link.close()
        deadline = time.monotonic() + _END_S
        for hand in hands:
            hand.process.join(max(0.0, deadline - time.monotonic()))
            if hand.process.is_alive():
                hand.process.kill()  # it is in a caller's transform, and owns nothing that must be put in order
                hand.process.join(_KILLED_S)
            hand.process.close()
        for slot in self._slots:
            slot.close()


def _started(number: int, task: Task) -> _Hand:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=True)
    try:
        # A daemon is ended with the interpreter, in which nobody may be left to close this crew.
        process = context.Process(target=work, args=(theirs, task), name=f"windlass-loader-{number}", daemon=True)
        process.start()
    except Exception as cause:
        ours.close()
        if isinstance(cause, RuntimeError):
            raise  # this process was spawned itself and imports its script: Python says so, and how to guard it
        raise UsageError(
            "a data set cannot be sent to worker processes",
            reason=f"{type(cause).__name__}: {cause}",
            next_move="Define what it uses (functions, classes) at a module's top level, or take num_workers=0.",
        ) from cause
    finally:
        theirs.close()
    return _Hand(process, ours)
