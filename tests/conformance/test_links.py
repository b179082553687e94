"""One suite that every link passes: frames arrive in order, whole, and only if they are what was sent."""

from __future__ import annotations

import fcntl
import os
import socket

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conformance.link_ends import KINDS, LinkEnds, link_ends, memfd, socket_pair, values_of
from tests.conftest import open_descriptors
from windlass_proto import frames, limits
from windlass_proto.errors import ProtocolError, UnavailableError
from windlass_proto.frames import Header, Kind
from windlass_proto.links import arena
from windlass_proto.links.memory_pipe import memory_pipe
from windlass_proto.links.stream import FrameReader, FrameWriter, Place

MIB = limits.MIB
SOCKETS = ("tcp", "unix", "shm")


def noise(nbytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8)


def assert_arrived(ends: LinkEnds, sent: list[list[np.ndarray]]) -> None:
    assert [frame.header.clock for frame in ends.arrived] == list(range(len(sent)))
    assert [frame.header.number for frame in ends.arrived] == sorted(frame.header.number for frame in ends.arrived)
    for frame, values in zip(ends.arrived, sent, strict=True):
        assert [entry.tag for entry in frame.entries] == list(range(len(values)))
        assert values_of(frame) == [value.tobytes() for value in values]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.lists(st.integers(0, 3000), max_size=6), min_size=1, max_size=8),
    drip=st.tuples(st.sampled_from([1, 7, 64, 5000]), st.sampled_from([13, 61, 4096])),
)
def test_frames_arrive_in_order_and_whole_however_they_are_cut(
    kind: str, sizes: list[list[int]], drip: tuple[int, int]
) -> None:
    with link_ends(kind, drip=drip) as ends:
        sent = [[noise(size, i) for i, size in enumerate(frame)] for frame in sizes]
        for values in sent:
            ends.put(values)
        ends.pump()
        assert_arrived(ends, sent)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_arrive_byte_by_byte(kind: str) -> None:
    with link_ends(kind, drip=(1, 1)) as ends:
        sent = [[noise(200), noise(64)], [], [noise(1)]]
        for values in sent:
            ends.put(values)
        ends.pump()
        assert_arrived(ends, sent)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_fit_through_the_smallest_buffers(kind: str) -> None:
    with link_ends(kind, small=True) as ends:
        sent = [[noise(300_000, 1)], [noise(5), noise(70_000, 2)]]
        for values in sent:
            ends.put(values)
        ends.pump()
        assert_arrived(ends, sent)


@pytest.mark.parametrize("kind", KINDS)
def test_large_values_go_from_where_they_lie_to_where_they_are_wanted(kind: str) -> None:
    with link_ends(kind) as ends:
        sent = [[noise(MIB, i) for i in range(8)]]
        ends.put(sent[0])
        ends.pump()
        assert_arrived(ends, sent)
        assert ends.reader.bytes_read == ends.writer.bytes_written


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_may_have_more_buffers_than_one_call_takes(kind: str) -> None:
    with link_ends(kind) as ends:
        sent = [[noise(100, i) for i in range(limits.SENDMSG_BUFFERS_MAX + 500)]]
        ends.put(sent[0])
        ends.pump()
        assert_arrived(ends, sent)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_may_be_larger_than_the_staging_buffer(kind: str) -> None:
    with link_ends(kind, drip=(1000, 1000)) as ends:
        sent = [[noise(0)] * limits.FRAME_ENTRIES_MAX, [noise(10)]]
        for values in sent:
            ends.put(values)
        ends.pump()
        assert_arrived(ends, sent)


@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_stops_when_nobody_reads_and_goes_on_when_somebody_does(kind: str) -> None:
    with link_ends(kind, small=True) as ends:
        left: list[int] = []
        count = 2000
        for i in range(count):
            ends.put([noise(1000)], done=lambda i=i: left.append(i))  # type: ignore[misc]
        assert not ends.writer.flush()
        assert ends.writer.waiting()
        assert not ends.writer.flush()  # and asking again neither blocks nor loses anything
        stopped_at = len(left)
        assert stopped_at < count
        ends.pump()
        assert left == list(range(count))
        assert not ends.writer.waiting()
        assert [frame.header.clock for frame in ends.arrived] == list(range(count))


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_not_left_is_let_go_of_when_the_link_is_abandoned(kind: str) -> None:
    with link_ends(kind, small=True) as ends:
        left: list[int] = []
        for i in range(50):
            ends.put([noise(20_000)], done=lambda i=i: left.append(i))  # type: ignore[misc]
        ends.writer.flush()
        ends.writer.abandon()
        assert left == list(range(50))
        assert not ends.writer.waiting()


def frame_bytes(values: list[np.ndarray], kind: str = "unix") -> bytes:
    """One frame as it lies on the wire."""
    one, two = memory_pipe(1 << 24)
    sender = LinkEnds("tcp" if kind == "tcp" else "memory", one, two)
    sender.put(values)
    sender.writer.flush()
    raw = bytearray(1 << 20)
    return bytes(raw[: two.recv_into(memoryview(raw))])


@pytest.mark.parametrize("kind", ["tcp", "unix", "memory"])
def test_a_stream_that_ends_inside_a_frame_hands_out_nothing(kind: str) -> None:
    raw = frame_bytes([noise(200)], kind)
    for cut in (*range(0, len(raw), 17), len(raw) - 1):
        with link_ends(kind) as ends:
            assert ends.sending.sendmsg([raw[:cut]]) == cut
            ends.sending.close()
            with pytest.raises(UnavailableError, match="link was lost"):
                ends.pump(1)
            assert not ends.arrived


@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_learns_that_its_peer_is_gone(kind: str) -> None:
    with link_ends(kind) as ends:
        ends.receiving.close()
        ends.put([noise(8 * MIB)])
        with pytest.raises(UnavailableError, match="link was lost"):
            list(iter(ends.writer.flush, True))


def test_on_tcp_no_changed_byte_is_handed_out() -> None:
    raw = frame_bytes([noise(200), noise(100)], "tcp")
    for at in range(len(raw)):
        with link_ends("tcp") as ends:
            broken = bytearray(raw)
            broken[at] ^= 0x10
            ends.sending.sendmsg([broken])
            ends.sending.close()
            with pytest.raises((ProtocolError, UnavailableError)):
                ends.pump(1)
            assert not ends.arrived


def test_a_frame_whose_checksum_is_wrong_still_owns_its_place() -> None:
    """Whoever lent the memory gets it back from `close`, or each broken frame would cost one buffer for good."""
    raw = bytearray(frame_bytes([noise(200)], "tcp"))
    raw[-60] ^= 1
    with link_ends("tcp") as ends:
        ends.sending.sendmsg([raw])
        with pytest.raises(ProtocolError, match="checksum"):
            ends.pump(1)
        assert ends.reader.close() is not None
        assert ends.reader.close() is None


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_reader_of_noise_raises_link_errors_only(kind: str, data: st.DataObject) -> None:
    raw = bytearray(b"".join(frame_bytes([noise(150, i), noise(40, i)], kind) for i in range(3)))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del raw[: data.draw(st.integers(0, 200))]
    with link_ends(kind) as ends:
        ends.reader.place = lambda header, _: Place([memoryview(bytearray(header.payload_bytes))])
        ends.sending.sendmsg([raw])
        ends.sending.close()
        with pytest.raises((ProtocolError, UnavailableError)):
            list(iter(ends.reader.read, "never"))


def test_places_must_fit_their_frame() -> None:
    one, two = memory_pipe()
    LinkEnds("memory", one, two).put([noise(100)])
    for size in (0, 127, 129):
        one, two = memory_pipe()
        sender = LinkEnds("memory", one, two)
        sender.put([noise(100)])
        sender.writer.flush()
        reader = FrameReader(two, lambda *_, size=size: Place([memoryview(bytearray(size))]), checksum=False)
        with pytest.raises(ProtocolError, match="do not fit"):
            reader.read()


# ---- descriptors -----------------------------------------------------------------------------------------------------


def arena_header(size: int, number: int = 1) -> Header:
    return Header(Kind.ARENA, 0, 0, number, 0, 0, size, 0, 0)


def test_each_of_many_segments_arrives_with_its_own_descriptor() -> None:
    """Also when all are queued before the first leaves, as after a reconnect."""
    with link_ends("shm") as ends:
        assert ends.heap is not None
        kept = [ends.heap.take(size * MIB) for size in (10, 10, 20, 3)]
        for number, piece in enumerate(kept):
            piece.array[:] = number + 1
        assert len(ends.heap.segments) >= 3
        ends.put([noise(10)])
        ends.pump()
        assert sorted(ends.attached) == list(range(1, len(ends.heap.segments) + 1))
        for number, piece in enumerate(kept):
            assert ends.attached[piece.segment_id].array[piece.offset] == number + 1


def test_descriptors_travel_between_frames_that_carry_none() -> None:
    one, two = socket_pair("unix")
    writer = FrameWriter(one, checksum=False)
    reader = FrameReader(
        two, lambda h, _: Place([memoryview(bytearray(h.payload_bytes))]), checksum=False, descriptors=True
    )
    passed = memfd(4096)
    plain = Header(Kind.REQUEST, 0, 0, 1, 256, 1, 0, 0, 0)
    for _ in range(3):
        writer.put(plain, b"", [noise(256).data])
        writer.put(arena_header(4096), b"", [], None, passed)
    assert writer.flush()
    got = []
    while (frame := reader.read()) is not None:
        got.append(frame)
    assert [frame.header.kind for frame in got] == [Kind.REQUEST, Kind.ARENA] * 3
    for frame in got:
        assert (frame.descriptor is not None) == (frame.header.kind == Kind.ARENA)
        if frame.descriptor is not None:
            assert os.fstat(frame.descriptor).st_ino == os.fstat(passed).st_ino
            os.close(frame.descriptor)
    os.close(passed)
    one.close()
    two.close()


@pytest.mark.parametrize("count", [1, 2, 5, 100])
def test_descriptors_that_nobody_asked_for_are_closed(count: int) -> None:
    before = open_descriptors()
    one, two = socket_pair("unix")
    passed = [memfd(4096) for _ in range(count)]
    reader = FrameReader(two, lambda *_: Place([]), checksum=False, descriptors=True)
    head = frames.pack_header(Header(Kind.REQUEST, 0, 0, 1, 0, 1, 0, 0, 0))
    socket.send_fds(one, [head], passed)
    if count <= 2:  # as many as fit beside one frame wait for the frame they belong to
        assert reader.read() is not None
    else:
        with pytest.raises(ProtocolError, match="descriptors"):
            reader.read()
    reader.close()
    for descriptor in passed:
        os.close(descriptor)
    one.close()
    two.close()
    assert open_descriptors() == before


def test_descriptors_do_not_pile_up_over_frames() -> None:
    before = open_descriptors()
    one, two = socket_pair("unix")
    passed = memfd(4096)
    reader = FrameReader(two, lambda *_: Place([]), checksum=False, descriptors=True)
    head = frames.pack_header(Header(Kind.REQUEST, 0, 0, 1, 0, 1, 0, 0, 0))
    for _ in range(5):
        socket.send_fds(one, [head], [passed])
    with pytest.raises(ProtocolError, match="descriptors"):
        list(iter(reader.read, None))
    reader.close()
    os.close(passed)
    one.close()
    two.close()
    assert open_descriptors() == before


def test_a_shared_memory_frame_without_its_descriptor_is_refused() -> None:
    for kind in SOCKETS:
        with link_ends(kind) as ends:
            ends.sending.sendmsg([frame_of_arena(kind)])
            with pytest.raises(ProtocolError, match="without its descriptor"):
                ends.pump(1)


def frame_of_arena(kind: str) -> bytes:
    one, two = memory_pipe()
    FrameWriter(one, checksum=kind == "tcp").put(arena_header(4096), b"", [])
    writer = FrameWriter(one, checksum=kind == "tcp")
    writer.put(arena_header(4096), b"", [])
    writer.flush()
    raw = bytearray(64)
    two.recv_into(memoryview(raw))
    return bytes(raw)


# ---- shared segments -------------------------------------------------------------------------------------------------

SHRINK_GROW = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW


def refused(descriptor: int, size: int) -> str:
    """Why a segment is refused; the descriptor is closed by then."""
    with pytest.raises(ProtocolError) as caught:
        arena.attach_untrusted(descriptor, size)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)
    return str(caught.value)


def test_a_sealed_segment_can_neither_shrink_nor_grow() -> None:
    segment = arena.SharedSegment.create(MIB)
    for size in (0, MIB // 2, 2 * MIB):
        with pytest.raises(PermissionError):
            os.ftruncate(segment.descriptor, size)
    with pytest.raises(PermissionError):
        fcntl.fcntl(segment.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    segment.close()


def test_both_sides_see_one_memory() -> None:
    mine = arena.SharedSegment.create(MIB)
    yours = arena.attach_untrusted(os.dup(mine.descriptor), MIB)
    mine.array[5] = 77
    assert yours.array[5] == 77
    mine.close()
    yours.close()
    assert yours.array[5] == 77  # the mapping outlives its descriptors


@pytest.mark.parametrize("seals", [0, fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW])
def test_a_segment_that_could_be_cut_short_is_refused(seals: int) -> None:
    assert "not sealed" in refused(memfd(4096, seals=seals), 4096)


@pytest.mark.parametrize("told", [0, 4095, 4097, 8192, 2**63])
def test_a_segment_of_another_size_than_told_is_refused(told: int) -> None:
    assert "another size" in refused(memfd(4096, seals=SHRINK_GROW), told)


def test_an_empty_segment_is_refused() -> None:
    assert "another size" in refused(memfd(0, seals=SHRINK_GROW), 0)


def test_a_segment_whose_pages_we_would_have_to_pay_for_is_refused() -> None:
    assert "holes" in refused(memfd(64 * MIB, seals=SHRINK_GROW, allocate=False), 64 * MIB)


def test_what_is_no_memfd_is_refused(tmp_path: object) -> None:
    path = os.path.join(str(tmp_path), "file")
    with open(path, "wb") as file:
        file.write(bytes(4096))
    read, write = os.pipe()
    one, two = socket.socketpair()
    assert "cannot be used" in refused(os.open(path, os.O_RDWR), 4096)
    assert "not a file" in refused(read, 4096)
    assert "not a file" in refused(write, 4096)
    assert "not a file" in refused(os.open("/dev/zero", os.O_RDWR), 4096)
    assert "not a file" in refused(os.open(os.path.dirname(path), os.O_RDONLY), 4096)
    assert "not a file" in refused(one.detach(), 4096)
    two.close()


def test_a_segment_that_may_only_be_read_is_refused() -> None:
    descriptor = memfd(4096, seals=SHRINK_GROW)
    only_read = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
    assert "cannot be used" in refused(only_read, 4096)
    os.close(descriptor)


def test_the_heap_lends_aligned_pieces_that_do_not_overlap_and_takes_them_back() -> None:
    heap = arena.ArenaHeap()
    pieces = [heap.take(size) for size in (1, 64, 65, 100_000, 0)]
    for number, piece in enumerate(pieces):
        assert piece.offset % 64 == 0
        assert piece.array.__array_interface__["data"][0] % 64 == 0
        piece.array[:] = number
    assert [set(piece.array.tolist()) for piece in pieces[:4]] == [{0}, {1}, {2}, {3}]
    first = pieces[0].offset
    del piece
    pieces.clear()
    whole = heap.take(heap.segments[0].size_bytes)
    assert (whole.offset, len(heap.segments)) == (first, 1)
    heap.close()
