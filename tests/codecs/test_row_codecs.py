"""Codecs laid over rows: each row stands for itself, wherever it travels; what makes no sense for rows is refused."""

from __future__ import annotations

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_proto import row_codecs
from windlass_proto.codec_specs import BFloat16, CodecSpec, Dithering, Float16, Int8, OneBit, RandomK, TopK, TwoBit
from windlass_proto.codecs.registry import build_rows
from windlass_proto.errors import ProtocolError, UsageError

SPECS: tuple[CodecSpec, ...] = (
    Float16(),
    BFloat16(),
    Int8(),
    OneBit(),
    TwoBit(threshold=0.5),
    Dithering(bits=4),
    Dithering(bits=8, natural=True),
)

# Of 40 rows of 24 values in [-1, 1), seed 7; made once and never again: other bytes are another protocol.
GOLDEN = {
    "Float16()": "5624bfd4a160c587",
    "BFloat16()": "14e1ecbd9be028c7",
    "Int8(block=256)": "eaeb3c0537b6d8e9",
    "OneBit(block=1024)": "052c799a979033c6",
    "TwoBit(threshold=0.5)": "d51a90ab72e47e2a",
    "Dithering(bits=4, block=256, natural=False, seed=0)": "e6d4e253a8e05558",
    "Dithering(bits=8, block=256, natural=True, seed=0)": "856b75f8261f3b01",
}


def gradients(rows: int, dim: int, seed: int = 0) -> np.ndarray:
    """Rows of very different sizes."""
    random = np.random.default_rng(seed)
    sizes = 10.0 ** random.integers(-4, 3, rows)
    return (random.normal(size=(rows, dim)) * sizes[:, None]).astype(np.float32)


def encoded(spec: CodecSpec, rows: np.ndarray, seed: int = 9, error: np.ndarray | None = None) -> np.ndarray:
    codec = build_rows(spec, rows.shape[1])
    wire = np.zeros(codec.wire_bytes(rows.size), np.uint8)
    codec.encode(rows.reshape(-1), wire, error, seed)
    return wire


def decoded(spec: CodecSpec, wire: np.ndarray, rows: int, dim: int) -> np.ndarray:
    found = np.zeros(rows * dim, np.float32)
    build_rows(spec, dim).decode_untrusted(wire, found)
    return found.reshape(rows, dim)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_rows_encode_to_the_same_bytes_for_ever(spec: CodecSpec) -> None:
    values = np.random.default_rng(7).uniform(-1, 1, (40, 24)).astype(np.float32)
    assert xxhash.xxh3_64_hexdigest(encoded(spec, values).tobytes()) == GOLDEN[repr(spec)]


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@given(rows=st.integers(1, 40), width=st.sampled_from([8, 16, 24, 64, 520]), data=st.data())
@settings(max_examples=15, deadline=None)
def test_what_a_row_becomes_depends_on_it_alone(spec: CodecSpec, rows: int, width: int, data: st.DataObject) -> None:
    values = gradients(rows, width)
    cut = data.draw(st.integers(0, rows))
    whole = decoded(spec, encoded(spec, values), rows, width)
    for begin, end in ((0, cut), (cut, rows)):
        part = encoded(spec, values[begin:end], row_codecs.seed_at(9, begin * width))
        assert np.array_equal(decoded(spec, part, end - begin, width), whole[begin:end])


@pytest.mark.parametrize(("dim", "block", "part"), [(16, 256, 16), (512, 256, 256), (520, 256, 130), (257, 256, 257)])
def test_blocks_are_equal_parts_of_a_row(dim: int, block: int, part: int) -> None:
    assert row_codecs.part_of(Int8(block=block), dim) == part
    assert build_rows(Int8(block=block), dim).wire_bytes(32 * dim) == (32 * dim // part * 4 + 63) // 64 * 64 + 32 * dim


def test_a_small_row_beside_a_large_one_keeps_its_digits() -> None:
    rows = np.stack([np.full(16, 1000.0), np.linspace(-1e-3, 1e-3, 16)]).astype(np.float32)
    found = decoded(Int8(), encoded(Int8(), rows), 2, 16)
    assert np.abs(found[1] - rows[1]).max() < 1e-5


@pytest.mark.parametrize(
    ("spec", "dim", "said"),
    [
        (TopK(0.1), 16, "for dense tensors"),
        (RandomK(0.1), 16, "for dense tensors"),
        (OneBit(), 12, r"multiple_of=8.*dim=16"),
        (Dithering(bits=4), 7, r"multiple_of=2.*dim=8"),
        (Int8(), 1, "longer encoded"),
        (Dithering(bits=8), 1, "longer encoded"),
    ],
    ids=repr,
)
def test_what_makes_no_sense_for_rows_is_refused_with_what_does(spec: CodecSpec, dim: int, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        row_codecs.check(spec, dim)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_an_encoding_is_shorter_than_the_rows(spec: CodecSpec) -> None:
    for dim in (8, 16, 64, 4096):
        row_codecs.check(spec, dim)
        assert encoded(spec, gradients(100, dim)).nbytes <= 0.6 * 400 * dim
    for dim in (1, 3, 12):
        try:
            row_codecs.check(spec, dim)
        except UsageError:
            continue
        assert encoded(spec, gradients(1000, dim)).nbytes < 4000 * dim


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_an_encoding_of_another_length_is_refused(spec: CodecSpec) -> None:
    wire = encoded(spec, gradients(10, 16))
    for other in (wire[:-1], np.append(wire, np.uint8(0))):
        with pytest.raises(ProtocolError, match="another length"):
            decoded(spec, other, 10, 16)


def test_only_codecs_that_lose_to_one_side_keep_what_they_lost() -> None:
    assert [spec for spec in SPECS if row_codecs.keeps(spec)] == [Int8(), OneBit(), TwoBit(threshold=0.5)]
