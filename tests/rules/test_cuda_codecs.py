"""What devices decode and encode: the bits of the codecs' kernels, and no byte beside the values whatever arrives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import windlass_rules
from tests.rules.test_cuda_memory import Held, spec_of
from windlass_proto.codec_specs import (
    BFloat16,
    CodecSpec,
    Dithering,
    Float16,
    Int8,
    OneBit,
    RandomK,
    TopK,
    TwoBit,
)
from windlass_proto.codecs import halves, registry
from windlass_proto.errors import InvariantError, ProtocolError
from windlass_proto.frames import Op
from windlass_proto.memory import aligned_zeros
from windlass_proto.rule_specs import SGD
from windlass_proto.transfer_specs import Nonfinite, Transfer
from windlass_rules import device as devices
from windlass_rules.cuda_codecs import HALF_CODECS, decode_source, encode_source, names_places
from windlass_rules.cuda_functions import function_source
from windlass_rules.cuda_source import fill_source
from windlass_rules.device import Device, DeviceVector
from windlass_server.dense_memory import Gradient, Values
from windlass_server.device_memory import ParameterDevice

CODECS: list[CodecSpec] = [
    Float16(),
    BFloat16(),
    Int8(),
    Int8(block=64),
    OneBit(),
    TwoBit(0.3),
    TopK(),
    TopK(ratio=0.3),
    RandomK(),
    RandomK(ratio=0.3),
    Dithering(),
    Dithering(bits=4),
    Dithering(natural=True),
    Dithering(bits=4, natural=True),
]
SIZES = (1, 7, 1000, 5000)
BESIDE = 16  # floats after the values, which nobody may write
FLOAT32 = np.dtype(np.float32)
UINT32 = np.dtype(np.uint32)
Array = npt.NDArray[Any]
RULE = SGD(lr=0.1, momentum=0.9)


def up(device: Device, array: Array) -> DeviceVector:
    vector = devices.empty(device, array.size, array.dtype)
    lane = device.lane()
    lane.upload(vector.address, array)
    lane.finish()
    return vector


def down(device: Device, vector: DeviceVector) -> Array:
    found = np.zeros(vector.size, vector.dtype)
    lane = device.lane()
    lane.download(vector.address, found)
    lane.finish()
    return found


def decoded(device: Device, spec: CodecSpec, wire: Array, elements: int) -> tuple[Array, list[int]]:
    """Values and what is beside them as bits, and the two flags."""
    count, number = registry.build(spec).arguments(elements)
    staged, flags = up(device, wire), up(device, np.zeros(2, np.uint32))
    values = up(device, np.full(elements + BESIDE, 0x7B7B7B7B, np.uint32))
    lane, size = device.lane(), elements
    if names_places(type(spec)):
        lane.launch(devices.launch_of(fill_source(FLOAT32), [(elements, values.address, 0.0)], []))
        size = count
    run = (size, staged.address, values.address, elements, count, number, flags.address)
    lane.launch(devices.launch_of(decode_source(type(spec)), [run], []))
    lane.finish()
    return down(device, values), down(device, flags).tolist()


@pytest.mark.parametrize("spec", CODECS, ids=str)
@pytest.mark.parametrize("elements", SIZES)
def test_gradients_decode_to_the_bits_of_the_codecs_kernel(spec: CodecSpec, elements: int, device: Device) -> None:
    codec = registry.build(spec)
    random = np.random.default_rng(elements)
    for odd in (0.0, np.nan, np.inf):
        given, expected = aligned_zeros(elements, FLOAT32), aligned_zeros(elements, FLOAT32)
        given[:] = random.standard_normal(elements) * 10.0 ** random.integers(-6, 4, elements)
        given[elements // 2] = odd
        wire = aligned_zeros(-(-codec.wire_bytes(elements) // 4), FLOAT32).view(np.uint8)[: codec.wire_bytes(elements)]
        codec.encode(given, wire, seed=99)
        codec.decode_untrusted(wire, expected)
        found, flags = decoded(device, spec, wire, elements)
        assert np.array_equal(found[:elements], expected.view(np.uint32))
        assert (found[elements:] == 0x7B7B7B7B).all()
        assert flags == [not np.isfinite(expected).all(), 0]


@pytest.mark.parametrize("spec", CODECS, ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_bytes_that_say_nothing_are_flagged_where_the_kernel_refuses_them(
    spec: CodecSpec, seed: int, device: Device
) -> None:
    codec, elements = registry.build(spec), 1000
    random = np.random.default_rng(seed)
    wire = aligned_zeros(-(-codec.wire_bytes(elements) // 4), FLOAT32).view(np.uint8)[: codec.wire_bytes(elements)]
    wire[:] = random.integers(0, 256, wire.size)
    expected, refused = aligned_zeros(elements, FLOAT32), False
    try:
        codec.decode_untrusted(wire, expected)
    except ProtocolError:
        refused = True
    found, flags = decoded(device, spec, wire, elements)
    assert bool(flags[1]) == refused
    assert (found[elements:] == 0x7B7B7B7B).all()
    assert refused or np.array_equal(found[:elements], expected.view(np.uint32))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_every_half_is_the_single_it_was(kind: str, device: Device) -> None:
    every = np.arange(65_536, dtype=np.uint16)
    expected = aligned_zeros(every.size, FLOAT32)
    halves.build(kind).to_single(every, expected)
    found, flags = decoded(device, HALF_CODECS[kind](), every.view(np.uint8), every.size)
    assert np.array_equal(found[: every.size], expected.view(np.uint32))
    assert flags == [1, 0]


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("as_codec", [False, True])
def test_weights_become_the_halves_that_hosts_make_of_them(kind: str, as_codec: bool, device: Device) -> None:
    random = np.random.default_rng(1)
    values = aligned_zeros(100_000, FLOAT32)
    values.view(np.uint32)[:] = random.integers(0, 1 << 32, values.size, np.uint32)
    values[:4] = 65_504, 65_519.9, 65_520, 3.39e38
    expected = aligned_zeros(values.size, FLOAT32).view(np.uint16)[: values.size]
    if as_codec:
        registry.build(HALF_CODECS[kind]()).encode(values, expected.view(np.uint8))
    else:
        halves.build(kind).to_half(values, expected)
    there, wire = up(device, values), devices.empty(device, values.size + 32, np.dtype(np.uint16))
    run = (values.size + 32, there.address, values.size, wire.address)
    lane = device.lane()
    lane.launch(devices.launch_of(encode_source(HALF_CODECS[kind] if as_codec else kind), [run], []))
    lane.finish()
    found = down(device, wire)
    assert np.array_equal(found[: values.size], expected)
    assert not found[values.size :].any()


def encoded(held: Held, up_spec: CodecSpec | None, seed: int, odd: float) -> tuple[Array, Gradient]:
    """The bytes of a push of all segments, as a worker makes them."""
    whole, random = len(held.block.segments), np.random.default_rng(seed)
    what = Gradient(Op.PUSH, held.block, 0, whole, 0, extends=True)
    raw = np.zeros(held.group.wire.bytes_up(Op.PUSH, held.block, 0, whole), np.uint8)
    at = 0
    for segment in held.block.segments:
        values = aligned_zeros(segment.elements, FLOAT32)
        values[:] = random.standard_normal(segment.elements)
        values[-1] += odd
        if up_spec is None:
            to = raw[2 * segment.begin : 2 * segment.begin + 2 * segment.elements]
            halves.build(held.group.spec.layout.dtype_name).to_half(values, to.view(np.uint16))
            continue
        codec = registry.build(up_spec)
        codec.encode(values, raw[at : at + codec.wire_bytes(segment.elements)])
        at += codec.room(segment.elements)
    return raw, what


def memories(device: Device, dtype: str, transfer: Transfer) -> tuple[Held, Held]:
    spec = spec_of(RULE, dtype, transfer)
    memory = ParameterDevice(device).memory_for(spec, windlass_rules.build(RULE, spec.layout.held))
    return Held(RULE, dtype, transfer=transfer), Held(RULE, dtype, memory, transfer)


@pytest.mark.parametrize(
    ("dtype", "codec"), [("float16", None), ("bfloat16", None), *(("float32", codec) for codec in CODECS[::2])], ids=str
)
@pytest.mark.parametrize("odd", [0.0, np.nan])
@pytest.mark.parametrize("policy", [Nonfinite.REJECT, Nonfinite.ZERO])
def test_what_arrives_encoded_waits_decoded_as_it_does_on_hosts(
    dtype: str, codec: CodecSpec | None, odd: float, policy: Nonfinite, device: Device
) -> None:
    found = []
    for held in memories(device, dtype, Transfer(up=codec, nonfinite=policy)):
        raw, what = encoded(held, codec, 3, odd)
        values, finite = held.group.wire.arrived_untrusted(raw, None, what, held.memory)
        assert isinstance(values, Values)
        assert values.buffer is not None
        bits = [held.now(values.array[s.begin : s.begin + s.elements]).tobytes() for s in held.block.segments]
        values.buffer.release()
        found.append((bits if finite else [], finite, held.group.wire.traffic.figures()))
        assert held.pool.bytes_lent == 0
    assert found[0] == found[1]


def test_only_encoded_bytes_are_copied_to_the_device(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    _, held = memories(device, "float32", Transfer(up=OneBit()))
    raw, what = encoded(held, OneBit(), 3, 0.0)
    lane = device.lane()
    sent: list[int] = []
    upload = lane.upload

    def counted(to: int, values: Array) -> None:
        sent.append(values.nbytes)
        upload(to, values)

    monkeypatch.setattr(lane, "upload", counted)
    values, _ = held.group.wire.arrived_untrusted(raw, None, what, held.memory)
    assert values is not None
    assert values.buffer is not None
    values.buffer.release()
    assert sum(sent) < values.array.nbytes / 16


@pytest.mark.parametrize("codec", [Int8(), TopK()], ids=str)
def test_bytes_that_cannot_be_read_are_refused_in_the_words_of_hosts(codec: CodecSpec, device: Device) -> None:
    said = []
    for held in memories(device, "float32", Transfer(up=codec)):
        raw, what = encoded(held, codec, 3, 0.0)
        raw[:4] = 255  # the first scale, or the first place
        raw[3] = 0xBF
        with pytest.raises(ProtocolError) as refused:
            held.group.wire.arrived_untrusted(raw, None, what, held.memory)
        said.append(str(refused.value))
        assert held.pool.bytes_lent == 0
    assert said[0] == said[1]


def test_a_function_of_another_form_has_no_twin() -> None:
    def counts(bits: Any) -> Any:
        while bits:
            bits = np.uint32(bits >> np.uint32(1))
        return bits

    def widens(bits: Any) -> Any:
        return bits + 1

    for function in (counts, widens):
        with pytest.raises(InvariantError, match="no twin"):
            function_source(function, {"bits": "u32"})
