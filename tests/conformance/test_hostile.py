"""Hostile peers: they lose their connection, the process lives, and a good client beside them sees nothing of it.

Everything runs on live sockets against a server of this process, so what it forgets of threads and descriptors fails
the test.
"""

from __future__ import annotations

import contextlib
import math
import random
import secrets
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from tests.conformance.neighbour import ELEMENTS, MIB, answers, beside_a_good_client, block_bytes, is_closed
from tests.conformance.served import KEY, STORE, TABLE, Served, Session, frame, push_entry
from windlass.data_link import open_socket
from windlass_proto import errors, frames, limits
from windlass_proto.errors import ClosedError, UnavailableError, UsageError
from windlass_proto.frames import Entry, Flag, Header, Kind, Op, Status
from windlass_proto.group_specs import GroupSpec
from windlass_proto.links import preamble
from windlass_proto.rule_records import DECLARED, change_of, to_bytes, with_change
from windlass_proto.rule_specs import SGD

# ---- before the preamble is over -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_wrong_token_is_refused_on_both_sides(kind: str) -> None:
    with beside_a_good_client(kind) as (served, _, _):
        wrong = preamble.link_key(b"another-token", "a-cluster")
        with pytest.raises(UsageError, match="does not know this cluster's token"):
            open_socket(served.targets[kind], wrong, bytes(16), 5.0)
        other_cluster = preamble.link_key(b"a-token-of-the-tests", "another-cluster")
        with pytest.raises(UsageError, match="does not know this cluster's token"):
            open_socket(served.targets[kind], other_cluster, bytes(16), 5.0)


def connect(served: Served) -> socket.socket:
    host, _, port = served.targets["tcp"].address.rpartition(":")
    return socket.create_connection((host, int(port)), 5.0)


HELLO = struct.pack("<4sHH16s32sQ", b"WLP1", 1, 1, bytes(16), bytes(32), 0)


def test_a_peer_that_answers_the_challenge_wrongly_is_told_only_that() -> None:
    with beside_a_good_client() as (served, _, _):
        sock = connect(served)
        sock.sendall(HELLO)
        assert len(sock.recv(96, socket.MSG_WAITALL)) == 96
        sock.sendall(bytes(32))
        verdict, size = struct.unpack("<4sI", sock.recv(8, socket.MSG_WAITALL))
        assert verdict == b"WLNO"
        told = errors.from_wire_untrusted(sock.recv(size, socket.MSG_WAITALL))
        assert "does not accept this token" in str(told)
        assert is_closed(sock)
        sock.close()


def test_a_recorded_preamble_opens_nothing() -> None:
    with beside_a_good_client() as (served, _, _):
        recorded: list[bytes] = []

        class Recording(socket.socket):
            def sendall(self, raw: Any, flags: int = 0) -> None:
                recorded.append(bytes(raw))
                super().sendall(raw, flags)

        with Recording(fileno=connect(served).detach()) as recording:
            preamble.greet(recording, KEY, bytes(16), timeout_s=5.0)
        hello, proof = recorded
        sock = connect(served)
        sock.sendall(hello)
        sock.recv(96, socket.MSG_WAITALL)
        sock.sendall(proof)
        assert sock.recv(4, socket.MSG_WAITALL) == b"WLNO"
        assert is_closed(sock)
        sock.close()


@pytest.mark.parametrize(
    "opening",
    [
        b"GET / HTTP/1.1\r\nHost: here\r\n\r\n".ljust(64),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".ljust(64, b"\0"),
        bytes(64),
        b"\xff" * 4096,
        b"WLP1" + b"\xff" * 60,
        frames.pack_header(Header(Kind.REQUEST, 0, 0, 0, 0, 0, 0, 0, 0)),
        b"\x16\x03\x01\x02\x00\x01" + bytes(64),
    ],
    ids=["HTTP/1.1", "HTTP/2", "zeros", "ones", "a false preamble", "a frame", "TLS"],
)
def test_garbage_on_the_data_port_ends_its_own_connection(opening: bytes) -> None:
    with beside_a_good_client() as (served, _, _):
        sock = connect(served)
        with contextlib.suppress(OSError):  # the server may have closed it by then
            sock.sendall(opening)
            sock.shutdown(socket.SHUT_WR)
        assert is_closed(sock)
        sock.close()


def test_an_unknown_protocol_version_is_refused_in_words() -> None:
    with beside_a_good_client() as (served, _, _):
        hello = struct.pack("<4sHH16s32sQ", b"WLP1", 900, 901, bytes(16), bytes(32), 0)
        sock = connect(served)
        sock.sendall(hello)
        challenge = sock.recv(96, socket.MSG_WAITALL)
        import hmac

        sock.sendall(hmac.digest(KEY, b"client" + hello + challenge, "sha256"))
        verdict, size = struct.unpack("<4sI", sock.recv(8, socket.MSG_WAITALL))
        assert verdict == b"WLNO"
        assert "900..901" in str(errors.from_wire_untrusted(sock.recv(size, socket.MSG_WAITALL)))
        sock.close()


def test_a_session_that_has_ended_is_turned_away_with_the_reason() -> None:
    with beside_a_good_client() as (served, _, _):
        link = served.raw_link("tcp", b"e" * 16)
        served.ingress.end_session(b"e" * 16, "its lease ran out")
        assert is_closed(link)
        with pytest.raises(ClosedError, match="lease ran out"):
            served.raw_link("tcp", b"e" * 16)
        link.close()


def test_slow_and_silent_peers_are_dropped_and_keep_nobody_out() -> None:
    """Half handshakes by the hundred, each fed byte by byte or not at all, while good clients come and go."""
    with beside_a_good_client() as (served, spec, neighbour):
        began = time.monotonic()
        before = threading.active_count()
        lorises = []
        for number in range(limits.HANDSHAKES_MAX * 2):
            sock = connect(served)
            sock.sendall(HELLO[: number % 64])
            lorises.append(sock)
            if number % 16 == 0:
                with Session(spec, served.targets["tcp"]) as session:
                    session.init(np.zeros(ELEMENTS, np.float32))
                neighbour.step()
        assert threading.active_count() <= before + limits.HANDSHAKES_MAX + 4
        stop = began + limits.HANDSHAKE_S + 2.0
        for sock in lorises:
            while time.monotonic() < stop:
                try:
                    sock.sendall(b"\0")
                except OSError:
                    break
                if is_closed(sock, 0.05):
                    break
            assert is_closed(sock, 0.2)
            sock.close()
        assert time.monotonic() - began < limits.HANDSHAKE_S + 4.0


def test_a_server_out_of_seats_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECTIONS_MAX", 4)
    with beside_a_good_client() as (served, _, neighbour):
        seated = [served.raw_link() for _ in range(3)]
        with pytest.raises(UnavailableError, match="as many connections as it takes"):
            served.raw_link()
        neighbour.step()
        seated.pop().close()
        served.await_connections(3)
        seated.append(served.raw_link())
        for sock in seated:
            sock.close()


def test_a_server_out_of_descriptors_goes_on_when_there_are_some_again() -> None:
    import resource

    with beside_a_good_client() as (served, _, neighbour):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        sock = socket.socket()
        host, _, port = served.targets["tcp"].address.rpartition(":")
        resource.setrlimit(resource.RLIMIT_NOFILE, (sock.fileno() + 1, hard))
        try:
            sock.connect((host, int(port)))
            neighbour.step()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        sock.settimeout(5.0)
        preamble.greet(sock, KEY, bytes(16), timeout_s=5.0)
        sock.close()


# ---- frames that lie -------------------------------------------------------------------------------------------------


def lying_header(**fields: int) -> Callable[[GroupSpec], bytes]:
    def craft(_: GroupSpec) -> bytes:
        names = ("kind", "version", "flags", "count", "store", "payload", "generation", "clock", "checksum", "number")
        values = dict.fromkeys(names, 0) | {"kind": 1, "version": 1} | fields
        raw = struct.pack("<4sBBHIIQQQQI8x", b"WLF1", *(values[name] for name in names))
        return raw + struct.pack("<I", zlib.crc32(raw))

    return craft


def lying_entry(payload: bytes | None = None, **fields: Any) -> Callable[[GroupSpec], bytes]:
    def craft(spec: GroupSpec) -> bytes:
        return frame([push_entry(spec, 0, 1, **fields)], block_bytes(spec) if payload is None else payload)

    return craft


def rule_record(names: str, values: dict[str, Any]) -> bytes:
    record = with_change(DECLARED, change_of(names, TABLE, values), 0)
    raw = to_bytes(record)
    entry = Entry(Op.SET_RULE, 0, 0, STORE, 0, 0, 0, 0, 0, 0, 0, len(raw), 0, 0, 0, 1.0, 1, 0, 0)
    return frame([entry], raw)


LIES: dict[str, Callable[[GroupSpec], bytes]] = {
    "length 2^63": lying_header(payload=2**63),
    "length 2^64 - 1": lying_header(payload=2**64 - 1),
    "longer than a frame may be": lying_header(payload=limits.FRAME_PAYLOAD_BYTES_MAX + 1),
    "too many entries": lying_header(count=limits.FRAME_ENTRIES_MAX + 1),
    "entries by the billion": lying_header(count=2**32 - 1),
    "another version": lying_header(version=9),
    "an unknown kind": lying_header(kind=77),
    "an answer": lying_header(kind=Kind.ANSWER),
    "an answer with values": lying_header(kind=Kind.ANSWER, payload=4096),
    "a shared segment without memory": lying_header(kind=Kind.ARENA, clock=4096),
    "a shared segment with values": lying_header(kind=Kind.ARENA, payload=MIB),
    "a goodbye with values": lying_header(kind=Kind.GOODBYE, payload=MIB),
    "a mark out of reach": lambda _: frame([], flags=Flag.MARK, clock=2**63),
    "a mark that leaves, out of reach": lambda _: frame([], flags=Flag.MARK | Flag.LEAVE, clock=2**64 - 1),
    "values beyond the payload": lying_entry(offset=64),
    "values at the end of the world": lying_entry(offset=2**64 - 64),
    "values off the line": lying_entry(offset=8, nbytes=64),
    "fewer values than segments": lying_entry(nbytes=64),
    "no values": lying_entry(payload=b"", nbytes=0),
    "segments beyond the block": lying_entry(seg_end=2),
    "segments by the billion": lying_entry(seg_end=2**32 - 1),
    "no segments": lying_entry(seg_end=0),
    "reversed segments": lying_entry(seg_begin=1, seg_end=0),
    "a block beyond the table": lying_entry(block=10_000),
    "an unknown operation": lying_entry(op=200),
    "operation 0": lying_entry(op=0),
    "an operation not for servers": lying_entry(op=Op.STATS),
    "a clock out of reach": lying_entry(clock=2**63),
    "a pull's clock out of reach": lying_entry(op=Op.PULL, clock=2**64 - 1),
    "a weight that is no number": lying_entry(weight=math.nan),
    "an infinite weight": lying_entry(weight=math.inf),
    "a negative weight": lying_entry(weight=-1.0),
    "memory that was not attached": lying_entry(arena=1),
    "room that was not attached": lying_entry(out_arena=9),
    "a declaration without bytes": lying_entry(op=Op.DECLARE, nbytes=0, payload=b""),
    "a declaration of noise": lying_entry(op=Op.DECLARE),
    "a rule record without bytes": lying_entry(op=Op.SET_RULE, table=STORE, nbytes=0, payload=b""),
    "a rule record that is too long": lying_entry(op=Op.SET_RULE, table=STORE),
    "a rule record of noise": lying_entry(op=Op.SET_RULE, table=STORE, nbytes=64),
    "a rule record that fits no tensor": lambda _: rule_record("w", {"momentum": 0.9}),
    "a rule record with an invalid value": lambda _: rule_record("*", {"lr": -1.0}),
    "an order without bytes": lying_entry(op=Op.CHECKPOINT, nbytes=0, payload=b""),
    "an order of noise": lying_entry(op=Op.CHECKPOINT),
    "a reading without bytes": lying_entry(op=Op.READ, nbytes=0, payload=b""),
    "a reading of noise": lying_entry(op=Op.READ),
    "a checksum of another frame": lambda spec: frame([push_entry(spec, 0, 1)], block_bytes(spec), checksum=False),
}


def test_frames_that_lie_end_their_own_connection() -> None:
    with beside_a_good_client() as (served, spec, neighbour):
        with Session(spec, served.targets["tcp"]) as first:
            first.init(np.zeros(ELEMENTS, np.float32))
        for name, craft in LIES.items():
            sock = served.raw_link()
            sock.sendall(craft(spec))
            assert is_closed(sock), name
            sock.close()
            neighbour.step()
        assert not served.weights().any(), "a lie was applied"


def test_a_table_that_is_not_there_is_said_and_the_link_stands() -> None:
    with beside_a_good_client() as (served, spec, _):
        sock = served.raw_link()
        sock.sendall(frame([push_entry(spec, 0, 1, table=999)], block_bytes(spec)))
        assert answers(sock, 1)[1].status == Status.UNKNOWN
        sock.close()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_rejected_and_the_step_goes_on(value: float) -> None:
    with beside_a_good_client() as (served, spec, _):
        with Session(spec, served.targets["tcp"]) as first:
            first.init(np.zeros(ELEMENTS, np.float32))
        sock = served.raw_link()
        sock.sendall(frame([push_entry(spec, 0, 1)], block_bytes(spec, value=value)))
        sock.sendall(frame([push_entry(spec, 0, 2)], block_bytes(spec)))
        found = answers(sock, 2)
        assert [found[1].status, found[2].status] == [Status.REJECTED, Status.OK]
        assert np.isfinite(served.weights()).all()
        sock.close()


def test_pulls_that_wait_without_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    with beside_a_good_client() as (served, _, neighbour):
        monkeypatch.setattr(limits, "OPEN_ENTRIES_MAX", 100)
        sock = served.raw_link()
        far = neighbour.steps + 50
        for first in (0, 60):
            pulls = [push_entry(neighbour.spec, 0, first + i, op=Op.PULL, clock=far, nbytes=0) for i in range(60)]
            sock.sendall(frame(pulls))
        assert is_closed(sock)
        sock.close()


def test_a_mark_from_nowhere_holds_up_no_other_store() -> None:
    with beside_a_good_client() as (served, _, neighbour):
        sock = served.raw_link()
        for store in range(1000, 1200):
            sock.sendall(frame([], flags=Flag.MARK, clock=5, store=store))
        neighbour.step()
        assert not any(store >= 1000 for store in served.node._marks)
        sock.close()


OPS = (Op.PUSH, Op.PULL, Op.PUSH_PULL, Op.INIT, Op.ASSIGN, Op.DECLARE, Op.DROP, Op.CHECKPOINT)


def mutate(raw: bytes, chooser: random.Random) -> bytes:
    """A frame with a few bytes changed, cut, doubled or replaced; half of them with a header that is right again."""
    made = bytearray(raw)
    for _ in range(chooser.randint(1, 4)):
        at = chooser.randrange(min(len(made), frames.HEADER_BYTES + 2 * frames.ENTRY_BYTES))
        match chooser.randrange(4):
            case 0:
                made[at] ^= 1 << chooser.randrange(8)
            case 1:
                made[at : at + 8] = struct.pack("<Q", chooser.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
            case 2:
                made[at : at + 4] = chooser.randbytes(4)
            case _:
                del made[at + chooser.randrange(1, 64) :]
        made = made or bytearray(raw)
    if chooser.random() < 0.7 and len(made) >= frames.HEADER_BYTES:
        made[:4] = b"WLF1"
        made[60:64] = struct.pack("<I", zlib.crc32(bytes(made[:60])))
    return bytes(made)


@pytest.mark.parametrize("count", [1500, pytest.param(10_000, marks=pytest.mark.large)])
def test_mutated_frames_on_live_sockets_disturb_nobody(count: int) -> None:
    """On a Unix link no checksum hides what the frames say, so each change reaches the code behind it."""
    chooser = random.Random(42)
    with beside_a_good_client("unix", pool_bytes=64 * MIB) as (served, spec, neighbour):
        with Session(spec, served.targets["unix"]) as first:
            first.init(np.zeros(ELEMENTS, np.float32))
        process = psutil.Process()
        rss = peak = process.memory_info().rss
        sock: socket.socket | None = None
        session, seq = secrets.token_bytes(16), 0
        for number in range(count):
            if sock is None:
                session, seq = secrets.token_bytes(16), 0
                sock = served.raw_link("unix", session)
                sock.setblocking(False)
            seq += 1
            ops = chooser.choice(
                (Op.PUSH, Op.PULL, Op.PUSH_PULL, Op.INIT, Op.ASSIGN, Op.DECLARE, Op.DROP, Op.CHECKPOINT)
            )
            entry = push_entry(spec, chooser.randrange(3), seq, op=ops, table=chooser.choice((TABLE, 999)))
            raw = frame([entry], block_bytes(spec, entry.block), checksum=False, flags=chooser.choice((0, Flag.MARK)))
            try:
                sock.send(mutate(raw, chooser))
                while sock.recv(1 << 16):
                    pass
                ended = True
            except BlockingIOError:
                ended = False
            except OSError:
                ended = True
            if ended or chooser.random() < 0.05:
                sock.close()
                sock = None
            if number % 25 == 0:
                neighbour.step()
                peak = max(peak, process.memory_info().rss)
        if sock is not None:
            sock.close()
        assert peak - rss < 400 * MIB
        assert served.ingress._acceptor.is_alive()


@pytest.mark.parametrize("factor", [1.5, -0.5, math.inf])
def test_a_push_that_says_it_is_clipped_by_more_than_1_or_less_than_0_ends_its_own_connection(factor: float) -> None:
    with beside_a_good_client() as (served, _, _):
        spec = served.declare(ELEMENTS, table=60, rule=SGD(lr=1.0, clip_norm=1.0))
        sock = served.raw_link()
        sock.sendall(frame([push_entry(spec, 0, 1, weight=factor)], block_bytes(spec)))
        assert is_closed(sock)
        sock.close()
