"""Specs of update rules: valid or never made, the same on both ends of the wire, safe against any bytes."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rules import spec_strategies
from windlass import optim
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import rules_pb2
from windlass_proto.hyper_parameters import CLIPS
from windlass_proto.rule_specs import (
    FTML,
    FTRL,
    LAMB,
    LARS,
    ROW_RULES,
    RULE_BYTES_MAX,
    RULES,
    SGD,
    AdaBelief,
    Adadelta,
    Adagrad,
    Adam,
    AdamW,
    OwnRule,
    RMSprop,
    RuleSpec,
    Signum,
    Sum,
    changed,
    check_rows,
    from_bytes_untrusted,
    from_name,
    rule_name,
    to_bytes,
)

specs = spec_strategies.specs(spec_strategies.WHOLE)


def names_of(cls: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def least(cls: Any) -> dict[str, Any]:
    """What a rule cannot be made without."""
    return {"lr": 0.1} if cls is SGD else {}


@given(specs)
def test_a_spec_comes_back_from_its_bytes(spec: RuleSpec) -> None:
    raw = to_bytes(spec)
    assert len(raw) <= RULE_BYTES_MAX
    assert from_bytes_untrusted(raw) == spec
    assert to_bytes(from_bytes_untrusted(raw)) == raw


@settings(max_examples=500)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_spec_or_a_protocol_error(raw: bytes) -> None:
    try:
        spec = from_bytes_untrusted(raw)
    except ProtocolError:
        return
    assert type(spec) in (*RULES.values(), OwnRule)


@settings(max_examples=500)
@given(specs, st.integers(0, 10_000), st.integers(1, 255), st.integers(0, 100))
def test_damaged_bytes_are_a_valid_spec_or_a_protocol_error(spec: RuleSpec, at: int, flip: int, cut: int) -> None:
    raw = bytearray(to_bytes(spec))
    raw[at % len(raw)] ^= flip
    try:
        damaged = from_bytes_untrusted(bytes(raw[: len(raw) - cut] if cut < len(raw) else raw))
    except ProtocolError:
        return
    assert from_bytes_untrusted(to_bytes(damaged)) == damaged


def test_the_bytes_of_a_spec_stay_what_they_were_in_earlier_releases() -> None:
    golden: dict[RuleSpec, str] = {
        SGD(0.5, 0.25, 0.0, 2.0, nesterov=True): (
            "0a2609000000000000e03f11000000000000d03f1900000000000000002100000000000000402801"
        ),
        Adagrad(): ("122d097b14ae47e17a843f11000000000000000019000000000000000021000000000000000029bbbdd7d9df7cdb3d"),
        Adam(): ("1a2f09fca9f1d24d62503f11cdccccccccccec3f192b8716d9cef7ef3f213a8c30e28e79453e2900000000000000003000"),
        AdamW(): ("222f09fca9f1d24d62503f11cdccccccccccec3f192b8716d9cef7ef3f213a8c30e28e79453e297b14ae47e17a843f3000"),
    }
    assert {spec: to_bytes(spec).hex() for spec in golden} == golden


def test_an_absent_hyper_parameter_has_its_default() -> None:
    message = rules_pb2.RuleSpec()
    message.adamw.beta2 = 0.5
    assert from_bytes_untrusted(message.SerializeToString()) == AdamW(betas=(0.9, 0.5))


@pytest.mark.parametrize("name", sorted(set(RULES) - {"sgd"}))
def test_a_rule_without_any_hyper_parameter_has_all_defaults(name: str) -> None:
    message = rules_pb2.RuleSpec()
    getattr(message, name).SetInParent()
    assert from_bytes_untrusted(message.SerializeToString()) == from_name(name, {})


def test_sgd_without_a_learning_rate_is_refused_from_the_wire() -> None:
    message = rules_pb2.RuleSpec()
    message.sgd.momentum = 0.5
    with pytest.raises(ProtocolError, match="without its learning rate"):
        from_bytes_untrusted(message.SerializeToString())


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b"", "names no rule"),
        (b"\xff\xff", "could not be read"),
        (bytes.fromhex("7a00"), r"fields this release does not know \(field_numbers=\[15\]"),
        (bytes.fromhex("1a023801"), r"adam holds fields .*field_numbers=\[7\].*known=lr, beta1"),
        (bytes(RULE_BYTES_MAX + 1), r"too long \(bytes=1025, bytes_max=1024\)"),
        (bytes.fromhex("0a0909000000000000f0bf"), r"SGD takes lr >= 0 \(lr=-1.0\)"),
        (bytes.fromhex("0a0909000000000000f07f"), r"SGD takes a finite lr \(lr=inf\)"),
    ],
)
def test_what_the_wire_must_not_bring_is_named(raw: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        from_bytes_untrusted(raw)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf, -math.inf, "0.1", None, True, 10**400])
@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (cls, field.name)
        for cls in RULES.values()
        for field in dataclasses.fields(cls)
        if field.name not in ("dampening", "scale", "betas", *CLIPS) and not isinstance(field.default, bool)
    ],
)
def test_a_value_outside_of_its_range_is_refused_by_name(cls: Any, name: str, bad: object) -> None:
    with pytest.raises(UsageError, match=name) as refusal:
        cls(**(least(cls) | {name: bad}))
    assert name in refusal.value.values


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, "0.1", True, 10**400])
@pytest.mark.parametrize("cls", RULES.values())
def test_a_bound_of_clipping_is_a_finite_number_above_0_or_none(cls: Any, bad: object) -> None:
    for name in CLIPS if cls not in ROW_RULES else CLIPS[:1]:
        assert getattr(cls(**least(cls)), name) is None
        assert f"{name}=2.0" in repr(cls(**least(cls), **{name: 2}))
        with pytest.raises(UsageError, match=name):
            cls(**least(cls), **{name: bad})


def test_one_norm_is_bounded_at_most() -> None:
    with pytest.raises(UsageError, match=r"Adam takes clip_norm or clip_global_norm \(clip_norm=1.0, clip_global"):
        Adam(clip_norm=1, clip_global_norm=1)


@pytest.mark.parametrize("name", ["clip_norm", "clip_global_norm"])
def test_a_norm_that_was_not_declared_is_not_bounded_live(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} of adam cannot be changed while training"):
        changed(Adam(), {name: 1.0})
    assert getattr(changed(Adam(**{name: 1.0}), {name: 2.0}), name) == 2.0  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", [LAMB(), LARS(), Adam(clip_norm=1.0), SGD(lr=0.1, clip_global_norm=1.0)], ids=str)
def test_rows_of_a_table_have_no_norms_of_whole_tensors(spec: RuleSpec) -> None:
    with pytest.raises(UsageError, match="which no push to a sparse table has"):
        check_rows(spec)
    check_rows(Adam(clip_value=1.0))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "0.1", None, True, 10**400])
def test_a_value_of_either_sign_is_a_finite_number(bad: Any) -> None:
    assert SGD(lr=0.1, dampening=-1.0).dampening == Sum(scale=-1.0).scale == -1.0
    with pytest.raises(UsageError, match="dampening"):
        SGD(lr=0.1, dampening=bad)
    with pytest.raises(UsageError, match="scale"):
        Sum(scale=bad)


@pytest.mark.parametrize(
    ("cls", "name"),
    [(RMSprop, "alpha"), (Adadelta, "rho"), (Signum, "momentum")],
)
def test_a_share_that_is_kept_is_below_1(cls: Any, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{cls.__name__} takes {name} in \[0, 1\) \({name}=1.0\)"):
        cls(**{name: 1.0})


@pytest.mark.parametrize(
    ("cls", "name"),
    [(AdaBelief, "eps"), (Adadelta, "eps"), (FTML, "eps"), (FTRL, "beta")],
)
def test_what_keeps_a_divisor_from_0_is_above_0(cls: Any, name: str) -> None:
    with pytest.raises(UsageError, match=rf"{cls.__name__} takes {name} > 0 \({name}=0.0\)"):
        cls(**{name: 0})


@pytest.mark.parametrize(
    ("cls", "name"),
    [(cls, field.name) for cls in RULES.values() for field in dataclasses.fields(cls) if field.default is False],
)
def test_a_switch_is_true_or_false(cls: Any, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name}=True or False"):
        cls(**(least(cls) | {name: 1}))


@pytest.mark.parametrize("cls", [cls for cls in RULES.values() if "betas" in names_of(cls)])
@pytest.mark.parametrize("bad", [-1.0, 1.0, math.nan, math.inf, "0.1", None, True])
def test_each_beta_is_a_number_in_its_range(cls: Any, bad: object) -> None:
    for betas in ((0.9, bad), (bad, 0.9)):
        with pytest.raises(UsageError, match="betas"):
            cls(betas=betas)


@pytest.mark.parametrize("betas", [(0.9,), (0.9, 0.99, 0.999), 0.9, (1.0, 0.9), (0.9, 1.0)])
def test_betas_are_two_numbers_below_1(betas: object) -> None:
    with pytest.raises(UsageError, match="betas"):
        Adam(betas=betas)  # type: ignore[arg-type]


def test_nesterov_needs_momentum_and_no_dampening() -> None:
    assert SGD(lr=0.1, momentum=0.9, nesterov=True).nesterov
    with pytest.raises(UsageError, match="momentum=0"):
        SGD(lr=0.1, nesterov=True)
    with pytest.raises(UsageError, match=r"dampening=0\.5"):
        SGD(lr=0.1, momentum=0.9, dampening=0.5, nesterov=True)
    with pytest.raises(UsageError, match="True or False"):
        SGD(lr=0.1, momentum=0.9, nesterov=1)  # type: ignore[arg-type]


def test_integers_become_floats_so_that_equal_rules_have_equal_bytes() -> None:
    assert to_bytes(Adam(lr=1, betas=(0, 0))) == to_bytes(Adam(lr=1.0, betas=(0.0, 0.0)))
    assert repr(SGD(lr=1)) == repr(SGD(lr=1.0))


def test_the_library_offers_every_rule() -> None:
    assert set(optim.__all__) == {cls.__name__ for cls in RULES.values()} | {"from_name", "own"}
    assert all(getattr(optim, cls.__name__) is cls for cls in RULES.values())


def test_rules_are_made_by_name() -> None:
    assert from_name("adamw", {"lr": 0.1}) == AdamW(lr=0.1)
    assert [rule_name(from_name(name, {"lr": 0.1} if name == "sgd" else {})) for name in RULES] == list(RULES)


@pytest.mark.parametrize(
    ("name", "hyper", "words"),
    [
        ("adm", {}, r"no update rule has this name \(name=adm\). Did you mean adam\?"),
        ("zzz", {}, r"Known: sgd, adagrad, adam, adamw, adadelta, rmsprop,"),
        ("rms_prop", {}, r"Did you mean rmsprop\?"),
        ("lion", {"beta": 0.9}, r"lion has no such hyper-parameter \(given=beta\). Did you mean betas\?"),
        ("ftrl", {"weight_decay": 0.1}, r"ftrl has no such hyper-parameter .*Known: lr, beta, l1, l2, clip_value"),
        ("adam", {"wieght_decay": 0.1}, r"given=wieght_decay\). Did you mean weight_decay\?"),
        ("adagrad", {"betas": (0.9, 0.9)}, r"adagrad has no such hyper-parameter \(given=betas\)"),
        ("sgd", {}, "no default learning rate"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, hyper: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        from_name(name, hyper)
