"""The pump against a real server: nothing deadlocks, nothing is lost, nothing is applied twice."""

from __future__ import annotations

import random
import socket
import threading

import numpy as np
import pytest

from tests.cluster.fault_proxy import FaultProxy, Faults
from tests.conformance.served import Served, Session, frame, push_entry
from windlass.data_link import Target
from windlass_proto import frames, limits
from windlass_proto.errors import UnavailableError
from windlass_proto.frames import Header, Op, Status
from windlass_proto.links.stream import FrameReader, Place

KINDS = ("tcp", "unix", "shm")
MIB = limits.MIB
BLOCK = 16 * limits.KIB


def upstream(target: Target) -> tuple[str, int]:
    host, _, port = target.address.rpartition(":")
    return host, int(port)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["asp", "bsp"])
def test_values_come_back_as_the_rule_left_them(kind: str, mode: str) -> None:
    with Served() as served:
        spec = served.declare(100_000, consistency=mode)
        with Session(spec, served.targets[kind]) as session:
            served.count(session.session)
            start = np.arange(100_000, dtype=np.float32)
            session.init(start)
            np.testing.assert_array_equal(session.push_pull(np.ones(100_000, np.float32)), start - 1)
            np.testing.assert_array_equal(session.pull(), start - 1)
        served.validate()
        np.testing.assert_array_equal(served.weights(), start - 1)
        served.await_connections(0)
        assert served.pool.bytes_lent == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("nbytes", [64 * MIB, pytest.param(1024 * MIB, marks=pytest.mark.large)])
def test_small_frames_of_a_large_model_flow_both_ways(kind: str, nbytes: int) -> None:
    with Served() as served:
        spec = served.declare(nbytes // 4, block_elements=BLOCK)
        with Session(spec, served.targets[kind], frame_bytes=64 * limits.KIB) as session:
            session.init(np.zeros(nbytes // 4, np.float32))
            found = session.push_pull(np.ones(nbytes // 4, np.float32))
            assert (found == -1).all()
        assert served.pool.bytes_lent <= served.pool.bytes_max


class RawClient:
    """Writes frames of one block each, whatever comes back; reads when told to."""

    def __init__(self, served: Served, kind: str) -> None:
        self.sock = served.raw_link(kind)
        self.checksum = kind == "tcp"
        self.statuses: dict[int, int] = {}

    def write(self, entry: frames.Entry, values: bytes) -> None:
        self.sock.sendall(frame([entry], values, checksum=self.checksum))

    def read_answers(self, count: int) -> None:
        """Until so many entries have been answered."""
        reader = FrameReader(self.sock, self._place, checksum=self.checksum)
        wanted = len(self.statuses) + count
        seen = 0
        while seen < count:
            found = reader.read()
            assert found is not None, f"{seen} of {count} answers came, {wanted} wanted"
            for entry in found.entries:
                seen += 1
                self.statuses[entry.tag] = entry.status

    def _place(self, header: Header, _: list[frames.Entry]) -> Place:
        return Place([memoryview(bytearray(header.payload_bytes))])


@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("nbytes", [64 * MIB, pytest.param(1024 * MIB, marks=pytest.mark.large)])
def test_a_client_that_reads_nothing_until_it_has_written_all_blocks_nobody(kind: str, nbytes: int) -> None:
    """What does not fit the server's memory is sent away to come again; all of it arrives in the end, once."""
    pool_bytes = nbytes // 4
    with Served(pool_bytes=pool_bytes) as served:
        spec = served.declare(nbytes // 4, block_elements=BLOCK)
        with Session(spec, served.targets[kind]) as good:
            good.init(np.zeros(nbytes // 4, np.float32))
        client = RawClient(served, kind)
        values = np.ones(BLOCK, np.float32).tobytes()
        seq_of: dict[int, int] = {}
        left = []
        for block in spec.layout.blocks:
            seq = seq_of[block.vshard] = seq_of.get(block.vshard, 0) + 1
            left.append((block.index, seq))
        rounds = peak = 0
        while left:
            for tag, (block_index, seq) in enumerate(left):
                client.write(push_entry(spec, block_index, seq, tag=tag), values)
                peak = max(peak, served.pool.bytes_lent)
            client.statuses.clear()
            client.read_answers(len(left))
            fates = [Status(client.statuses[tag]) for tag in range(len(left))]
            assert set(fates) <= {Status.OK, Status.RETRY, Status.GAP}
            assert Status.OK in fates
            left = [item for item, fate in zip(left, fates, strict=True) if fate is not Status.OK]
            rounds += 1
        assert rounds > 1
        assert peak <= pool_bytes + limits.FRAME_PAYLOAD_BYTES_TARGET
        assert (served.weights() == -1).all()
        client.sock.close()
        served.await_connections(0)
        assert served.pool.bytes_lent == 0
        served.validate()


def ledger_lanes(worker: int, number: int, elements: int) -> np.ndarray:
    """Push `number` of `worker`: one to its count, the number to its sum, a small integer everywhere else."""
    values = np.full(elements, number % 5 + 1, np.float32)
    values[2 * worker] = 1
    values[2 * worker + 1] = number
    return values


@pytest.mark.parametrize("mode", ["bsp", "asp"])
@pytest.mark.parametrize("faults", [Faults(cut_every=11), Faults(truncate_every=11), Faults(corrupt_every=11)])
def test_every_push_is_applied_once_however_often_the_link_breaks(mode: str, faults: Faults) -> None:
    elements, pushes, workers = 3 * BLOCK, 40, 2
    with Served() as served:
        spec = served.declare(elements, consistency=mode)
        with FaultProxy(upstream(served.targets["tcp"]), seed=3) as proxy:
            sessions = [Session(spec, Target("tcp", proxy.address)) for _ in range(workers)]
            served.count(*(session.session for session in sessions))
            sessions[0].init(np.zeros(elements, np.float32))
            proxy.faults = faults
            errors: list[BaseException] = []

            def work(rank: int) -> None:
                try:
                    for number in range(1, pushes + 1):
                        sessions[rank].push_pull(ledger_lanes(rank, number, elements))
                except BaseException as error:  # noqa: BLE001 - shown by the assertion below
                    errors.append(error)

            threads = [threading.Thread(target=work, args=(rank,)) for rank in range(workers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60.0)
            assert not errors
            assert proxy.struck > 10
            proxy.faults = Faults()
            held = -sessions[0].pull()
            for session in sessions:
                session.close()
        total = sum(number % 5 + 1 for number in range(1, pushes + 1))
        for rank in range(workers):
            assert held[2 * rank : 2 * rank + 2].tolist() == [
                pushes + (workers - 1) * total,
                pushes * (pushes + 1) / 2 + (workers - 1) * total,
            ]
        assert (held[2 * workers :] == workers * total).all()
        served.validate()
        served.await_connections(0)
        assert served.pool.bytes_lent == 0


def test_a_held_link_delays_its_own_worker_alone() -> None:
    with Served() as served:
        spec = served.declare(1000)
        with FaultProxy(upstream(served.targets["tcp"])) as proxy:
            held, free = Session(spec, Target("tcp", proxy.address)), Session(spec, served.targets["tcp"])
            held.init(np.zeros(1000, np.float32))
            proxy.faults = Faults(hold=True)
            ticket = held.ask(Op.PUSH_PULL, np.ones(1000, np.float32))
            for _ in range(20):
                free.push_pull(np.ones(1000, np.float32))
            assert not ticket.done()
            proxy.faults = Faults()
            assert (ticket.result(10.0) == -21).all()
            held.close()
            free.close()


def test_delayed_answers_are_answers() -> None:
    with Served() as served:
        spec = served.declare(1000)
        with (
            FaultProxy(upstream(served.targets["tcp"]), Faults(delay_s=0.01)) as proxy,
            Session(spec, Target("tcp", proxy.address)) as session,
        ):
            session.init(np.zeros(1000, np.float32))
            tickets = [session.ask(Op.PUSH_PULL, np.ones(1000, np.float32)) for _ in range(10)]
            found = [ticket.result(10.0)[0] for ticket in tickets]
            assert found == sorted(found, reverse=True)
            assert found[-1] == -10


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_that_the_server_closes_is_made_again(kind: str) -> None:
    """With several segments of shared memory, all of which the new link must hear of."""
    with Served() as served:
        spec = served.declare(8 * MIB)
        with Session(spec, served.targets[kind]) as session:
            session.init(np.zeros(8 * MIB, np.float32))
            chooser = random.Random(1)
            for number in range(1, 6):
                ticket = session.ask(Op.PUSH_PULL, np.ones(8 * MIB, np.float32))
                if chooser.random() < 0.8:
                    for connection in list(served.ingress._connections):
                        connection.sock.shutdown(socket.SHUT_RDWR)
                assert (ticket.result(30.0) == -number).all()
        served.await_connections(0)
        assert served.pool.bytes_lent == 0


def test_a_server_that_ends_each_link_at_what_it_is_sent_counts_as_one_that_is_not_there() -> None:
    with Served() as served:
        spec = served.declare(1000)
        with (
            FaultProxy(upstream(served.targets["tcp"])) as proxy,
            Session(spec, Target("tcp", proxy.address), rpc_s=1.0) as session,
        ):
            session.init(np.zeros(1000, np.float32))
            proxy.faults = Faults(cut_every=1)
            with pytest.raises(UnavailableError, match="has not been reachable"):
                session.ask(Op.PUSH_PULL, np.ones(1000, np.float32)).result(20.0)
            proxy.faults = Faults()


def test_an_answer_goes_to_the_sessions_newest_link() -> None:
    """What an old link still had in its buffers must not take back an answer that waits."""
    with Served() as served:
        spec = served.declare(1000, consistency="bsp")
        other = b"o" * 16
        mine = b"m" * 16
        served.count(mine, other)
        with Session(spec, served.targets["unix"], session=other) as peer:
            peer.init(np.zeros(1000, np.float32))
            values = np.ones(spec.layout.flat_elements, np.float32).tobytes()
            entry = push_entry(spec, 0, 1)
            links = []
            for _ in range(3):
                link = served.raw_link("tcp", mine)
                link.sendall(frame([entry], values))
                links.append(link)
            served.await_connections(2)
            peer.push_pull(np.ones(1000, np.float32))
            reader = FrameReader(
                links[-1], lambda header, _: Place([memoryview(bytearray(header.payload_bytes))]), checksum=True
            )
            answer = reader.read()
            assert answer is not None
            assert [found.tag for found in answer.entries] == [entry.tag]
            assert answer.entries[0].status in (Status.OK, Status.DUPLICATE)  # the step may be over when it comes
            for link in links:
                link.close()
        assert served.weights()[0] == -2


def test_both_ends_of_a_tcp_link_notice_a_host_that_is_gone() -> None:
    with Served() as served:
        sock = served.raw_link("tcp")
        served.await_connections(1)
        (theirs,) = (connection.sock for connection in served.ingress._connections)
        for end in (sock, theirs):
            assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == limits.RPC_S * 1000
        sock.close()
