"""The control plane as workers, servers and the command line use it: synchronous calls, one watch thread, one
beat thread.

    ControlLink   one method a call of control.proto; errors arrive as the class the scheduler raised
    Beater        a thread that sends UDP beats

While the scheduler restarts, calls are repeated with decorrelated jitter (Brooker, "Exponential Backoff And
Jitter") until their time is over: every call of the protocol finds its earlier answer when it is asked twice.
What the scheduler refused in words is never repeated. grpc and protobuf are imported when a link is made, not
with this module.

Owner: the process that connects. Each thread has a `close()` that stops and joins it; daemon threads only so
that a program that forgot to close can end.
"""

# grpc ships no types, so its replies are Any until a method says what it returns.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from windlass_proto import beats, limits
from windlass_proto.errors import (
    ClosedError,
    ProtocolError,
    UnavailableError,
    UsageError,
    WindlassError,
    from_wire_untrusted,
)

if TYPE_CHECKING:
    from windlass_proto.gen import control_pb2 as pb

_Reply = TypeVar("_Reply")

TOKEN_KEY: Final = "windlass-token"  # noqa: S105 - the name of the metadata key
_BACKOFF_S_MIN: Final = 0.05
_BACKOFF_S_MAX: Final = 1.0
_MESSAGE_BYTES_MAX: Final = 16 * limits.MIB
_OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
    ("grpc.use_local_subchannel_pool", 1),
)


class ControlLink:
    """A connection to the scheduler at `address` ("host:port").

    Args:
        token: the cluster's secret.
        found_by: where the address came from, for errors, e.g. "$WINDLASS_SCHEDULER".
        timeout_s: how long a call may take, its repetitions included, unless the call says otherwise.

    Every method takes `timeout_s` and raises what the scheduler raised, UnavailableError (with the address and where
    it came from) if the scheduler was not reached or did not answer in time, ClosedError after `close()`.
    """

    def __init__(
        self, address: str, token: bytes, *, found_by: str = "argument", timeout_s: float = limits.RPC_S
    ) -> None:
        import grpc

        from windlass_proto.gen import control_pb2_grpc

        text = token.decode("latin-1")
        if not (text.isascii() and text.isprintable()):
            raise UsageError(
                "the cluster token holds bytes that are not printable ASCII",
                bytes=len(token),
                next_move="Use the token file of this cluster, without line ends.",
            )
        self.address = address
        self.found_by = found_by
        self._timeout_s = timeout_s
        self._grpc = grpc
        self._metadata = ((TOKEN_KEY, text),)
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._stub = control_pb2_grpc.ControlStub(self._channel)
        self._closed = threading.Event()
        self._watch: _Watch | None = None

    # Calls

    def join(self, request: pb.JoinRequest, timeout_s: float | None = None) -> pb.JoinReply:
        """Become a member; `attempt` is filled in, so that a repeated join makes one member."""
        if not request.attempt:
            request.attempt = os.urandom(16)
        return self._call("Join", self._stub.Join, request, timeout_s)

    def leave(self, request: pb.LeaveRequest, timeout_s: float | None = None) -> pb.Ack:
        return self._call("Leave", self._stub.Leave, request, timeout_s)

    def open_store(self, request: pb.OpenStoreRequest, timeout_s: float | None = None) -> pb.OpenStoreReply:
        return self._call("OpenStore", self._stub.OpenStore, request, timeout_s)

    def declare(self, request: pb.DeclareRequest, timeout_s: float | None = None) -> pb.DeclareReply:
        return self._call("Declare", self._stub.Declare, request, timeout_s)

    def seal(self, request: pb.SealRequest, timeout_s: float | None = None) -> pb.Ack:
        return self._call("Seal", self._stub.Seal, request, timeout_s)

    def await_seal(self, request: pb.AwaitSealRequest, timeout_s: float | None = None) -> pb.AwaitSealReply:
        return self._call("AwaitSeal", self._stub.AwaitSeal, request, timeout_s)

    def enter_roster(self, request: pb.EnterRosterRequest, timeout_s: float | None = None) -> pb.EnterRosterReply:
        return self._call("EnterRoster", self._stub.EnterRoster, request, timeout_s)

    def vote(self, request: pb.VoteRequest, timeout_s: float | None = None) -> pb.Ack:
        return self._call("Vote", self._stub.Vote, request, timeout_s)

    def agree(self, request: pb.AgreeRequest, timeout_s: float | None = None) -> pb.AgreeReply:
        return self._call("Agree", self._stub.Agree, request, timeout_s)

    def agree_done(self, request: pb.AgreeDoneRequest, timeout_s: float | None = None) -> pb.Ack:
        return self._call("AgreeDone", self._stub.AgreeDone, request, timeout_s)

    def find_reader(self, request: pb.FindReaderRequest, timeout_s: float | None = None) -> pb.FindReaderReply:
        return self._call("FindReader", self._stub.FindReader, request, timeout_s)

    def barrier(self, request: pb.BarrierRequest, timeout_s: float | None = None) -> pb.BarrierReply:
        return self._call("Barrier", self._stub.Barrier, request, timeout_s)

    def broadcast(self, request: pb.BroadcastRequest, timeout_s: float | None = None) -> pb.BroadcastReply:
        return self._call("Broadcast", self._stub.Broadcast, request, timeout_s)

    def next_shard(self, request: pb.NextShardRequest, timeout_s: float | None = None) -> pb.NextShardReply:
        return self._call("NextShard", self._stub.NextShard, request, timeout_s)

    def log(self, request: pb.LogRequest, timeout_s: float | None = None) -> pb.Ack:
        return self._call("Log", self._stub.Log, request, timeout_s)

    def change_mode(self, request: pb.ChangeModeRequest, timeout_s: float | None = None) -> pb.ChangeModeReply:
        return self._call("ChangeMode", self._stub.ChangeMode, request, timeout_s)

    def report(self, request: pb.ReportRequest, timeout_s: float | None = None) -> pb.Ack:
        return self._call("Report", self._stub.Report, request, timeout_s)

    def status(self, timeout_s: float | None = None) -> pb.StatusReply:
        from windlass_proto.gen import control_pb2

        return self._call("Status", self._stub.Status, control_pb2.StatusRequest(), timeout_s)

    def _call(self, name: str, method: Callable[..., _Reply], request: object, timeout_s: float | None) -> _Reply:
        bound_s = self._timeout_s if timeout_s is None else timeout_s
        deadline_s = time.monotonic() + bound_s
        backoff = _backoff_s()
        while True:
            self._require_open()
            remaining_s = max(deadline_s - time.monotonic(), 0.001)
            try:
                return method(request, timeout=remaining_s, metadata=self._metadata)
            except self._grpc.RpcError as error:
                self._require_open()
                refused = _refusal(error)
                if refused is not None:
                    raise refused from None
                if not self._is_transient(error):
                    raise self._unavailable(name, error, bound_s) from error
                cause = error
            except ValueError as error:  # grpc raises it for a call on a closed channel
                self._require_open()
                raise ProtocolError("a call could not be made", call=name, reason=str(error)) from error
            pause_s = next(backoff)
            if time.monotonic() + pause_s >= deadline_s:
                raise self._unavailable(name, cause, bound_s) from cause
            self._closed.wait(pause_s)

    def _is_transient(self, error: Any) -> bool:
        """Whether the scheduler may only be away: nothing it said itself."""
        return error.code() in (self._grpc.StatusCode.UNAVAILABLE, self._grpc.StatusCode.CANCELLED)

    def _unavailable(self, name: str, error: Any, timeout_s: float) -> UnavailableError:
        code = error.code()
        if code is self._grpc.StatusCode.DEADLINE_EXCEEDED:
            what, next_move = (
                "the scheduler did not answer in time",
                "`windlass status` shows what it waits for.",
            )
        else:
            what, next_move = (
                "the scheduler cannot be reached",
                "Check that it runs and that the address is right.",
            )
        return UnavailableError(
            what,
            address=self.address,
            address_from=self.found_by,
            call=name,
            timeout_s=round(timeout_s, 1),
            reason=f"{code.name}: {str(error.details())[:200]}",
            next_move=next_move,
        )

    def _require_open(self) -> None:
        if self._closed.is_set():
            raise ClosedError("the link to the scheduler is closed", address=self.address)

    # Watching

    def watch(
        self,
        request: pb.WatchRequest,
        on_update: Callable[[pb.Update], None],
        on_lost: Callable[[WindlassError], None],
    ) -> None:
        """Start the watch thread: every update goes to `on_update`, in order, from that thread.

        A lost stream is opened again with jitter, until `close()`, and begins with a snapshot; `on_lost` hears of each
        loss. If the scheduler refuses the watch (the session has ended), or `on_update` raised
        a WindlassError, `on_lost` hears that error and the thread ends.
        """
        self._require_open()
        if self._watch is not None:
            raise ClosedError("this link watches already", address=self.address)
        self._watch = _Watch(self, request, on_update, on_lost)
        self._watch.thread.start()

    def close(self) -> None:
        """Stop watching, join the thread, close the channel; calls under way raise ClosedError."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._watch is not None:
            self._watch.close()
        self._channel.close()

    def __enter__(self) -> ControlLink:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _Watch:
    """The watch thread of a link. Owner: the link; `_stream` is handed over under `_lock`."""

    def __init__(
        self,
        link: ControlLink,
        request: pb.WatchRequest,
        on_update: Callable[[pb.Update], None],
        on_lost: Callable[[WindlassError], None],
    ) -> None:
        self._link = link
        self._request = request
        self._on_update = on_update
        self._on_lost = on_lost
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._stream: Any = None
        self.thread = threading.Thread(target=self._run, name="windlass-watch", daemon=True)

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._stream is not None:
                self._stream.cancel()
        if self.thread is not threading.current_thread():
            self.thread.join()

    def _run(self) -> None:
        try:
            self._follow()
        finally:
            with self._lock:
                self._stream = None

    def _follow(self) -> None:
        backoff = _backoff_s()
        while not self._closed.is_set():
            try:
                for update in self._opened():
                    backoff = _backoff_s()
                    if self._closed.is_set():
                        return
                    self._on_update(update)
                lost: WindlassError = self._lost("the scheduler closed it")
            except self._link._grpc.RpcError as error:
                # The error is the stream itself, and its traceback refers to it. Left to the collector it would be
                # deleted while the interpreter ends, and its `__del__` waits there for ever for a lock that gRPC's own
                # thread held when it was stopped.
                error.with_traceback(None)
                refused = _refusal(error)
                if refused is not None and not self._closed.is_set():
                    self._on_lost(refused)
                    return
                lost = self._lost(f"{error.code().name}: {str(error.details())[:200]}")
            except WindlassError as error:
                if not self._closed.is_set():
                    self._on_lost(error)
                return
            if self._closed.is_set():
                return
            self._on_lost(lost)
            self._closed.wait(next(backoff))

    def _opened(self) -> Iterator[pb.Update]:
        with self._lock:
            if self._closed.is_set():
                return iter(())
            self._stream = self._link._stub.Watch(self._request, metadata=self._link._metadata)
            stream: Iterator[pb.Update] = self._stream
            return stream

    def _lost(self, reason: str) -> UnavailableError:
        return UnavailableError(
            "the watch stream to the scheduler was lost",
            address=self._link.address,
            address_from=self._link.found_by,
            reason=reason,
        )


class Beater:
    """A thread that sends one beat each `beat_s` to the scheduler until `close()`.

    Args:
        scheduler_host: as in the scheduler's address; `beat_port`, `member_id`, `beat_s`: as its join reply says.
        key: `beats.derive_key(token, cluster_id)`.
        oldest_frame_age_ms: asked at each beat; read stamps that the applying threads write.
        clocks: asked at each beat; (store id, clock) pairs.
    """

    def __init__(
        self,
        scheduler_host: str,
        beat_port: int,
        member_id: int,
        beat_s: float,
        key: bytes,
        *,
        oldest_frame_age_ms: Callable[[], int],
        clocks: Callable[[], Sequence[tuple[int, int]]],
    ) -> None:
        self._member_id = member_id
        self._beat_s = beat_s
        self._key = key
        self._oldest_frame_age_ms = oldest_frame_age_ms
        self._clocks = clocks
        self._closed = threading.Event()
        self._peer = (scheduler_host.strip("[]"), beat_port)
        self._thread = threading.Thread(target=self._run, name="windlass-beats", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        counter = 0
        with _datagram_socket(self._peer) as send:
            while True:
                counter += 1
                send(beats.pack(self._member_id, counter, self._oldest_frame_age_ms(), self._clocks(), self._key))
                if self._closed.wait(self._beat_s):
                    return


@contextmanager
def _datagram_socket(peer: tuple[str, int]) -> Iterator[Callable[[bytes], None]]:
    """A connected UDP socket as a function; a beat that cannot be sent is lost like any datagram."""
    opened: list[socket.socket] = []

    def send(datagram: bytes) -> None:
        try:
            if not opened:
                family, kind, protocol, _, address = socket.getaddrinfo(*peer, type=socket.SOCK_DGRAM)[0]
                opened.append(socket.socket(family, kind, protocol))
                opened[0].connect(address)
            opened[0].send(datagram)
        except OSError:
            return  # nobody listens just now, or the name does not resolve: the next beat tries again

    try:
        yield send
    finally:
        for found in opened:
            found.close()


def _backoff_s() -> Iterator[float]:
    """Pauses with decorrelated jitter: uniform between the least pause and three times the last one."""
    pause_s = _BACKOFF_S_MIN
    while True:
        pause_s = min(_BACKOFF_S_MAX, random.uniform(_BACKOFF_S_MIN, 3 * pause_s))
        yield pause_s


def _refusal(error: Any) -> WindlassError | None:
    """What the scheduler said in a status, or None where the status is gRPC's own."""
    details = error.details() or ""
    if not details.startswith("{"):
        return None
    try:
        return from_wire_untrusted(details.encode())
    except ProtocolError:
        return None
