"""Rule records: what a change makes of the one before, what it means for a tensor, and safety against any bytes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass.live_rules import LiveRules
from windlass.schedule import Constant, Cosine
from windlass_proto import rule_records
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import rules_pb2
from windlass_proto.rule_records import (
    DECLARED,
    RECORD_BYTES_MAX,
    RuleChange,
    RuleRecord,
    change_from_bytes_untrusted,
    change_of,
    change_to_bytes,
    from_bytes_untrusted,
    to_bytes,
    with_change,
)
from windlass_proto.rule_specs import SGD, Adam, changed

values = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.tuples(st.floats(0, 1), st.floats(0, 1)),
    st.builds(Constant, st.floats(0, 1)),
)
changes = st.builds(
    change_of,
    st.text("abc*?[]", min_size=1, max_size=8),
    st.integers(0, 100),
    st.dictionaries(st.sampled_from(["lr", "eps", "betas", "weight_decay"]), values, min_size=1),
)


def record_of(*given: RuleChange) -> RuleRecord:
    record = DECLARED
    for change in given:
        record = with_change(record, change, 0)
    return record


@given(st.lists(changes, min_size=1, max_size=5))
def test_records_come_back_from_their_bytes(given: list[RuleChange]) -> None:
    record = record_of(*given)
    assert record.version == len(given)
    assert from_bytes_untrusted(to_bytes(record)) == record
    assert change_from_bytes_untrusted(change_to_bytes(given[0])) == given[0]


@settings(max_examples=300)
@given(st.lists(changes, min_size=1, max_size=3), st.integers(0, 10_000), st.integers(1, 255))
def test_damaged_bytes_are_a_record_or_a_protocol_error(given: list[RuleChange], at: int, flip: int) -> None:
    raw = bytearray(to_bytes(record_of(*given)))
    raw[at % len(raw)] ^= flip
    try:
        damaged = from_bytes_untrusted(bytes(raw))
    except ProtocolError:
        return
    assert damaged.changes


@given(st.lists(changes, min_size=1, max_size=6), st.sampled_from(["a", "ab", "cc", "b"]), st.integers(0, 120))
def test_what_a_record_leaves_out_was_overruled(given: list[RuleChange], tensor: str, table: int) -> None:
    """A record means what all changes mean, one after the other."""
    everything = RuleRecord(1, 0, tuple(given))
    try:
        expected = everything.rule_of(table, tensor, Adam())
    except UsageError:
        return
    assert record_of(*given).rule_of(table, tensor, Adam()) == expected


def test_changes_reach_what_they_name_and_what_was_declared_before_them() -> None:
    record = record_of(change_of("*", 5, {"lr": 0.5}), change_of("b*", 5, {"lr": 0.25, "weight_decay": 0.1}))
    declared = SGD(lr=1.0)
    assert record.rule_of(5, "w", declared) == SGD(lr=0.5)
    assert record.rule_of(1, "b1", declared) == SGD(lr=0.25, weight_decay=0.1)
    assert record.rule_of(6, "b1", declared) == declared
    assert len(record_of(*[change_of("*", 5, {"lr": i}) for i in range(1000)]).changes) == 1


def test_a_record_that_replaces_another_leaves_nothing_of_it() -> None:
    first = with_change(DECLARED, change_of("*", 1, {"lr": 0.5, "momentum": 0.25}), 10)
    second = rule_records.with_changes(first, (change_of("w", 1, {"lr": 2.0}),), 4)
    assert (second.version, second.since) == (2, 10)
    assert second.rule_of(1, "w", SGD(lr=1.0)) == SGD(lr=2.0)
    third = from_bytes_untrusted(rule_records.to_bytes(rule_records.with_changes(second, (), 12)))
    assert (third.version, third.since, third.changes) == (3, 12, ())


def test_the_step_that_records_hold_from_never_falls() -> None:
    first = with_change(DECLARED, change_of("*", 1, {"lr": 1}), 10)
    second = with_change(first, change_of("*", 1, {"lr": 2}), 4)
    assert (first.since, second.since, second.version) == (10, 10, 2)
    assert DECLARED < first < second


def test_a_record_is_bounded() -> None:
    record = DECLARED
    for i in range(15):
        record = with_change(record, change_of(f"a tensor with a rather long name {i}", 1, {"lr": 1.0}), 0)
    with pytest.raises(UsageError, match="too many bytes"):
        with_change(record, change_of("x" * 250, 1, {"lr": 1.0}), 0)
    assert len(to_bytes(record)) <= RECORD_BYTES_MAX
    with pytest.raises(ProtocolError, match="too long"):
        from_bytes_untrusted(bytes(RECORD_BYTES_MAX + 1))


@pytest.mark.parametrize(
    "damage",
    [
        rules_pb2.RuleRecord(version=0, changes=[rules_pb2.RuleChange()]),
        rules_pb2.RuleRecord(version=1, changes=[rules_pb2.RuleChange(names="*")]),
        rules_pb2.RuleRecord(
            version=1, changes=[rules_pb2.RuleChange(names="*", values=[rules_pb2.HyperParameter(name="lr")])]
        ),
        rules_pb2.RuleRecord(
            version=1,
            changes=[
                rules_pb2.RuleChange(names="*", values=[rules_pb2.HyperParameter(name="lr", numbers=[float("nan")])])
            ],
        ),
    ],
    ids=["version", "no values", "no number", "nan"],
)
def test_records_that_say_nothing_or_nonsense_are_refused(damage: rules_pb2.RuleRecord) -> None:
    with pytest.raises(ProtocolError):
        from_bytes_untrusted(damage.SerializeToString())


@pytest.mark.parametrize("value", ["0.1", None, True, (1.0, 2.0, 3.0), float("inf"), 1 + 2j], ids=repr)
def test_what_is_no_number_cannot_be_set(value: Any) -> None:
    with pytest.raises(UsageError, match="lr"):
        change_of("*", 1, {"lr": value})


def test_a_live_change_keeps_the_kernel_and_its_slots() -> None:
    assert changed(SGD(1.0, momentum=0.5), {"momentum": 0.9}) == SGD(1.0, momentum=0.9)
    assert changed(Adam(), {"betas": (0.8, 0.9), "lr": Cosine(1.0, 10)}) == Adam(Cosine(1.0, 10), (0.8, 0.9))
    for spec, momentum in ((SGD(1.0), 0.9), (SGD(1.0, momentum=0.5), 0.0)):
        with pytest.raises(UsageError, match="momentum of sgd cannot be changed while training"):
            changed(spec, {"momentum": momentum})
    with pytest.raises(UsageError, match="Did you mean betas"):
        changed(Adam(), {"beta": 0.9})


def test_a_worker_finds_what_holds_in_a_step_among_what_it_has_heard() -> None:
    live = LiveRules()
    live.learn(b"")
    assert live.at(5) is live.newest() is DECLARED
    first = with_change(DECLARED, change_of("*", 1, {"lr": 1}), 3)
    second = with_change(first, change_of("*", 1, {"lr": 2}), 7)
    for record in (first, second, first, second):
        live.learn(rule_records.to_bytes(record))
    assert [live.at(clock) for clock in (2, 3, 6, 7, 99)] == [DECLARED, first, first, second, second]
    assert live.newest() == second
    late = LiveRules()
    late.learn(rule_records.to_bytes(second))
    assert late.at(5) is DECLARED, "it says nothing about steps before"
