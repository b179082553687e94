"""Schedules: closed forms, what torch computes, bytes, and that none that is invalid can be made."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass import schedule
from windlass.schedule import Chain, Constant, Cosine, InverseSqrt, MultiStep, Polynomial, Schedule, Step, WarmUp
from windlass_proto import rule_specs
from windlass_proto.errors import ProtocolError, UsageError
from windlass_proto.gen import rules_pb2
from windlass_proto.rule_specs import SGD, Adam
from windlass_proto.schedules import DEPTH_MAX, cos_pi, from_message_untrusted, number_at, to_message

untyped: Any = schedule
untyped_rules: Any = rule_specs
rates = st.floats(0, 1e6)
steps = st.integers(1, 1 << 39)
simple = st.one_of(
    st.builds(Constant, rates),
    st.builds(Step, rates, steps, st.floats(0, 1)),
    st.builds(MultiStep, rates, st.lists(steps, min_size=1, max_size=5, unique=True).map(sorted), st.floats(0, 1)),
    st.builds(Polynomial, rates, steps, st.floats(0, 100), rates),
    st.builds(lambda lr, a, b, end: Cosine(lr, max(a, b) + 1, end, min(a, b)), rates, steps, steps, rates),
    st.builds(InverseSqrt, rates, steps),
)
schedules = st.one_of(
    simple,
    st.builds(WarmUp, simple, steps, rates),
    st.builds(Chain, st.lists(st.tuples(st.one_of(simple, st.builds(WarmUp, simple, steps)), steps), min_size=1)),
)

# torch 2.13.0, lr_scheduler of SGD(lr=0.1), float64: what `param_groups[0]["lr"]` was at steps 0, 1, 2, ...
TORCH: dict[str, tuple[Schedule, list[float]]] = {
    "StepLR(step_size=4, gamma=0.5)": (
        Step(0.1, 4, 0.5),
        [0.1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025, 0.025],
    ),
    "MultiStepLR(milestones=[3, 5, 9], gamma=0.1)": (
        MultiStep(0.1, (3, 5, 9), 0.1),
        [0.1, 0.1, 0.1, 0.010000000000000002, 0.010000000000000002, 0.0010000000000000002, 0.0010000000000000002,
         0.0010000000000000002, 0.0010000000000000002, 0.00010000000000000003],
    ),
    "PolynomialLR(total_iters=8, power=2)": (
        Polynomial(0.1, 8, power=2),
        [0.1, 0.0765625, 0.05625, 0.03906250000000001, 0.02500000000000001, 0.014062500000000006, 0.006250000000000002,
         0.0015625000000000005, 0.0, 0.0],
    ),
    "PolynomialLR(total_iters=8, power=0.5)": (
        Polynomial(0.1, 8, power=0.5),
        [0.1, 0.09354143466934854, 0.08660254037844387, 0.07905694150420949, 0.07071067811865475, 0.06123724356957945,
         0.049999999999999996, 0.035355339059327376, 0.0],
    ),
    "CosineAnnealingLR(T_max=10, eta_min=0.01)": (
        Cosine(0.1, 10, end=0.01),
        [0.1, 0.09779754323328192, 0.09140576474687263, 0.08145033635316129, 0.06890576474687264, 0.05500000000000001,
         0.04109423525312737, 0.028549663646838717, 0.01859423525312737, 0.012202456766718092, 0.01],
    ),
    "SequentialLR([LinearLR(0.25, total_iters=4), StepLR(3, 0.5)], milestones=[4])": (
        WarmUp(Step(0.1, 3, 0.5), 4, start=0.025),
        [0.025, 0.043750000000000004, 0.06250000000000001, 0.08125000000000002, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.025],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_values_are_those_of_torch(name: str) -> None:
    one, expected = TORCH[name]
    assert [one.value(clock) for clock in range(len(expected))] == pytest.approx(expected, rel=1e-13, abs=1e-18)


@given(st.floats(0, 1))
def test_the_cosine_is_that_of_libm_within_1e_15(share: float) -> None:
    assert abs(cos_pi(share) - math.cos(math.pi * share)) <= 1e-15


@given(st.integers(0, 5000), st.integers(1, 4000), st.floats(0.01, 20))
def test_a_polynomial_is_its_closed_form_for_any_power(clock: int, steps: int, power: float) -> None:
    expected = 0.5 * ((steps - min(clock, steps)) / steps) ** power  # 1 - clock / steps would lose digits near the end
    assert Polynomial(0.5, steps, power).value(clock) == pytest.approx(expected, rel=1e-13, abs=1e-300)


def test_closed_forms() -> None:
    assert Constant(0.3).value(10**12) == 0.3
    inverse = InverseSqrt(1.0, warmup=4)
    assert [inverse.value(clock) for clock in (0, 2, 4, 16, 400)] == [0.0, 0.5, 1.0, 0.5, 0.1]
    warm = Cosine(1.0, steps=20, warmup=10)
    assert [warm.value(clock) for clock in (0, 5, 10, 15, 20, 99)] == pytest.approx([0.0, 0.5, 1.0, 0.5, 0.0, 0.0])
    assert Cosine(0.1, steps=10, end=0.4).value(7) > 0.25, "it may also rise"


def test_a_chain_runs_each_part_from_its_own_clock_and_the_last_one_goes_on() -> None:
    chain = Chain([(Constant(1.0), 3), (Step(0.5, 2, 0.1), 4), (Polynomial(0.2, 2), 1)])
    expected = [1.0, 1.0, 1.0, 0.5, 0.5, 0.05, 0.05, 0.2, 0.1, 0.0, 0.0]
    assert [chain.value(clock) for clock in range(11)] == pytest.approx(expected)


@given(schedules, st.integers(0, 1 << 41))
def test_every_value_is_finite_and_not_negative(one: Schedule, clock: int) -> None:
    value = one.value(clock)
    assert type(value) is float
    assert math.isfinite(value)
    assert value >= 0


@given(schedules)
def test_a_schedule_comes_back_from_its_message(one: Schedule) -> None:
    raw = to_message(one).SerializeToString(deterministic=True)
    assert from_message_untrusted(rules_pb2.Schedule.FromString(raw)) == one


@settings(max_examples=300)
@given(schedules, st.integers(0, 10_000), st.integers(1, 255))
def test_damaged_bytes_are_a_valid_spec_or_a_protocol_error(one: Schedule, at: int, flip: int) -> None:
    raw = bytearray(rules_pb2.RuleSpec(sgd=rules_pb2.Sgd(), lr_schedule=to_message(one)).SerializeToString())
    raw[at % len(raw)] ^= flip
    try:
        damaged = rule_specs.from_bytes_untrusted(bytes(raw))
    except ProtocolError:
        return
    assert number_at(damaged.lr, 17) >= 0


def test_a_rule_takes_schedules_for_lr_and_weight_decay_and_keeps_them_over_the_wire() -> None:
    spec = Adam(lr=WarmUp(Cosine(1e-3, 2000), 100), weight_decay=Step(0.1, 30))
    raw = rule_specs.to_bytes(spec)
    assert rule_specs.from_bytes_untrusted(raw) == spec
    assert rule_specs.to_bytes(rule_specs.from_bytes_untrusted(raw)) == raw
    assert len(raw) < 128
    assert rule_specs.from_bytes_untrusted(rule_specs.to_bytes(SGD(lr=Constant(0.0)))) == SGD(lr=Constant(0.0))


def test_schedules_of_a_rule_are_bounded_in_bytes() -> None:
    with pytest.raises(UsageError, match="too long"):
        rule_specs.to_bytes(SGD(lr=MultiStep(0.1, tuple(range(1, 1000)))))


def test_nesting_is_bounded_where_it_is_made_and_where_it_is_read() -> None:
    deep: Schedule = Constant(0.1)
    for _ in range(DEPTH_MAX - 1):
        deep = WarmUp(deep, 10)
    with pytest.raises(UsageError, match="nested too deep"):
        WarmUp(deep, 10)
    message = rules_pb2.Schedule()
    message.warm_up.into.CopyFrom(to_message(deep))
    message.warm_up.steps = 10
    with pytest.raises(ProtocolError, match="nested too deep"):
        from_message_untrusted(message)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: untyped.Constant(-1), "finite lr >= 0"),
        (lambda: untyped.Constant(math.nan), "finite lr >= 0"),
        (lambda: untyped.Constant("0.1"), "takes a number as lr"),
        (lambda: untyped.Step(0.1, 0), "step_size of 1 to"),
        (lambda: untyped.Step(0.1, 2.5), "whole steps as step_size"),
        (lambda: untyped.Step(0.1, 2, 1.5), "gamma <= 1"),
        (lambda: untyped.MultiStep(0.1, (5, 3)), "milestones that rise"),
        (lambda: untyped.MultiStep(0.1, 5), "sequence as milestones"),
        (lambda: untyped.Polynomial(0.1, 10, power=-1), "finite power >= 0"),
        (lambda: untyped.Cosine(0.1, steps=10, warmup=10), "warmup < steps"),
        (lambda: untyped.InverseSqrt(0.1, warmup=0), "warmup of 1 to"),
        (lambda: untyped.WarmUp(0.1, 10), "takes schedules of the step as into"),
        (lambda: untyped.Chain([]), "at least one"),
        (lambda: untyped.Chain([Constant(1.0)]), r"pairs of \(schedule, steps\)"),
        (lambda: untyped.Chain([(0.1, 5)]), "takes schedules of the step as parts"),
        (lambda: untyped_rules.SGD(lr=0.1, momentum=Constant(0.9)), "takes a number as momentum"),
        (lambda: untyped_rules.SGD(lr=None), "a number or a schedule as lr"),
    ],
)
def test_a_bad_value_is_a_usage_error_that_names_it(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()


def test_messages_that_are_no_schedule_are_refused() -> None:
    raw = (
        rule_specs.to_bytes(SGD(lr=0.1)) + rules_pb2.RuleSpec(lr_schedule=to_message(Constant(0.2))).SerializeToString()
    )
    with pytest.raises(ProtocolError, match="besides a number"):
        rule_specs.from_bytes_untrusted(raw)
    with pytest.raises(ProtocolError, match="not known"):
        from_message_untrusted(rules_pb2.Schedule())
    unknown = rules_pb2.Schedule.FromString(to_message(Constant(0.2)).SerializeToString() + b"\xa2\x06\x01x")
    with pytest.raises(ProtocolError, match="not known"):
        from_message_untrusted(unknown)
