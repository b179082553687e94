"""The open watch streams: who gets which update, through a bounded queue each.

Servers come first in every broadcast, for workers wait on what servers know. A watcher whose queue is full is
cut off; it connects again and starts from a snapshot, which is smaller than what it missed.

Owner: the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

from windlass_proto.gen import control_pb2 as pb
from windlass_scheduler import limits
from windlass_scheduler.members import Member, Role


@dataclass(frozen=True, slots=True)
class Audience:
    """Who sees an update. `job` "" stands for all jobs; servers belong to every job."""

    servers: bool = True
    others: bool = True
    job: str = ""
    metrics_only: bool = False


@dataclass(slots=True)
class Watcher:
    """One stream; its queue ends with None when the scheduler closes it."""

    stream: int
    member: Member
    metrics: bool
    updates: asyncio.Queue[pb.Update | None] = field(default_factory=lambda: asyncio.Queue(limits.WATCHER_UPDATES_MAX))
    reading: asyncio.Task[object] | None = None
    cut: bool = False

    def sees(self, audience: Audience) -> bool:
        if audience.metrics_only and not self.metrics:
            return False
        if self.member.role is Role.SERVER:
            return audience.servers
        return audience.others and audience.job in ("", self.member.job)


class Watchers:
    def __init__(self) -> None:
        self._by_stream: dict[int, Watcher] = {}
        self._streams = 0

    def __iter__(self) -> Iterator[Watcher]:
        return iter(self._by_stream.values())

    def open(self, member: Member, metrics: bool) -> Watcher:
        self._streams += 1
        watcher = Watcher(self._streams, member, metrics, reading=asyncio.current_task())
        self._by_stream[watcher.stream] = watcher
        return watcher

    def close(self, watcher: Watcher) -> None:
        self._by_stream.pop(watcher.stream, None)

    def publish(self, update: pb.Update, audience: Audience) -> None:
        seeing = [watcher for watcher in self._by_stream.values() if watcher.sees(audience)]
        seeing.sort(key=lambda watcher: watcher.member.role is not Role.SERVER)
        for watcher in seeing:
            self._offer(watcher, update)

    def end(self, session: bytes) -> None:
        """Close the streams of a session that has ended, after what they were already sent."""
        for watcher in [w for w in self._by_stream.values() if w.member.session == session]:
            self._offer(watcher, None)

    def end_all(self) -> None:
        for watcher in list(self._by_stream.values()):
            self._offer(watcher, None)

    def _offer(self, watcher: Watcher, update: pb.Update | None) -> None:
        try:
            watcher.updates.put_nowait(update)
        except asyncio.QueueFull:
            self.close(watcher)
            watcher.cut = True
            if watcher.reading is not None:
                watcher.reading.cancel()
