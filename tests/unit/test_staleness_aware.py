"""Rates that heed staleness: their forms, their bytes, and where they are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_proto import rule_specs
from windlass_proto.consistency import Consistency
from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import SGD, Adam, from_bytes_untrusted, to_bytes
from windlass_proto.schedules import Constant, Cosine, Plateau, StalenessAware, WarmUp, number_at, share_at

numbers = st.floats(0, 20)


@given(st.integers(0, 1 << 40), numbers, numbers, st.integers(0, 100))
def test_a_share_is_the_closed_form(staleness: int, power: float, slope: float, free: int) -> None:
    found = StalenessAware(0.1, power, slope, free).share(staleness)
    assert found == pytest.approx((1.0 + slope * max(0, staleness - free)) ** -power, rel=1e-12, abs=1e-300)


@pytest.mark.parametrize(
    ("rate", "shares"),
    [
        pytest.param(StalenessAware(0.1), [1, 1, 1 / 2, 1 / 3, 1 / 4], id="inverse"),
        pytest.param(StalenessAware(0.1, free=0, power=0.5), [1, 2**-0.5, 3**-0.5, 1 / 2, 5**-0.5], id="polynomial"),
        pytest.param(StalenessAware(0.1, free=2, slope=10.0), [1, 1, 1, 1 / 11, 1 / 21], id="hinge"),
    ],
)
def test_the_standard_forms_are_those_of_the_papers(rate: StalenessAware, shares: list[float]) -> None:
    assert [rate.share(staleness) for staleness in range(5)] == pytest.approx(shares, rel=1e-12)


def test_it_follows_the_schedule_that_it_holds() -> None:
    cosine = Cosine(0.1, 100, warmup=10)
    aware = StalenessAware(cosine)
    assert [aware.value(clock) for clock in (0, 5, 50, 200)] == [cosine.value(clock) for clock in (0, 5, 50, 200)]
    assert number_at(StalenessAware(0.25), 7) == 0.25
    assert [share_at(rate, 4) for rate in (aware, cosine, 0.1, None)] == [0.25, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("rate", [StalenessAware(0.5), StalenessAware(Cosine(0.1, 100), power=0.5, slope=2.0, free=3)])
def test_its_bytes_are_read_as_what_was_written(rate: StalenessAware) -> None:
    spec = Adam(lr=rate)
    assert from_bytes_untrusted(to_bytes(spec)) == spec


def test_only_an_lr_heeds_staleness_and_nothing_holds_such_a_schedule() -> None:
    with pytest.raises(UsageError, match="such a schedule as lr, and as nothing else"):
        Adam(weight_decay=StalenessAware(0.1))
    for made in (
        lambda: WarmUp(StalenessAware(0.1), 10),
        lambda: StalenessAware(StalenessAware(0.1)),
        lambda: StalenessAware(Plateau(0.1, "loss")),
    ):
        with pytest.raises(UsageError, match="takes schedules of the step as into"):
            made()
    for wrong in ({"power": -1.0}, {"slope": float("nan")}, {"free": 0.5}, {"free": -1}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            StalenessAware(Constant(0.1), **wrong)


def test_modes_without_staleness_refuse_it_in_words() -> None:
    for mode in ("bsp", "bsp:k=2", "avg:H=4"):
        with pytest.raises(UsageError, match=f"no step of this mode is stale.*{mode}"):
            rule_specs.check_staleness(StalenessAware(0.1), Consistency.parse(mode))
    for mode in ("asp", "ssp:4"):
        rule_specs.check_staleness(StalenessAware(0.1), Consistency.parse(mode))
    rule_specs.check_staleness(SGD(lr=0.1).lr, Consistency.parse("bsp"))
