"""A scheduler in a thread of the test's process, and members that talk to it over real loopback."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from windlass_proto import beats
from windlass_proto.control_link import Beater, ControlLink
from windlass_proto.errors import WindlassError
from windlass_proto.gen import control_pb2 as pb
from windlass_proto.rule_specs import SGD, to_bytes
from windlass_scheduler.config import SchedulerConfig
from windlass_scheduler.members import Timing
from windlass_scheduler.process import Scheduler

TOKEN = b"a-token-of-the-tests"
FAST = Timing(worker_beat_s=0.1, server_beat_s=0.1, worker_lease_s=1.5, server_lease_s=1.5, tick_s=0.02)
RULE = to_bytes(SGD(lr=0.1))


class RunningScheduler:
    """Start on `config`; `stop()` and `start()` again on the same state and port."""

    def __init__(self, folder: Path, servers: int = 1, timing: Timing = FAST) -> None:
        self.config = SchedulerConfig(
            host="127.0.0.1",
            port=0,
            state_path=folder,
            token=TOKEN,
            servers_declared=servers,
            timing=timing,
            vote_s=0.5,
        )
        self.address = ""
        self.start()

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scheduler-loop")
        self._thread.start()
        try:
            self.scheduler = asyncio.run_coroutine_threadsafe(self._started(), self._loop).result(10)
        except BaseException:
            self._stop_loop()
            raise
        self.address = self.scheduler.address
        port = int(self.address.rpartition(":")[2])
        self.config = dataclasses.replace(self.config, port=port)

    async def _started(self) -> Scheduler:
        scheduler = Scheduler(self.config)
        await scheduler.start()
        return scheduler

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._validated_stop(), self._loop).result(10)
        self._stop_loop()

    def _stop_loop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._loop.shutdown_default_executor(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
        gc.collect()  # grpc.aio ends its thread when the last of its objects is gone

    async def _validated_stop(self) -> None:
        assert self.scheduler.cluster is not None
        self.scheduler.cluster.validate()
        await self.scheduler.stop()

    def link(self, token: bytes = TOKEN, timeout_s: float = 5.0) -> ControlLink:
        return ControlLink(self.address, token, found_by="test", timeout_s=timeout_s)


class JoinedMember:
    """A member that watches and beats until `leave()` or `die()`."""

    def __init__(self, running: RunningScheduler, request: pb.JoinRequest) -> None:
        self.link = running.link()
        try:
            self.me = self.link.join(request)
        except WindlassError:
            self.link.close()
            raise
        self.session = self.me.session
        self.updates: queue.SimpleQueue[pb.Update] = queue.SimpleQueue()
        self.lost: queue.SimpleQueue[WindlassError] = queue.SimpleQueue()
        self.clocks: dict[int, int] = {}
        watch = pb.WatchRequest(member_id=self.me.member_id, session=self.session, metrics=True)
        self.link.watch(watch, self.updates.put, self.lost.put)
        self._beater = Beater(
            "127.0.0.1",
            self.me.beat_port,
            self.me.member_id,
            self.me.beat_s,
            beats.derive_key(TOKEN, self.me.cluster_id),
            oldest_frame_age_ms=lambda: 7,
            clocks=lambda: list(self.clocks.items()),
        )
        self.wait_for("snapshotted")

    def wait_for(
        self, kind: str, which: Callable[[pb.Update], bool] = lambda _update: True, timeout_s: float = 5.0
    ) -> pb.Update:
        """The next update of `kind` for which `which` holds; the ones before it are dropped."""
        while True:
            update = self.updates.get(timeout=timeout_s)
            if update.WhichOneof("what") == kind and which(update):
                return update

    def wait_for_roster(self, which: Callable[[pb.Roster], bool]) -> pb.Roster:
        return self.wait_for("roster", lambda update: which(update.roster)).roster

    def die(self) -> None:
        """Vanish as a killed process would: no beats, closed connections, no goodbye."""
        self._beater.close()
        self.link.close()

    def leave(self) -> None:
        self._beater.close()
        self.link.leave(pb.LeaveRequest(member_id=self.me.member_id, session=self.session))
        self.link.close()

    # Calls of a worker, with this member's session

    def open_store(self, name: str = "main", consistency: str = "bsp") -> int:
        request = pb.OpenStoreRequest(session=self.session, store=name, consistency=consistency)
        return self.link.open_store(request).store_id

    def declare(self, store_id: int, **shapes: tuple[int, ...]) -> pb.DeclareReply:
        return self.link.declare(declare_request(self.session, store_id, **shapes))

    def enter(self, store_id: int, timeout_s: float = 5.0) -> pb.EnterRosterReply:
        request = pb.EnterRosterRequest(session=self.session, store_id=store_id)
        return self.link.enter_roster(request, timeout_s)


def declare_request(session: bytes, store_id: int, **shapes: tuple[int, ...]) -> pb.DeclareRequest:
    tensors = [
        pb.Tensor(name=name, dtype="float32", shape=shape, lr_mult=1.0, decay_mult=1.0)
        for name, shape in shapes.items()
    ]
    return pb.DeclareRequest(session=session, store_id=store_id, tensors=tensors, rule=RULE, reduce="mean")


def server_request(**fields: Any) -> pb.JoinRequest:
    address = pb.Address(kind="tcp", address="127.0.0.1:1")
    given: dict[str, Any] = {
        "role": pb.ROLE_SERVER,
        "protocol_min": 1,
        "protocol_max": 1,
        "host": "here",
        "pid": 1,
    } | fields
    return pb.JoinRequest(**({"addresses": [address]} | given))


def worker_request(**fields: Any) -> pb.JoinRequest:
    given: dict[str, Any] = {
        "role": pb.ROLE_WORKER,
        "protocol_min": 1,
        "protocol_max": 1,
        "host": "here",
        "pid": 1,
    } | fields
    return pb.JoinRequest(**({"job": "digits"} | given))
