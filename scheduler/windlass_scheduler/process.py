"""The scheduler as a process: binds its port, serves until told to stop, stops everything it started.

    TCP port P   gRPC
    UDP port P   beats

It stops on SIGTERM or SIGINT, at the end of the parent's pipe (so that it never outlives who started it,
whatever killed that one), or when its state can no longer be written.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

import grpc

from windlass_proto import beats
from windlass_proto.errors import ProtocolError, UnavailableError
from windlass_proto.gen import control_pb2_grpc
from windlass_scheduler import limits
from windlass_scheduler.cluster import Cluster
from windlass_scheduler.config import SchedulerConfig
from windlass_scheduler.service import ControlService
from windlass_scheduler.state import StateStore
from windlass_scheduler.token_check import TokenCheck

_log = logging.getLogger("windlass.scheduler")

_SERVER_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", limits.MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)
_PORT_TRIES: Final = 16


class BeatSocket(asyncio.DatagramProtocol):
    """Hears beats; what is not one of this cluster is counted and dropped."""

    def __init__(self, key: bytes, heard: Callable[[beats.Beat], None]) -> None:
        self._key = key
        self._heard = heard
        self.dropped = 0

    def datagram_received(self, raw: bytes, _sender: object) -> None:
        try:
            beat = beats.unpack_untrusted(raw, self._key)
        except ProtocolError:
            self.dropped += 1
            return
        self._heard(beat)


class Scheduler:
    """A running scheduler in this event loop: `start()`, then `address`, then `stop()`."""

    def __init__(self, config: SchedulerConfig) -> None:
        self._config = config
        self._state = StateStore(config.state_path)
        self._server: grpc.aio.Server | None = None
        self._beats: asyncio.DatagramTransport | None = None
        self._port = 0
        self.cluster: Cluster | None = None

    @property
    def address(self) -> str:
        return _joined(self._config.host, self._port)

    async def start(self) -> None:
        """Bind and serve.

        Raises:
            UnavailableError: if the port is in use.
            UsageError: if the stored cluster is another one.
        """
        try:
            cluster = self.cluster = Cluster(self._config, self._state, secrets.token_hex(8))
            await self._bind(cluster)
        except BaseException:
            await self.stop()
            raise

    async def _bind(self, cluster: Cluster) -> None:
        key = beats.derive_key(self._config.token, cluster.cluster_id)
        for attempt in range(_PORT_TRIES):
            server = grpc.aio.server(
                interceptors=[TokenCheck(self._config.token)],
                options=_SERVER_OPTIONS,
                maximum_concurrent_rpcs=limits.RPCS_MAX,
            )
            control_pb2_grpc.add_ControlServicer_to_server(ControlService(cluster, lambda: self._port), server)
            port = _bound(server, self._config)
            try:
                self._beats = await self._beats_on(port, key, cluster)
            except OSError as cause:
                await server.stop(None)
                if self._config.port or attempt == _PORT_TRIES - 1:
                    raise _in_use(self._config.host, port, f"UDP: {cause.strerror}") from cause
                continue
            self._server, self._port = server, port
            await server.start()
            return

    async def _beats_on(self, port: int, key: bytes, cluster: Cluster) -> asyncio.DatagramTransport:
        loop = asyncio.get_running_loop()
        host = self._config.host.strip("[]")
        transport, _ = await loop.create_datagram_endpoint(
            lambda: BeatSocket(key, cluster.beat), local_addr=(host, port)
        )
        return transport

    async def stop(self) -> None:
        """Close watch streams, stop serving, close the state; what waits is cut and asks again."""
        if self.cluster is not None:
            self.cluster.watchers.end_all()
            await self.cluster.close()
        if self._server is not None:
            await self._server.stop(0.2)
            self._server = None
        if self._beats is not None:
            self._beats.close()
            self._beats = None
        await asyncio.get_running_loop().run_in_executor(None, self._state.close)


def _bound(server: grpc.aio.Server, config: SchedulerConfig) -> int:
    if config.port:
        _try_to_bind(config.host, config.port)  # gRPC would print its own lines about a port in use
    try:
        port: int = server.add_insecure_port(_joined(config.host, config.port))
    except RuntimeError as cause:
        raise _in_use(config.host, config.port, "TCP") from cause
    if port == 0:
        raise _in_use(config.host, config.port, "TCP")
    return port


def _try_to_bind(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
        except OSError as cause:
            raise _in_use(host, port, f"TCP: {cause.strerror}") from cause


def _in_use(host: str, port: int, reason: str) -> UnavailableError:
    return UnavailableError(
        f"port {port} on {host} cannot be bound: it is in use, or the address is not this host's",
        reason=reason,
        next_move="Stop what listens there, or choose another --listen port (0 takes a free one).",
    )


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


async def run(config: SchedulerConfig, parent_fd: int | None, ready_fd: int | None) -> None:
    """Serve until a signal, the end of the parent's pipe, or (raised) a state that cannot be written."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if parent_fd is not None:
        os.set_blocking(parent_fd, False)
        loop.add_reader(parent_fd, _parent_read, parent_fd, stop)
    scheduler = Scheduler(config)
    await scheduler.start()
    assert scheduler.cluster is not None
    cluster = scheduler.cluster
    _log.info("scheduler_started address=%s cluster=%s", scheduler.address, cluster.cluster_id)
    if ready_fd is not None:
        line = json.dumps({"address": scheduler.address, "cluster_id": cluster.cluster_id}) + "\n"
        os.write(ready_fd, line.encode())
        os.close(ready_fd)
    stopped = loop.create_task(stop.wait())
    try:
        ends: list[asyncio.Future[Any]] = [stopped, cluster.failed]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()
        if parent_fd is not None:
            loop.remove_reader(parent_fd)
        await scheduler.stop()
        _log.info("scheduler_stopped address=%s", scheduler.address)
    if cluster.failed.done():
        cluster.failed.result()


def _parent_read(fd: int, stop: asyncio.Event) -> None:
    """The parent never writes: what can be read is the end of its pipe."""
    if not os.read(fd, 4096):
        stop.set()
