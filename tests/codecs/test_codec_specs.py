"""Codecs and transfers as they are declared and as they travel."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto import codec_specs, transfer_specs
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
from windlass_proto.consistency import Consistency
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import codecs_pb2
from windlass_proto.rule_specs import SGD
from windlass_proto.transfer_specs import PLAIN, Nonfinite, Transfer

BLOCKS = st.sampled_from([64, 256, 1024, 65_536])
RATIOS = st.floats(1e-6, 0.5)
SEEDS = st.integers(0, (1 << 64) - 1)
CODECS: st.SearchStrategy[CodecSpec] = st.one_of(
    st.just(Float16()),
    st.just(BFloat16()),
    st.builds(Int8, BLOCKS),
    st.builds(OneBit, BLOCKS),
    st.builds(TwoBit, st.floats(1e-30, 1e30)),
    st.builds(TopK, RATIOS),
    st.builds(RandomK, RATIOS, SEEDS),
    st.builds(Dithering, st.sampled_from([4, 8]), BLOCKS, st.booleans(), SEEDS),
)
TRANSFERS = st.builds(Transfer, st.none() | CODECS, st.none() | CODECS, st.sampled_from(Nonfinite))
BSP = Consistency.parse("bsp")


@given(TRANSFERS)
def test_a_transfer_comes_out_of_its_bytes_as_it_went_in(transfer: Transfer) -> None:
    assert transfer_specs.from_bytes_untrusted(transfer_specs.to_bytes(transfer)) == transfer


def test_the_plain_transfer_has_no_bytes() -> None:
    assert transfer_specs.to_bytes(PLAIN) == b""


@given(st.binary(max_size=60))
def test_any_bytes_are_a_transfer_or_a_protocol_error(raw: bytes) -> None:
    try:
        found = transfer_specs.from_bytes_untrusted(raw)
    except ProtocolError:
        return
    assert isinstance(found, Transfer)


@pytest.mark.parametrize(
    "message",
    [
        codecs_pb2.Transfer(nonfinite="shrug"),
        codecs_pb2.Transfer(up=codecs_pb2.Codec(), nonfinite="reject"),
        codecs_pb2.Transfer(up=codecs_pb2.Codec(int8=codecs_pb2.Int8(block=100)), nonfinite="reject"),
        codecs_pb2.Transfer(up=codecs_pb2.Codec(top_k=codecs_pb2.TopK(ratio=float("nan"))), nonfinite="reject"),
        codecs_pb2.Transfer(up=codecs_pb2.Codec(dithering=codecs_pb2.Dithering(bits=5, block=64)), nonfinite="reject"),
    ],
)
def test_a_transfer_that_no_caller_can_make_is_refused(message: codecs_pb2.Transfer) -> None:
    with pytest.raises(ProtocolError):
        transfer_specs.from_bytes_untrusted(message.SerializeToString())


def test_a_field_of_a_later_release_is_refused() -> None:
    for raw in (b"\x22\x00", b"\x0a\x04\x1a\x02\x78\x01", b"\x0a\x02\x7a\x00"):
        with pytest.raises(ProtocolError):
            transfer_specs.from_bytes_untrusted(b"\x1a\x06reject" + raw)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Int8(block=100),
        lambda: Int8(block=32),
        lambda: OneBit(block=1 << 17),
        lambda: TwoBit(0.0),
        lambda: TwoBit(float("inf")),
        lambda: TopK(0.0),
        lambda: TopK(0.7),
        lambda: TopK(True),
        lambda: RandomK(0.1, seed=-1),
        lambda: Dithering(bits=3),
    ],
)
def test_numbers_out_of_range_are_refused_in_words(make: object) -> None:
    with pytest.raises(UsageError, match="takes"):
        make()  # type: ignore[operator]


def test_what_is_no_codec_and_no_policy_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"wl\.codec\.TopK"):
        transfer_specs.of("top_k", None, "reject")
    with pytest.raises(UsageError, match=r"wl\.codec\.Int8"):
        transfer_specs.of(None, Int8, "reject")
    with pytest.raises(UsageError, match="'reject'"):
        transfer_specs.of(None, None, "rejct")


@pytest.mark.parametrize(
    ("transfer", "changes", "said"),
    [
        (Transfer(up=Int8()), {"dtype": "float64"}, "float32 tensors"),
        (Transfer(down=Float16()), {"dtype": "float16"}, "halves already"),
        (Transfer(nonfinite=Nonfinite.CLIP), {}, "clip_value"),
    ],
)
def test_what_cannot_be_carried_out_is_refused_with_what_can(
    transfer: Transfer, changes: dict[str, object], said: str
) -> None:
    given_for = {"dtype": "float32", "rule": SGD(lr=0.1)} | changes
    with pytest.raises(UsageError, match=said):
        transfer_specs.check(transfer, **given_for)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["asp", "ssp:3"])
def test_weights_come_down_as_changes_only_in_modes_whose_steps_are_everybodys(mode: str) -> None:
    for down in (Int8(), TopK()):
        transfer_specs.check_mode(Transfer(down=down), Consistency.parse("bsp"))
        with pytest.raises(UsageError, match="Float16"):
            transfer_specs.check_mode(Transfer(down=down), Consistency.parse(mode))


@pytest.mark.parametrize("cls", codec_specs.CODECS.values())
def test_each_codec_goes_up_dense_under_bsp(cls: type) -> None:
    spec = cls(0.1) if cls is TwoBit else cls()
    transfer_specs.check(Transfer(up=spec), dtype="float32", rule=SGD(lr=0.1))
