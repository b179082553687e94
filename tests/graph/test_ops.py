"""Every op of the table: forward against NumPy on both fronts, gradients against finite differences, twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.graph.op_case import (
    OpCase,
    Values,
    differences,
    every_case,
    gradients,
    outputs,
    planned,
    second_gradients,
    weighed,
    weights_for,
)
from windlass_graph.array import array_of
from windlass_graph.op import FLAT, Missing, table

CASES = every_case()
WITH_GRADIENT = [case for case in CASES if case.by]
WITH_SECOND = [case for case in WITH_GRADIENT if case.second]

UNTRIED = {"variable", "constant"}
"""Where graphs begin; every other test uses them."""


def test_every_op_has_a_case_and_every_gradient_is_checked() -> None:
    tried = {case.op for case in CASES}
    assert not set(table()) - tried - UNTRIED, "ops without a case"
    checked = {case.op for case in CASES if case.by or case.own_gradient}
    smooth = {op.name for op in table().values() if op.gradient is not FLAT and not isinstance(op.gradient, Missing)}
    assert not smooth - checked - UNTRIED, "ops whose gradient no case checks"


@pytest.mark.parametrize("case", [case for case in CASES if case.expected is not None], ids=str)
def test_arrays_and_symbols_compute_what_numpy_does(case: OpCase) -> None:
    assert case.expected is not None
    expected = case.expected(*case.ins, **case.attrs)
    listed: Sequence[Any] = expected if isinstance(expected, tuple) else (expected,)
    at_once = [np.asarray(out) for out in outputs(case, [array_of(each) for each in case.ins])]
    for found, wanted in zip(at_once, listed, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-9)
        assert found.shape == np.shape(wanted)
    for found, wanted in zip(planned(case), at_once, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("case", WITH_GRADIENT, ids=str)
def test_the_gradient_is_that_of_finite_differences(case: OpCase) -> None:
    weights = weights_for(case)
    found = gradients(case, case.ins, weights)
    for gradient, index in zip(found, case.by, strict=True):
        wanted = differences(
            lambda ins: weighed(case, [array_of(each) for each in ins], weights).item(), case.ins, index
        )
        np.testing.assert_allclose(np.asarray(gradient), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", WITH_SECOND, ids=str)
def test_the_gradient_of_the_gradient_is_that_of_finite_differences(case: OpCase) -> None:
    weights = weights_for(case)

    def slope(ins: Sequence[Values]) -> float:
        return float(sum(np.sum(np.square(np.asarray(each))) for each in gradients(case, ins, weights)))

    for gradient, index in zip(second_gradients(case, weights), case.by, strict=True):
        wanted = differences(slope, case.ins, index)
        np.testing.assert_allclose(np.asarray(gradient), wanted, rtol=2e-4, atol=2e-5)
