"""The answers that one connection still has to send.

Any thread posts; the connection's own turns what is here into frames, those of a higher priority first, when the link
can take one.

Invariants: `answers_bytes` is what posted values hold until their frame has left or they were dropped, and each of them
is released once. Answers about one block keep their order, so that nobody reads an older version after a newer one: who
would be overtaken takes over the priority. The lock is held only to append or to take.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from windlass_proto import limits
from windlass_proto.memory import Buffer
from windlass_server.replies import Reply


class Outbox:
    """See the module."""

    def __init__(self) -> None:
        self.answers_bytes = 0  # of values, queued or under way
        self.answered = 0  # entries
        self._lock = threading.Lock()
        self._replies: dict[int, deque[Reply]] = {}  # by priority; none is empty
        self._closed = False

    def __bool__(self) -> bool:
        return bool(self._replies)

    def post(self, reply: Reply) -> None:
        """Queue an answer, whose connection must then be woken; it is dropped once that has ended."""
        with self._lock:
            self.answered += 1
            if not self._closed:
                self._queue(reply)
                if reply.snapshot is not None:
                    self.answers_bytes += reply.snapshot.array.nbytes
                return
        if reply.snapshot is not None:
            reply.snapshot.release()

    def _queue(self, reply: Reply) -> None:
        priority = reply.origin.priority
        replies = self._replies.get(priority)
        if replies is None:
            replies = self._replies[priority] = deque()
        if len(self._replies) > 1:
            self._hurry(reply, replies)
        replies.append(reply)

    def _hurry(self, reply: Reply, replies: deque[Reply]) -> None:
        """Earlier answers about the block of `reply` go ahead of it."""
        place = (reply.origin.table, reply.block)
        for priority in sorted((p for p in self._replies if p < reply.origin.priority), reverse=True):
            lower = self._replies[priority]
            replies.extend(other for other in lower if (other.origin.table, other.block) == place)
            kept = deque(other for other in lower if (other.origin.table, other.block) != place)
            if kept:
                self._replies[priority] = kept
            else:
                del self._replies[priority]

    def while_open(self, action: Callable[[], None]) -> None:
        """Do `action` unless the connection has ended, which it does not meanwhile."""
        with self._lock:
            if not self._closed:
                action()

    def close(self) -> None:
        """Nothing more is sent."""
        with self._lock:
            self._closed = True
            dropped = [reply for replies in self._replies.values() for reply in replies]
            self._replies.clear()
        for reply in dropped:
            if reply.snapshot is not None:
                reply.snapshot.release()

    def next_batch(self) -> list[Reply]:
        """Take what goes into one frame."""
        batch: list[Reply] = []
        nbytes = 0
        with self._lock:
            while self._replies and len(batch) < limits.FRAME_ENTRIES_MAX:
                first = max(self._replies)
                replies = self._replies[first]
                snapshot = replies[0].snapshot
                size = snapshot.array.nbytes if snapshot is not None else 0
                if batch and nbytes + size > limits.FRAME_PAYLOAD_BYTES_TARGET:
                    break
                nbytes += size
                batch.append(replies.popleft())
                if not replies:
                    del self._replies[first]
        return batch

    def releasing(self, snapshots: list[Buffer]) -> Callable[[], None] | None:
        """What gives the snapshots of a frame back once it has left."""
        if not snapshots:
            return None

        def release() -> None:
            with self._lock:
                self.answers_bytes -= sum([snapshot.array.nbytes for snapshot in snapshots])
            for snapshot in snapshots:
                snapshot.release()

        return release
