"""Device memory does to a dense group what host memory does: the same answers, in the same order, the same bits."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import windlass_rules
from windlass_proto import keys, limits, row_pieces
from windlass_proto.consistency import Consistency
from windlass_proto.errors import UsageError
from windlass_proto.frames import Op, Status
from windlass_proto.group_specs import GroupSpec
from windlass_proto.layout import GroupLayout, TensorSpec
from windlass_proto.memory import BufferPool
from windlass_proto.rule_records import DECLARED
from windlass_proto.rule_specs import LAMB, LARS, Adagrad, Adam, RuleSpec
from windlass_proto.transfer_specs import Transfer
from windlass_rules.device import Device, DeviceVector
from windlass_rules.registry import build_cuda
from windlass_server.dense import DenseGroup
from windlass_server.dense_memory import DenseMemory, HostMemory, Measured, Values
from windlass_server.dense_rows import NamedRows
from windlass_server.device_memory import DeviceMemory, ParameterDevice
from windlass_server.device_wire import DeviceWire
from windlass_server.reductions import Reductions
from windlass_server.replies import Origin, Reply
from windlass_server.share_events import Answer, Apply, Effect, Release, Source, Write

TENSORS = (
    TensorSpec("a", (300,)),
    TensorSpec("b", (40, 7), lr_mult=0.5),
    TensorSpec("c", (1,), decay_mult=0.0),
    TensorSpec("d", (5000,), lr_mult=0.5),
)
POOL_BYTES = 64 * limits.MIB


def spec_of(rule: RuleSpec, dtype: str, transfer: Transfer | None = None) -> GroupSpec:
    """A group of one block."""
    layout = GroupLayout(7, dtype, TENSORS, 16 * limits.KIB, keys.VSHARDS_DEFAULT)
    asp = Consistency.parse("asp")
    return GroupSpec(1, layout, rule, mean=False, consistency=asp, transfer=transfer or Transfer())


class Held:
    """The group of `spec_of` in some memory, and all it answered."""

    def __init__(
        self, rule: RuleSpec, dtype: str, memory: DenseMemory | None = None, transfer: Transfer | None = None
    ) -> None:
        spec = spec_of(rule, dtype, transfer)
        kernels = windlass_rules.build(rule, spec.layout.held)
        self.pool = BufferPool(POOL_BYTES)
        self.memory = memory or HostMemory(kernels)
        self.group = DenseGroup(spec, kernels, range(keys.VSHARDS_DEFAULT), self.pool, self.memory, Reductions())
        (self.share,) = self.group.shares.values()
        self.arrays = self.share.arrays[0]
        self.block = self.arrays.block
        self.said: list[tuple[int, bytes, list[bytes]]] = []

    def arrive(self, values: npt.NDArray[Any]) -> tuple[Values, bool]:
        """As a connection takes an entry's values."""
        buffer = self.pool.take(values.nbytes)
        array = buffer.array.view(values.dtype)
        array[:] = values
        return self.memory.receive(Values(array, buffer))

    def execute(self, *effects: Effect) -> None:
        with self.share.lock:
            self.group.execute(self.share, list(effects), self._hear)

    def _hear(self, reply: Reply) -> None:
        """What a checkpoint does when its answer comes: copy the slots of that moment."""
        values = reply.snapshot.array if reply.snapshot is not None else reply.origin.out
        begin, end = self.block.span(reply.seg_begin, reply.seg_end)
        slots = [self.now(slot)[begin:end].tobytes() for slot in self.arrays.slots]
        self.said.append((reply.origin.tag, b"" if values is None else values.tobytes(), slots))
        if reply.snapshot is not None:
            reply.snapshot.release()

    def now(self, vector: Any) -> npt.NDArray[Any]:
        out = np.empty(vector.size, vector.dtype)
        self.memory.read(vector, out)
        self.memory.finish()
        return out

    def state(self) -> list[bytes]:
        return [self.now(vector).tobytes() for vector in (self.arrays.weights, *self.arrays.slots)]

    def asked(self, tag: int, begin: int, end: int, out: npt.NDArray[Any] | None = None) -> Answer:
        origin = Origin(None, tag, 7, Op.PULL, out)
        return Answer(origin, Status.OK, 0, begin, end, values=True)

    def elements(self, begin: int, end: int) -> int:
        first, last = self.block.span(begin, end)
        return last - first


@pytest.fixture(
    params=[Adam(lr=0.1, weight_decay=0.05), Adagrad(lr=0.1, initial_accumulator_value=0.3)], ids=["adam", "adagrad"]
)
def rule(request: pytest.FixtureRequest) -> RuleSpec:
    chosen: RuleSpec = request.param
    return chosen


@pytest.fixture
def parameters(device: Device) -> ParameterDevice:
    return ParameterDevice(device)


@pytest.fixture
def pair(rule: RuleSpec, dtype: str, parameters: ParameterDevice) -> Iterator[tuple[Held, Held]]:
    """The same group in host memory and in a device's; what they lent is back at the end."""
    kernels = windlass_rules.build(rule, dtype)
    both = Held(rule, dtype), Held(rule, dtype, parameters.memory_for(spec_of(rule, dtype), kernels))
    yield both
    assert [held.pool.bytes_lent for held in both] == [0, 0]
    assert parameters.gradients.bytes_lent == 0


def script(held: Held, seed: int, *, steps: int) -> None:
    """First values, then updates and reads drawn from `seed`."""
    random = np.random.default_rng(seed)
    dtype, whole = held.arrays.weights.dtype, len(held.block.segments)

    def values(begin: int, end: int) -> Values:
        arrived, finite = held.arrive(random.standard_normal(held.elements(begin, end)).astype(dtype))
        assert finite
        return arrived

    first = values(0, whole)
    held.execute(Write(0, 0, whole, first, fresh=True), held.asked(0, 0, whole), Release(first))
    for step in range(1, steps + 1):
        effects: list[Effect] = []
        done = []
        for tag in range(int(random.integers(1, 4))):
            begin, end = sorted(random.choice(whole + 1, 2, replace=False).tolist())
            out = np.zeros(held.elements(begin, end), dtype) if random.random() < 0.5 else None
            if random.random() < 0.3:
                effects.append(held.asked(tag, begin, end, out))
                continue
            parts = [values(begin, end) for _ in range(int(random.integers(1, 4)))]
            sources = tuple(Source(part, 0, float(random.uniform(0.5, 2.0))) for part in parts)
            answer = held.asked(tag, begin, end, out) if random.random() < 0.7 else None
            effects.append(Apply(0, begin, end, sources, 1.5, step, step, DECLARED, answer))
            done += parts
        held.execute(*effects, *map(Release, done))


@pytest.mark.parametrize("seed", range(4))
def test_the_same_effects_give_the_same_answers_slots_and_weights(pair: tuple[Held, Held], seed: int) -> None:
    for held in pair:
        script(held, seed, steps=12)
    host, there = pair
    assert len(host.said) > 12
    assert there.said == host.said
    assert there.state() == host.state()
    assert isinstance(there.arrays.weights, DeviceVector)


def test_an_answer_is_given_before_its_segments_change_again(pair: tuple[Held, Held]) -> None:
    """A checkpoint that waited for a step copies its slots, also where one event completes the next step as well."""
    for held in pair:
        whole = len(held.block.segments)
        size, dtype = held.elements(0, whole), held.arrays.weights.dtype
        ones, _ = held.arrive(np.ones(size, dtype))
        twos, _ = held.arrive(np.full(size, 2, dtype))
        held.execute(
            Apply(0, 0, whole, (Source(ones, 0, 1.0),), 1.0, 1, 1, DECLARED, None),
            held.asked(1, 0, whole, np.zeros(size, dtype)),
            Apply(0, 0, whole, (Source(twos, 0, 1.0),), 1.0, 2, 2, DECLARED, None),
            held.asked(2, 0, whole, np.zeros(size, dtype)),
            Release(ones),
            Release(twos),
        )
        (first, second) = held.said
        state = held.state()
        assert [second[1], *second[2]] == state
        assert first[2] != second[2]
    assert pair[0].said == pair[1].said


def test_updates_of_one_batch_are_one_launch(
    rule: RuleSpec, dtype: str, device: Device, parameters: ParameterDevice
) -> None:
    launches = getattr(device, "launches", None)
    if launches is None:
        pytest.skip("needs a GPU's counters: launches are counted by the device in ordinary memory alone")
    held = Held(rule, dtype, parameters.memory_for(spec_of(rule, dtype), windlass_rules.build(rule, dtype)))
    gradients = [held.arrive(np.ones(held.elements(s, s + 1), dtype))[0] for s in range(len(TENSORS))]
    before = device.launches  # type: ignore[attr-defined]
    held.execute(
        *(Apply(0, s, s + 1, (Source(g, 0, 1.0),), 1.0, 1, 1, DECLARED, None) for s, g in enumerate(gradients)),
        *map(Release, gradients),
    )
    assert device.launches == before + 1  # type: ignore[attr-defined]


def test_values_wait_in_host_memory_where_the_device_has_no_room(rule: RuleSpec, dtype: str, device: Device) -> None:
    kernels = windlass_rules.build(rule, dtype)
    full = BufferPool(0, ParameterDevice(device)._fresh)
    memory = DeviceMemory(device, kernels, build_cuda(rule, dtype), None, full, DeviceWire(spec_of(rule, dtype)))
    host, there = Held(rule, dtype), Held(rule, dtype, memory)
    arrived, finite = there.arrive(np.full(10, np.inf, dtype))
    assert isinstance(arrived.array, np.ndarray)
    assert not finite
    assert arrived.buffer is not None
    arrived.buffer.release()
    for held in (host, there):
        script(held, 9, steps=6)
    assert there.said == host.said
    assert there.state() == host.state()
    assert (full.bytes_lent, there.pool.bytes_lent) == (0, 0)


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("sources", [1, 3])
def test_norms_of_gradients_have_the_same_bits(
    dtype: str, parameters: ParameterDevice, sources: int, size: int
) -> None:
    rule = Adam(clip_norm=1.0)
    kernels = windlass_rules.build(rule, dtype)
    found = []
    for held in (Held(rule, dtype), Held(rule, dtype, parameters.memory_for(spec_of(rule, dtype), kernels))):
        random = np.random.default_rng(size)
        parts = [held.arrive(random.standard_normal(size + 5).astype(dtype))[0] for _ in range(sources)]
        given = tuple(Source(part, 2, 0.3 + k) for k, part in enumerate(parts))
        w, slots = held.arrays.weights, held.arrays.slots
        (sums,) = held.memory.measure([Measured(w, slots, 0, size, given, 1, 1.7, None)])
        found.append(sums)
        held.memory.finish()
        held.execute(*map(Release, parts))
    assert found[0] == found[1]
    assert found[0][0] > 0
    assert parameters.gradients.bytes_lent == 0


NORM_RULES: list[RuleSpec] = [
    LAMB(lr=0.02, weight_decay=0.05, clip_value=0.9, clip_norm=0.5),
    LARS(lr=2.0, weight_decay=0.05, trust_coefficient=0.01),
    Adam(lr=0.1, clip_norm=0.5),
]


@pytest.mark.parametrize("rule", NORM_RULES, ids=str)
@pytest.mark.parametrize("seed", range(2))
def test_rules_that_take_norms_of_tensors_have_the_same_bits(pair: tuple[Held, Held], seed: int) -> None:
    for held in pair:
        script(held, seed, steps=12)
    host, there = pair
    assert len(host.said) > 12
    assert there.said == host.said
    assert there.state() == host.state()


@pytest.mark.parametrize("rule", [LAMB(clip_norm=0.5)], ids=str)
def test_norms_of_all_tensors_of_a_push_are_taken_together(pair: tuple[Held, Held], device: Device) -> None:
    launches = getattr(device, "launches", None)
    if launches is None:
        pytest.skip("needs a GPU's counters: launches are counted by the device in ordinary memory alone")
    _, there = pair
    whole = len(there.block.segments)
    gradient, _ = there.arrive(np.ones(there.elements(0, whole), there.arrays.weights.dtype))
    before = device.launches  # type: ignore[attr-defined]
    there.execute(Apply(0, 0, whole, (Source(gradient, 0, 1.0),), 1.0, 1, 1, DECLARED, None), Release(gradient))
    assert (whole > 1, len(there.group.norms)) == (True, 1), "under asp the bound is the worker's to keep"
    assert device.launches == before + 2 + 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_what_is_not_finite_is_seen_on_arrival(pair: tuple[Held, Held], odd: float) -> None:
    for held in pair:
        values = np.zeros(5000, held.arrays.weights.dtype)
        for found in (True, False, True):
            values[4321] = 1.0 if found else odd
            arrived, finite = held.arrive(values)
            assert finite is found
            assert arrived.buffer is not None
            arrived.buffer.release()


def test_values_given_from_a_checkpoint_take_the_place_of_those_served(pair: tuple[Held, Held]) -> None:
    for held in pair:
        random = np.random.default_rng(2)
        given = [random.standard_normal(held.block.elements).astype(held.arrays.weights.dtype) for _ in held.state()]
        with held.share.lock:
            held.group.adopt(held.share, 0, given[0].copy(), tuple(map(np.copy, given[1:])), [4, 5, 6, 7])
        assert held.state() == [array.tobytes() for array in given]
        assert held.share.core.blocks[0].updates == [4, 5, 6, 7]


def test_threads_have_lanes_of_their_own(rule: RuleSpec, dtype: str, parameters: ParameterDevice) -> None:
    kernels = windlass_rules.build(rule, dtype)
    host = Held(rule, dtype)
    script(host, 3, steps=5)
    memory = parameters.memory_for(spec_of(rule, dtype), kernels)
    held = [Held(rule, dtype, memory) for _ in range(4)]
    threads = [threading.Thread(target=script, args=(each, 3), kwargs={"steps": 5}) for each in held]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each.said == host.said and each.state() == host.state() for each in held)


def test_a_pool_that_could_get_no_memory_has_lent_none() -> None:
    def nothing(nbytes: int) -> npt.NDArray[np.uint8]:
        raise UsageError("there is none", bytes=nbytes)

    pool = BufferPool(POOL_BYTES, nothing)
    with pytest.raises(UsageError, match="there is none"):
        pool.take(10)
    assert pool.bytes_lent == 0


WIDE = TensorSpec("rows", (300, 100))
"""Over several blocks of 8,192 elements, whose borders cut rows."""


def named_rows(rows: list[int], block: int) -> NamedRows:
    """Those of `rows` that have a piece in a block of a group of `WIDE` alone."""
    layout = GroupLayout(7, "float32", (WIDE,), 8192, keys.VSHARDS_DEFAULT)
    (segment,) = layout.blocks[block].segments
    pieces = row_pieces.of_segment(layout, segment)
    held = np.array([row for row in rows if row in pieces.rows], np.uint64)
    return NamedRows(pieces, held, pieces.elements(held), segment.end - segment.begin)


@pytest.mark.parametrize("block", range(4))
@pytest.mark.parametrize("rows", [[], [81, 82, 163, 245], list(range(300)), [0, 5, 90, 299]], ids=len)
def test_rows_of_a_segment_are_spread_and_brought_together_as_on_hosts(
    rows: list[int], block: int, dtype: str, device: Device
) -> None:
    named = named_rows(rows, block)
    random = np.random.default_rng(block)
    memory = ParameterDevice(device).memory_for(spec_of(Adam(), dtype), windlass_rules.build(Adam(), dtype))
    pieces = random.standard_normal(named.elements).astype(dtype)
    due = np.zeros(named.segment_elements, dtype)
    if named.rows.size:
        named.pieces.scatter(pieces, named.rows, due)
    made = memory.receive_rows(named, pieces)
    assert made is not None
    values, finite = made
    found, back = np.ones_like(due), np.ones_like(pieces)
    memory.read(values.array, found)
    memory.read_rows(values.array, named, back)
    memory.finish()
    assert finite
    assert np.array_equal(found, due)
    assert np.array_equal(back, pieces)
    assert values.buffer is not None
    values.buffer.release()
    assert memory.gradients.bytes_lent == 0


def test_rows_that_are_not_finite_are_seen_on_arrival(device: Device) -> None:
    named = named_rows([3, 7], 0)
    memory = ParameterDevice(device).memory_for(spec_of(Adam(), "float32"), windlass_rules.build(Adam(), "float32"))
    pieces = np.zeros(named.elements, np.float32)
    pieces[150] = np.inf
    made = memory.receive_rows(named, pieces)
    assert made is not None
    assert not made[1]


def test_rows_wait_on_the_host_where_the_device_has_no_room(device: Device) -> None:
    named = named_rows([3, 7], 0)
    memory = ParameterDevice(device).memory_for(spec_of(Adam(), "float32"), windlass_rules.build(Adam(), "float32"))
    memory.gradients = BufferPool(0, ParameterDevice(device)._fresh)
    assert memory.receive_rows(named, np.zeros(named.elements, np.float32)) is None
    assert memory.gradients.bytes_lent == 0
