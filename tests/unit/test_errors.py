"""Errors: fields that say the same on both sides of the wire."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_proto import errors
from windlass_proto.errors import ProtocolError, UsageError, WindlassError

CLASSES = [
    errors.UsageError,
    errors.FencedError,
    errors.UnavailableError,
    errors.ClosedError,
    errors.ProtocolError,
    errors.CorruptionError,
    errors.InvariantError,
]
NAMES = st.from_regex(r"[a-z_]{1,20}", fullmatch=True).filter(lambda name: name not in ("fact", "next_move", "self"))
WORDS = st.text(max_size=60)


def test_the_text_states_the_fact_the_values_and_the_next_move() -> None:
    error = UsageError("a shape differs", got=(3, 4), expected=(4, 3), next_move="Transpose it.")
    assert str(error) == "a shape differs (got=(3, 4), expected=(4, 3)). Transpose it."
    assert str(UsageError("it is so")) == "it is so"


@given(cls=st.sampled_from(CLASSES), fact=WORDS, move=WORDS, values=st.dictionaries(NAMES, WORDS, max_size=12))
def test_an_error_says_the_same_after_the_wire(
    cls: type[WindlassError], fact: str, move: str, values: dict[str, str]
) -> None:
    error = cls(fact, next_move=move, **values)
    back = errors.from_wire_untrusted(errors.to_wire(error))
    assert type(back) is cls
    assert str(back) == str(error)


@given(fact=st.text(min_size=3000, max_size=4000), values=st.dictionaries(NAMES, st.text(max_size=400), max_size=20))
@settings(max_examples=20)
def test_an_error_of_any_length_fits_the_wire(fact: str, values: dict[str, str]) -> None:
    raw = errors.to_wire(UsageError(fact, next_move=fact, **values))
    assert len(raw) <= 8192
    assert fact.startswith(errors.from_wire_untrusted(raw).fact)


def test_long_text_beyond_ascii_fits_the_wire() -> None:
    """Each of these takes twelve bytes of JSON."""
    raw = errors.to_wire(UsageError("\U0001f300" * 4000, next_move="\U0001f300" * 4000, got="\U0001f300" * 4000))
    assert len(raw) <= 8192
    assert errors.from_wire_untrusted(raw).fact.startswith("\U0001f300")


RECORD = {"class": "UsageError", "fact": "f", "next_move": "n", "values": {}}


@pytest.mark.parametrize(
    "record",
    [
        [],
        "text",
        None,
        {},
        RECORD | {"class": "SystemExit"},
        RECORD | {"class": ["UsageError"]},
        RECORD | {"fact": 7},
        RECORD | {"values": [1]},
        RECORD | {"values": {"fact": "given twice"}},
        RECORD | {"values": {"self": "given twice"}},
    ],
)
def test_a_record_that_is_no_error_is_refused(record: object) -> None:
    with pytest.raises(ProtocolError):
        errors.from_wire_untrusted(json.dumps(record).encode())


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe", b"[" * 8000, b"9" * 8000, b" " * 8193, b'{"class":'])
def test_bytes_that_are_no_record_are_refused(raw: bytes) -> None:
    with pytest.raises(ProtocolError):
        errors.from_wire_untrusted(raw)


@settings(max_examples=500)
@given(raw=st.binary(max_size=300), at=st.integers(0, 200), noise=st.binary(max_size=8), keep=st.booleans())
def test_error_fuzz_raises_protocol_errors_only(raw: bytes, at: int, noise: bytes, keep: bool) -> None:
    if keep:
        raw = errors.to_wire(UsageError("a fact", next_move="a move", a="1", b="2"))
        raw = raw[:at] + noise + raw[at + len(noise) :]
    try:
        found = errors.from_wire_untrusted(raw)
    except ProtocolError:
        return
    assert isinstance(found, WindlassError)
