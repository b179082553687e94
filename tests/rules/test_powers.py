"""The numbers of a step need no libm: powers, exponentials and NAdam's product of shares."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from windlass_rules import nadam
from windlass_rules.powers import decay, power


@given(st.floats(0, 1), st.integers(0, 10_000))
def test_a_power_is_within_rounding_of_libms(factor: float, exponent: int) -> None:
    assert power(factor, exponent) == pytest.approx(factor**exponent, rel=1e-11, abs=1e-300)


@given(st.floats(0, 700))
def test_a_decay_is_within_rounding_of_libms_exponential(rate: float) -> None:
    assert decay(rate) == pytest.approx(math.exp(-rate), rel=1e-12, abs=1e-300)


def test_what_has_decayed_for_good_is_0() -> None:
    assert decay(0.0) == 1.0
    assert decay(1e6) == 0.0
    assert decay(1e300) == 0.0


@pytest.mark.parametrize(("beta1", "momentum_decay"), [(0.9, 4e-3), (0.9999, 4e-3), (0.9999, 0.0), (0.5, 3.0)])
@pytest.mark.parametrize("step", [1, 2, 255, 256, 257, 1000, 20_000])
def test_nadams_product_is_that_of_its_shares(beta1: float, momentum_decay: float, step: int) -> None:
    shares = beta1 * (1 - 0.5 * 0.96 ** (np.arange(1, step + 1) * momentum_decay))
    found = nadam._mu_product(beta1, decay(momentum_decay * nadam._LN_096), step)
    assert found == pytest.approx(np.prod(shares), rel=1e-10, abs=2.0**-60)
