"""Weights that come down as deltas: what a server shows and what workers make of it is one thing, bit for bit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.data_link import InFrame
from windlass.dense_table import DenseTable, Span
from windlass.shown_weights import ShownWeights as Held
from windlass_proto import weight_deltas
from windlass_proto.codec_specs import CodecSpec, Dithering, Int8, OneBit, RandomK, TopK, TwoBit
from windlass_proto.codecs.registry import build
from windlass_proto.errors import ProtocolError
from windlass_proto.layout import GroupLayout, TensorSpec
from windlass_proto.memory import BufferPool
from windlass_proto.weight_deltas import EXACT_BASE, Kind
from windlass_server.shown_weights import ShownWeights

CODECS: tuple[CodecSpec, ...] = (
    Int8(block=64),
    OneBit(block=64),
    TwoBit(threshold=0.5),
    TopK(ratio=0.05),
    RandomK(ratio=0.1, seed=3),
    Dithering(bits=4, block=64),
)
# The third is so small that it travels whole; no size is a multiple of anything.
TENSORS = (TensorSpec("a", (1001,)), TensorSpec("b", (30, 17)), TensorSpec("c", (5,)))
LAYOUT = GroupLayout(7, "float32", TENSORS, 1 << 17, 2)
(BLOCK,) = LAYOUT.blocks
SEGMENTS = len(BLOCK.segments)

Vector = np.ndarray[Any, Any]


class Server:
    """A block under a codec, with the weights that a rule would move."""

    def __init__(self, codec: CodecSpec) -> None:
        self.shown = ShownWeights(BLOCK, build(codec), [11, 12, 13], BufferPool(1 << 30))
        self.weights = np.zeros(BLOCK.elements, np.float32)
        self.updates = [0] * SEGMENTS
        self.random = np.random.default_rng(5)
        self.store(0, SEGMENTS)

    def store(self, begin: int, end: int) -> None:
        """First or assigned values."""
        self._write(begin, end, self.random.normal(size=BLOCK.elements))
        first, last = BLOCK.span(begin, end)
        self.shown.begin_anew(begin, end, self.weights[first:last])

    def step(self, begin: int = 0, end: int = SEGMENTS, size: float = 1.0) -> None:
        self._write(begin, end, self.weights + size * self.random.normal(size=BLOCK.elements))
        self.updates[begin:end] = [n + 1 for n in self.updates[begin:end]]
        self.shown.step(begin, end)

    def _write(self, begin: int, end: int, values: Vector) -> None:
        for segment in BLOCK.segments[begin:end]:
            at = slice(segment.begin, segment.begin + segment.elements)
            self.weights[at] = values[at]

    def answer(self, base: int, begin: int, end: int, *, lossy: bool = True) -> Vector:
        first, last = BLOCK.span(begin, end)
        present = self.weights[first:last]
        self.shown.show(present, begin, end, self.updates, lossy=lossy)
        showing = self.shown.showing(base, begin, end)
        out = np.full(showing.nbytes, 0xAB, np.uint8)
        self.shown.write(showing, present, out)
        return out

    def kinds(self, base: int) -> list[int]:
        return [kind for _, kind in self.shown.showing(base, 0, SEGMENTS).changes]


class Worker:
    """What one worker holds, and the arrays it asked for."""

    def __init__(self, codec: CodecSpec) -> None:
        self.held = Held(DenseTable(LAYOUT, 0, None), codec, None)
        self.arrays = {number: np.zeros(tensor.shape, np.float32) for number, tensor in enumerate(LAYOUT.tensors)}

    def ask(self, begin: int = 0, end: int = SEGMENTS, *, exact: bool = False) -> tuple[Span, Callable[[], None]]:
        after: list[Callable[[], None]] = []
        asked = Span((7, BLOCK.vshard), BLOCK.index, begin, end, None, None)
        (span,) = self.held.expect([asked], self.arrays, after, exact=exact)
        return span, after[0]

    def read(self, server: Server, begin: int = 0, end: int = SEGMENTS, *, lossy: bool = True) -> None:
        span, take = self.ask(begin, end)
        arrive(span, server.answer(span.base or 0, begin, end, lossy=lossy))
        take()


def arrive(span: Span, answer: Vector) -> None:
    assert isinstance(span.out, InFrame)
    assert answer.nbytes <= span.out.nbytes
    span.out.views[0][: answer.nbytes] = answer.data


def same(worker: Worker, values: Vector, begin: int = 0, end: int = SEGMENTS) -> bool:
    """Are the worker's arrays `values` on these segments, bit for bit?"""
    return all(
        worker.arrays[s.tensor].tobytes() == values[s.begin : s.begin + s.elements].tobytes()
        for s in BLOCK.segments[begin:end]
    )


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_every_worker_holds_what_the_server_showed(codec: CodecSpec) -> None:
    server, workers = Server(codec), [Worker(codec) for _ in range(3)]
    for _ in range(5):
        for worker in workers:
            worker.read(server)
            assert same(worker, server.shown.values)
        server.step()


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_what_is_shown_comes_to_the_weights_once_they_rest(codec: CodecSpec) -> None:
    """Steps that move nothing show what earlier ones lost; two bits say nothing below their threshold."""
    server, bound = Server(codec), 0.5 if isinstance(codec, TwoBit) else 0.05
    server.step()
    for _ in range(200):
        server.answer(0, 0, SEGMENTS)
        server.step(size=0.0)
    assert np.abs(server.weights - server.shown.values).max() < bound


def test_a_small_tensor_and_first_values_travel_whole_and_a_change_as_a_delta() -> None:
    server, worker = Server(Int8(block=64)), Worker(Int8(block=64))
    assert server.kinds(0) == [Kind.WHOLE] * 3
    worker.read(server)
    assert same(worker, server.weights)
    server.step()
    span, _ = worker.ask()
    answer = server.answer(span.base or 0, 0, SEGMENTS)
    assert server.kinds(span.base or 0) == [Kind.DELTA, Kind.DELTA, Kind.WHOLE]
    assert answer.nbytes < 0.4 * 4 * BLOCK.elements


def test_a_tensor_that_was_not_stepped_does_not_travel() -> None:
    server, worker = Server(Int8(block=64)), Worker(Int8(block=64))
    worker.read(server)
    server.step(1, 2)
    worker.read(server)
    assert server.kinds(worker.ask()[0].base or 0) == [Kind.SAME] * 3
    server.step(0, 1)
    span, _ = worker.ask()
    server.answer(0, 0, SEGMENTS)
    assert server.kinds(span.base or 0) == [Kind.DELTA, Kind.SAME, Kind.SAME]
    worker.read(server)
    assert same(worker, server.shown.values)


def test_who_missed_a_change_gets_it_whole() -> None:
    server, regular, late = Server(OneBit(block=64)), Worker(OneBit(block=64)), Worker(OneBit(block=64))
    for worker in (regular, late):
        worker.read(server)
    for _ in range(2):
        server.step()
        regular.read(server)
    assert server.kinds(late.ask()[0].base or 0) == [Kind.WHOLE] * 3
    late.read(server)
    assert same(late, server.shown.values)


def test_values_that_are_not_finite_travel_whole_and_so_does_the_way_back() -> None:
    server, worker = Server(Int8(block=64)), Worker(Int8(block=64))
    worker.read(server)
    for value in (np.inf, 1.0):
        server.weights[3] = value
        server.shown.step(0, SEGMENTS)
        worker.read(server)
        assert same(worker, server.shown.values)
        assert worker.arrays[0][3] == value


def test_without_common_steps_workers_are_shown_the_weights_themselves() -> None:
    server, worker = Server(OneBit(block=64)), Worker(OneBit(block=64))
    for _ in range(3):
        server.step()
        worker.read(server, lossy=False)
        assert same(worker, server.weights)
    server.step()
    worker.read(server)
    assert same(worker, server.shown.values), "and go on with deltas to what they were shown"


def test_an_export_reads_the_weights_and_changes_nothing_that_is_shown() -> None:
    server, worker = Server(OneBit(block=64)), Worker(OneBit(block=64))
    worker.read(server)
    server.step()
    worker.read(server)
    shown, number = server.shown.values.copy(), server.shown.number
    span, take = worker.ask(exact=True)
    assert span.base == EXACT_BASE
    showing = server.shown.showing(EXACT_BASE, 0, SEGMENTS)
    out = np.zeros(showing.nbytes, np.uint8)
    server.shown.write(showing, server.weights, out)
    arrive(span, out)
    take()
    assert same(worker, server.weights)
    assert not same(worker, shown)
    assert server.shown.number == number
    worker.read(server)
    assert same(worker, shown)


def test_answers_taken_in_another_order_leave_the_newest_and_add_nothing_twice() -> None:
    server, worker = Server(Int8(block=64)), Worker(Int8(block=64))
    worker.read(server)
    taken = []
    for _ in range(2):
        server.step()
        span, take = worker.ask()
        arrive(span, server.answer(span.base or 0, 0, SEGMENTS))
        taken.append(take)
        again, take_again = worker.ask()
        arrive(again, server.answer(again.base or 0, 0, SEGMENTS))
        taken.append(take_again)
    for take in reversed(taken):
        take()
        assert same(worker, server.shown.values)


Event = tuple[str, int, int, int]
RANGES = st.tuples(st.integers(0, SEGMENTS - 1), st.integers(1, SEGMENTS)).map(lambda r: (min(r[0], r[1] - 1), r[1]))
EVENTS = st.lists(
    st.tuples(st.sampled_from(["step", "store", "read", "read", "ask", "lose", "asp"]), RANGES, st.integers(0, 2)),
    min_size=1,
    max_size=40,
)


@settings(max_examples=150)
@given(EVENTS, st.sampled_from(CODECS))
def test_whatever_is_read_when_the_bits_are_the_servers(
    events: Sequence[tuple[str, tuple[int, int], int]], codec: CodecSpec
) -> None:
    """Workers read parts at any time, lose answers and take them late; each read ends with what the server showed."""
    server, workers = Server(codec), [Worker(codec) for _ in range(3)]
    late: list[Callable[[], None]] = []
    for what, (begin, end), number in events:
        worker = workers[number]
        match what:
            case "step":
                server.step(begin, end)
            case "store":
                server.store(begin, end)
            case "lose":
                server.answer(worker.ask(begin, end)[0].base or 0, begin, end)
            case "ask":
                span, take = worker.ask(begin, end)
                arrive(span, server.answer(span.base or 0, begin, end))
                late.append(take)
            case _:
                worker.read(server, begin, end, lossy=what == "read")
                assert same(worker, server.shown.values, begin, end)
    for take in late:
        take()
    for worker in workers:
        worker.read(server)
        assert same(worker, server.shown.values)


@pytest.mark.parametrize(
    ("number", "changes", "said"),
    [
        (3, [(4, Kind.WHOLE)] * 3, "before it was made"),
        (3, [(3, Kind.DELTA)] * 3, "never read"),
        (3, [(3, Kind.SAME)] * 3, "never read"),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(number: int, changes: list[tuple[int, int]], said: str) -> None:
    worker = Worker(Int8(block=64))
    span, take = worker.ask()
    out = np.zeros(weight_deltas.bytes_max(BLOCK.segments), np.uint8)
    weight_deltas.pack_head(number, changes, out)
    arrive(span, out)
    with pytest.raises(ProtocolError, match=said):
        take()


def test_a_change_that_was_left_out_is_refused() -> None:
    server, worker = Server(Int8(block=64)), Worker(Int8(block=64))
    worker.read(server)
    span, take = worker.ask()
    out = np.zeros(weight_deltas.bytes_max(BLOCK.segments), np.uint8)
    weight_deltas.pack_head(9, [(9, Kind.SAME)] * SEGMENTS, out)
    arrive(span, out)
    with pytest.raises(ProtocolError, match="left out"):
        take()
