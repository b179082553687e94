"""Beats: they survive the trip, and nothing else is taken for one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto import beats
from windlass_proto.errors import ProtocolError

KEY = beats.derive_key(b"token", "cluster")
U64 = st.integers(0, 2**64 - 1)
PAIRS = st.lists(st.tuples(st.integers(0, 2**32 - 1), U64), max_size=beats.PAIRS_MAX)


@given(U64, U64, st.integers(0, 2**32 - 1), PAIRS)
def test_a_beat_arrives_as_it_was_sent(member: int, counter: int, age_ms: int, pairs: list[tuple[int, int]]) -> None:
    raw = beats.pack(member, counter, age_ms, pairs, KEY)
    assert len(raw) <= beats.BEAT_BYTES_MAX
    assert beats.unpack_untrusted(raw, KEY) == beats.Beat(member, counter, age_ms, tuple(pairs))


def test_of_many_clocks_the_first_32_travel_and_ages_saturate() -> None:
    raw = beats.pack(1, 1, 1 << 40, [(i, i) for i in range(100)], KEY)
    beat = beats.unpack_untrusted(raw, KEY)
    assert beat.clocks == tuple((i, i) for i in range(32))
    assert beat.oldest_frame_age_ms == 2**32 - 1


def test_the_layout_is_the_documented_one() -> None:
    raw = beats.pack(0x0102, 3, 4, [(5, 6)], KEY)
    assert raw[:-16] == bytes.fromhex(
        "574c4254 0100 0100 0201000000000000 0300000000000000 04000000 00000000 05000000 0600000000000000"
    )


def test_another_token_or_cluster_signs_no_beat_of_this_one() -> None:
    for key in (beats.derive_key(b"other", "cluster"), beats.derive_key(b"token", "other")):
        with pytest.raises(ProtocolError, match="not signed"):
            beats.unpack_untrusted(beats.pack(1, 1, 0, [], key), KEY)


@given(st.binary(max_size=600))
def test_noise_is_refused_with_one_exception_type(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        beats.unpack_untrusted(raw, KEY)


@given(st.data())
def test_a_changed_beat_is_refused(data: st.DataObject) -> None:
    raw = bytearray(beats.pack(1, 2, 3, [(4, 5)] * data.draw(st.integers(0, 32)), KEY))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ProtocolError):
        beats.unpack_untrusted(bytes(raw), KEY)
    with pytest.raises(ProtocolError):
        beats.unpack_untrusted(bytes(raw[: data.draw(st.integers(0, len(raw) - 1))]), KEY)


def test_a_signed_beat_whose_count_lies_is_refused() -> None:
    import hashlib
    import hmac

    body = bytearray(beats.pack(1, 1, 0, [(1, 1)], KEY)[:-16])
    for claimed in (0, 2, 33, 65_535):
        body[6:8] = claimed.to_bytes(2, "little")
        signed = bytes(body) + hmac.digest(KEY, bytes(body), hashlib.sha256)[:16]
        with pytest.raises(ProtocolError, match="count"):
            beats.unpack_untrusted(signed, KEY)
