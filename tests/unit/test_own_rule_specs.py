"""Own rules as values: the same on both ends, compared by name, version and fields, safe against any bytes."""

from __future__ import annotations

from typing import Any

import pytest

from windlass_proto import own_rules, rule_specs
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import rules_pb2
from windlass_proto.own_rules import InstalledRule, OwnRule
from windlass_proto.schedules import Cosine

FIELDS = (("lr", "number"), ("beta", "number"), ("steps", "integer"), ("nesterov", "flag"), ("mode", "text"))
HERE = InstalledRule("ball", "1.0", FIELDS)


def asked(version: str = "", **values: Any) -> OwnRule:
    return own_rules.own("ball", version, values)


@pytest.mark.parametrize(
    "rule",
    [
        asked(),
        asked("1.0", lr=0.5, beta=0.25, steps=-3, nesterov=True, mode="fast", clip_value=2.0),
        asked(lr=Cosine(0.1, steps=100), weight_decay=0.1),
    ],
    ids=str,
)
def test_a_rule_comes_back_from_its_bytes(rule: OwnRule) -> None:
    raw = rule_specs.to_bytes(rule)
    assert rule_specs.from_bytes_untrusted(raw) == rule
    assert rule_specs.to_bytes(rule_specs.from_bytes_untrusted(raw)) == raw
    assert rule_specs.rule_name(rule) == "ball"
    assert own_rules.installed_untrusted([own_rules.installed_message(HERE)]) == (HERE,)


@pytest.mark.parametrize(
    ("name", "values", "words"),
    [
        ("Ball", {}, "not lower case"),
        ("ball", {"beta": float("nan")}, "no finite number"),
        ("ball", {"beta": [1.0]}, "no finite number"),
        ("ball", {"mode": "x" * 201}, "short text"),
        ("ball", {"lr": -1.0}, "takes lr >= 0"),
        ("ball", {f"v{number}": 1.0 for number in range(33)}, "too many"),
    ],
)
def test_what_cannot_be_sent_is_refused(name: str, values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        own_rules.own(name, "", values)


def test_versions_are_compared_over_all_servers() -> None:
    other = InstalledRule("ball", "1.1", FIELDS)
    own_rules.check_servers(asked("1.0", beta=0.5, steps=3), {"server 0": (HERE,), "server 1": (HERE,)}, table=False)
    own_rules.check_servers(asked(beta=1), {"server 0": (HERE,)}, table=False)
    with pytest.raises(UsageError, match=r"server=server 1, version_there=1.1, version_of=server 0, version=1.0"):
        own_rules.check_servers(asked(), {"server 0": (HERE,), "server 1": (other,)}, table=False)
    with pytest.raises(UsageError, match=r"server=server 0, version_there=1.0, version_asked=1.1"):
        own_rules.check_servers(asked("1.1"), {"server 0": (HERE,), "server 1": (other,)}, table=False)
    with pytest.raises(UsageError, match=r"rule=ball, server=server 1, version_asked=1.0, version_there=none"):
        own_rules.check_servers(asked("1.0"), {"server 0": (HERE,), "server 1": ()}, table=False)


def test_hyper_parameters_are_compared_with_what_the_rule_declares() -> None:
    for values, words in [
        ({"bet": 0.1}, "Did you mean beta"),
        ({"steps": 1.5}, r"steps=1.5, given=number, declared=integer"),
        ({"weight_decay": 0.1}, "no such hyper-parameter"),
    ]:
        with pytest.raises(UsageError, match=words):
            own_rules.check_servers(own_rules.own("ball", "", values), {"server 0": (HERE,)}, table=False)


def test_a_rule_of_rows_is_for_tables_alone() -> None:
    rows = InstalledRule("ball", "1.0", FIELDS, by_row=True)
    own_rules.check_servers(asked(), {"server 0": (rows,)}, table=True)
    with pytest.raises(UsageError, match="steps whole rows"):
        own_rules.check_servers(asked(), {"server 0": (rows,)}, table=False)


@pytest.mark.parametrize("text", ["", "Ball", "ball==", "ball=1", "ball==1 0", "ball>=1"])
def test_an_allow_list_holds_names_and_versions(text: str) -> None:
    with pytest.raises(UsageError, match="NAME or NAME==VERSION"):
        own_rules.parse_allowed(text)


def test_an_allow_list_may_leave_the_version_open() -> None:
    assert own_rules.parse_allowed("ball") == ("ball", "")
    assert own_rules.parse_allowed("ball==1.0.post1") == ("ball", "1.0.post1")


def test_live_changes_are_for_what_servers_understand_themselves() -> None:
    rule = asked(lr=0.5, beta=0.5)
    assert rule_specs.changed(rule, {"lr": 0.1}) == asked(lr=0.1, beta=0.5)
    for name in ("beta", "values", "version", "weight_decay"):
        with pytest.raises(UsageError, match="no such hyper-parameter"):
            rule_specs.changed(rule, {name: 0.1})


def test_what_the_wire_must_not_bring_is_refused() -> None:
    message = rules_pb2.RuleSpec()
    message.own.name = "../ball"
    with pytest.raises(ProtocolError, match="not lower case"):
        rule_specs.from_bytes_untrusted(message.SerializeToString())
    message.own.name = "ball"
    message.own.values.add(name="beta")
    with pytest.raises(ProtocolError, match="has no value"):
        rule_specs.from_bytes_untrusted(message.SerializeToString())
    message.own.values[0].number = 1.0
    message.own.values.add(name="beta", number=2.0)
    with pytest.raises(ProtocolError, match="not in order"):
        rule_specs.from_bytes_untrusted(message.SerializeToString())
