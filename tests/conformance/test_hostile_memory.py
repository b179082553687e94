"""Hostile shared memory and floods: what a peer holds of a server is bounded, what it lends cannot be taken back."""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import socket
import threading
from typing import Any

import numpy as np
import pytest

from tests.conformance.link_ends import memfd
from tests.conformance.neighbour import ELEMENTS, MIB, answers, beside_a_good_client, block_bytes, is_closed
from tests.conformance.served import STORE, Served, Session, frame, push_entry
from windlass_proto import frames, limits, rule_specs
from windlass_proto.frames import EntryFlag, Header, Kind, Op, Status
from windlass_proto.gen import control_pb2 as pb
from windlass_proto.links import arena

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


# ---- shared memory ---------------------------------------------------------------------------------------------------


def attach(sock: socket.socket, descriptors: list[int], size: int, number: int = 1) -> None:
    header = frames.pack_header(Header(Kind.ARENA, 0, 0, number, 0, 0, size, 0, 0))
    rights = array.array("i", descriptors)
    sock.sendmsg([header], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def wrong_descriptors(folder: str) -> dict[str, tuple[list[int], int]]:
    """Descriptors in place of a sealed memfd, and the size told with them."""
    path = os.path.join(folder, "file")
    with open(path, "wb") as file:
        file.write(bytes(MIB))
    read, write = os.pipe()
    return {
        "a pipe's read end": ([read], MIB),
        "a pipe's write end": ([write], MIB),
        "a regular file": ([os.open(path, os.O_RDWR)], MIB),
        "a device": ([os.open("/dev/zero", os.O_RDWR)], MIB),
        "a folder": ([os.open(folder, os.O_RDONLY)], MIB),
        "a socket": ([socket.socket().detach()], MIB),
        "an unsealed memfd": ([memfd(MIB)], MIB),
        "a memfd that may grow": ([memfd(MIB, seals=fcntl.F_SEAL_SHRINK)], MIB),
        "a memfd that may shrink": ([memfd(MIB, seals=fcntl.F_SEAL_GROW)], MIB),
        "a memfd smaller than told": ([memfd(MIB, seals=SEALS)], 2 * MIB),
        "a memfd larger than told": ([memfd(2 * MIB, seals=SEALS)], MIB),
        "an empty memfd": ([memfd(0, seals=SEALS)], 0),
        "a memfd of holes": ([memfd(1 << 33, seals=SEALS, allocate=False)], 1 << 33),
        "more than one descriptor": ([memfd(MIB, seals=SEALS) for _ in range(3)], MIB),
        "descriptors by the hundred": ([memfd(MIB, seals=SEALS) for _ in range(100)], MIB),
    }


def test_what_is_no_sealed_memory_ends_its_own_connection(tmp_path: Any) -> None:
    with beside_a_good_client("shm") as (served, _, neighbour):
        for name, (descriptors, size) in wrong_descriptors(str(tmp_path)).items():
            sock = served.raw_link("unix")
            attach(sock, descriptors, size)
            for descriptor in descriptors:
                os.close(descriptor)
            assert is_closed(sock), name
            sock.close()
            neighbour.step()


def test_a_segment_is_attached_once_and_within_the_bounds() -> None:
    with beside_a_good_client("shm") as (served, _, _):
        passed = memfd(4096, seals=SEALS)
        sock = served.raw_link("unix")
        attach(sock, [passed], 4096, 1)
        attach(sock, [passed], 4096, 1)
        assert is_closed(sock)
        sock.close()
        sock = served.raw_link("unix")
        for number in range(1, limits.ARENA_SEGMENTS_MAX + 2):
            try:
                attach(sock, [passed], 4096, number)
            except OSError:
                break
        assert is_closed(sock)
        sock.close()
        os.close(passed)


def shared_link(served: Served, size: int) -> tuple[socket.socket, arena.SharedSegment]:
    sock, segment = served.raw_link("unix"), arena.SharedSegment.create(size)
    attach(sock, [segment.descriptor], size)
    return sock, segment


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": 64},
        {"offset": 2**63},
        {"offset": 2**64 - 64},
        {"offset": 8},
        {"arena": 2},
        {"out_arena": 1, "out_offset": 64},
        {"out_arena": 1, "out_offset": 2**64 - 64},
        {"out_arena": 1, "out_offset": 1},
        {"out_arena": 2},
    ],
)
def test_an_entry_that_leaves_its_segment_ends_its_own_connection(fields: dict[str, int]) -> None:
    with beside_a_good_client("shm") as (served, spec, _):
        sock, segment = shared_link(served, spec.layout.blocks[0].elements * 4)
        sock.sendall(frame([push_entry(spec, 0, 1, **({"arena": 1} | fields))], checksum=False))
        assert is_closed(sock)
        sock.close()
        segment.close()


def test_a_segment_cannot_be_cut_under_the_server() -> None:
    with beside_a_good_client("shm") as (served, spec, _), Session(spec, served.targets["shm"]) as session:
        session.init(np.zeros(ELEMENTS, np.float32))
        assert session.heap is not None
        for segment in session.heap.segments:
            with pytest.raises(PermissionError):
                os.ftruncate(segment.descriptor, 0)
        # Punching holes is allowed; whoever reads them finds zeros.
        os.posix_fadvise(session.heap.segments[0].descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert (session.push_pull(np.ones(ELEMENTS, np.float32)) == -1).all()


def test_values_rewritten_while_the_server_reads_harm_their_writer_alone() -> None:
    with beside_a_good_client("shm") as (served, spec, neighbour):
        with Session(spec, served.targets["shm"]) as first:
            first.init(np.zeros(ELEMENTS, np.float32))
        size = spec.layout.blocks[0].elements * 4
        sock, segment = shared_link(served, size)
        stop = threading.Event()

        def rewrite() -> None:
            chooser = np.random.default_rng(1)
            while not stop.is_set():
                segment.array[:] = chooser.integers(0, 256, size, dtype=np.uint8)

        writer = threading.Thread(target=rewrite)
        writer.start()
        try:
            for seq in range(1, 40):
                sock.sendall(frame([push_entry(spec, 0, seq, arena=1, out_arena=1, tag=seq)], checksum=False))
                fate = answers(sock, 1, checksum=False)[seq].status
                assert fate in (Status.OK, Status.REJECTED)
                if seq % 10 == 0:
                    neighbour.step()
        finally:
            stop.set()
            writer.join()
        sock.close()
        segment.close()


# ---- floods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", [Op.PULL, Op.PUSH_PULL])
def test_a_flood_that_reads_no_answer_stays_within_the_pool(op: Op) -> None:
    pool = 16 * MIB
    with beside_a_good_client(pool_bytes=pool) as (served, spec, _):
        with Session(spec, served.targets["tcp"]) as first:
            first.init(np.zeros(ELEMENTS, np.float32))
        sock, before = served.raw_link(), served.node.counters["frames"]
        values = block_bytes(spec) if op is Op.PUSH_PULL else b""
        peak = 0
        for seq in range(1, 1001):
            fields: dict[str, Any] = {} if values else {"nbytes": 0, "flags": EntryFlag.NOWAIT}
            sock.sendall(frame([push_entry(spec, 0, seq, op=op, tag=seq, **fields)], values))
            peak = max(peak, served.pool.bytes_lent)
        served.await_frames(before + 1000)
        assert max(peak, served.pool.bytes_lent) <= pool + 2 * MIB
        found = {entry.status for entry in answers(sock, 1000).values()}
        assert Status.RETRY in found
        sock.close()


def test_a_peer_that_has_stopped_reading_delays_nobody() -> None:
    """Its answers take their part of the pool and no more, so there is room for others' pushes and pulls."""
    with beside_a_good_client(pool_bytes=16 * MIB) as (served, spec, neighbour):
        with Session(spec, served.targets["tcp"]) as first:
            first.init(np.zeros(ELEMENTS, np.float32))
        stopped = [served.raw_link() for _ in range(2)]
        for sock in stopped:
            before = served.node.counters["frames"]
            for tag in range(1000):
                entry = push_entry(spec, 0, 0, op=Op.PULL, tag=tag, nbytes=0, flags=EntryFlag.NOWAIT)
                sock.sendall(frame([entry]))
            served.await_frames(before + 1000)
        assert not served.pool.full
        for _ in range(10):
            neighbour.step()
        for sock in stopped:
            sock.close()


def test_a_peer_that_reads_nothing_for_long_loses_its_link(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "RPC_S", 0.2)
    with beside_a_good_client() as (served, spec, _):
        with Session(spec, served.targets["tcp"]) as first:
            first.init(np.zeros(ELEMENTS, np.float32))
        sock = served.raw_link()
        with contextlib.suppress(ConnectionError):  # on a slow machine it is lost while it still asks
            for tag in range(1000):
                entry = push_entry(spec, 0, 0, op=Op.PULL, tag=tag, nbytes=0, flags=EntryFlag.NOWAIT)
                sock.sendall(frame([entry]))
        served.await_connections(1)
        assert served.pool.bytes_lent == 0
        sock.close()


def test_a_declaration_larger_than_memory_is_refused_in_words() -> None:
    with beside_a_good_client() as (served, spec, _):
        served.node.memory_bytes = limits.GIB
        group = pb.Group(
            table_id=99,
            dtype="float32",
            tensors=[pb.Tensor(name="w", dtype="float32", shape=[2**29], lr_mult=1.0, decay_mult=1.0)],
            block_elements=limits.BLOCK_ELEMENTS_MAX,
            rule=rule_specs.to_bytes(rule_specs.SGD(lr=1.0)),
            reduce="mean",
            store_id=STORE,
            consistency="asp",
            vshards=256,
        )
        raw = group.SerializeToString()
        entry = push_entry(spec, 0, 0, op=Op.DECLARE, tag=7, nbytes=len(raw))
        sock = served.raw_link()
        sock.sendall(frame([entry], raw + bytes(-len(raw) % 64)))
        assert answers(sock, 1)[7].status == Status.ERROR
        assert 99 not in served.node.groups
        sock.close()
