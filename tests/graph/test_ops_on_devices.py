"""Every op on other devices gives what it gives on the first one, by NumPy or CuPy, on both fronts, gradients too.

Where there is no GPU, a stand-in for CuPy shows that ops ask of it only what it has.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from tests.graph import cupy_stand_in
from tests.graph.op_case import OpCase, every_case, gradients, outputs, planned, second_gradients, weights_for
from windlass_graph.array import Array, array_of
from windlass_graph.device import Device

CASES = [case for case in every_case() if case.expected is not None]
WITH_GRADIENT = [case for case in CASES if case.by]
WITH_SECOND = [case for case in WITH_GRADIENT if case.second]


def same(found: Sequence[Array], wanted: Sequence[Array], device: Device) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one.device == device
        assert isinstance(one.memory, device.xp.ndarray)
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_arrays_and_symbols_compute_what_the_first_device_does(case: OpCase, device: Device) -> None:
    wanted = outputs(case, [array_of(each) for each in case.ins])
    same(outputs(case, [array_of(each, device=device) for each in case.ins]), wanted, device)
    same([Array(memory, device) for memory in planned(case, device)], wanted, device)


@pytest.mark.parametrize("case", WITH_GRADIENT, ids=str)
def test_gradients_are_those_of_the_first_device(case: OpCase, device: Device) -> None:
    weights = weights_for(case)
    same(gradients(case, case.ins, weights, device), gradients(case, case.ins, weights), device)


@pytest.mark.parametrize("case", WITH_SECOND, ids=str)
def test_gradients_of_gradients_are_those_of_the_first_device(case: OpCase, device: Device) -> None:
    weights = weights_for(case)
    same(second_gradients(case, weights, device), second_gradients(case, weights), device)


def test_the_stand_in_has_nothing_that_cupy_has_not() -> None:
    try:
        import cupy
    except ImportError as missing:
        pytest.skip(f"needs a GPU's library: {missing}")
    assert not {name for name in (*cupy_stand_in.FUNCTIONS, "ndarray") if not hasattr(cupy, name)}
    assert not {name for name in cupy_stand_in.METHODS if not hasattr(cupy.ndarray, name)}
    for name, keywords in cupy_stand_in.FUNCTIONS.items():
        known = parameters(getattr(cupy, name))
        assert known is None or set(keywords.split()) <= known, name


def parameters(function: Any) -> set[str] | None:
    """Names of what it takes; None where it takes anything or does not say."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return None if any(each.kind is each.VAR_KEYWORD for each in found) else {each.name for each in found}
