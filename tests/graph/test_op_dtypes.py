"""Ops in the other dtypes: halves and singles near what doubles give, integers as the numbers that they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.graph.op_case import OpCase, Values, every_case, gradients, outputs, planned, weights_for
from windlass_graph.array import array_of
from windlass_proto.errors import UsageError

CASES = [case for case in every_case() if case.expected is not None and any(x.dtype.kind == "f" for x in case.ins)]
WITH_GRADIENT = [case for case in CASES if case.by]
CLOSE = {"float32": 1e-5, "float16": 2e-2}

OF_NUMBERS = [
    case
    for case in CASES
    if not case.op.endswith("_gradient") and case.op not in {"max_pool_gather", "subtract", "negative", "clip"}
]
"""Those that may be given integers; of bytes the differences wrap around, and clip has a test of its own."""


def in_dtype(case: OpCase, dtype: str) -> OpCase:
    return dataclasses.replace(case, ins=[x.astype(dtype) if x.dtype.kind == "f" else x for x in case.ins])


def values(case: OpCase) -> list[Values]:
    return [np.asarray(out) for out in outputs(case, [array_of(each) for each in case.ins])]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", CLOSE)
def test_halves_and_singles_are_near_doubles_on_both_fronts(case: OpCase, dtype: str) -> None:
    low = in_dtype(case, dtype)
    found, wanted = values(low), values(in_dtype(low, "float64"))
    for one, at_once, exact in zip(planned(low), found, wanted, strict=True):
        np.testing.assert_array_equal(one, at_once)
        np.testing.assert_allclose(at_once, exact, rtol=CLOSE[dtype], atol=CLOSE[dtype])
        if exact.dtype == "float64" and case.op != "cast":
            assert [one.dtype.name, at_once.dtype.name] == [dtype, dtype]


@pytest.mark.parametrize("case", WITH_GRADIENT, ids=str)
@pytest.mark.parametrize("dtype", CLOSE)
def test_gradients_of_halves_and_singles_are_near_those_of_doubles(case: OpCase, dtype: str) -> None:
    low = in_dtype(case, dtype)
    weights = [each.astype(dtype) for each in weights_for(case)]
    exact = gradients(case, in_dtype(low, "float64").ins, [each.astype("float64") for each in weights])
    for one, wanted in zip(gradients(low, low.ins, weights), exact, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(one.numpy(), wanted.numpy(), rtol=10 * CLOSE[dtype], atol=10 * CLOSE[dtype])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning", "ignore:divide by zero:RuntimeWarning")
@pytest.mark.parametrize("case", OF_NUMBERS, ids=str)
@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_integers_are_the_numbers_that_they_are(case: OpCase, dtype: str) -> None:
    random = np.random.default_rng(0)
    ins = [random.integers(1, 4, x.shape).astype(dtype) if x.dtype.kind == "f" else x for x in case.ins]
    whole = dataclasses.replace(case, ins=ins)
    reals = [x if before.dtype.kind != "f" else x.astype(float) for x, before in zip(ins, case.ins, strict=True)]
    for one, at_once, exact in zip(
        planned(whole), values(whole), values(dataclasses.replace(case, ins=reals)), strict=True
    ):
        np.testing.assert_array_equal(one, at_once)
        np.testing.assert_allclose(at_once, exact, rtol=1e-5, atol=1e-6)


def test_truth_values_are_counted() -> None:
    hits = wl.nd.array([[True, False, True], [True, True, True]])
    assert hits.sum().item() == 5
    assert hits.sum(axis=1).dtype == "int64"
    assert wl.nd.prod(hits, axis=1).numpy().tolist() == [0, 1]
    assert hits.mean().item() == pytest.approx(5 / 6)


def test_sums_of_bytes_and_means_of_halves_do_not_overflow() -> None:
    assert wl.nd.array(np.full(300, 255, np.uint8)).sum().item() == 300 * 255
    assert wl.nd.array(np.full(3000, 100, np.float16)).mean().item() == 100


def test_clip_keeps_integers_within_the_bounds() -> None:
    x = wl.nd.array(np.array([-3, 0, 2, 2**60 + 1]))
    assert wl.nd.clip(x).numpy().tolist() == [-3, 0, 2, 2**60 + 1]
    assert wl.nd.clip(x, low=-1.5, high=1.5).numpy().tolist() == [-1, 0, 1, 1]
    assert wl.nd.clip(wl.nd.array(np.array([0, 255], np.uint8)), low=-1, high=300).numpy().tolist() == [0, 255]


@pytest.mark.parametrize(
    "compute", [lambda x: -x, lambda x: x - x, lambda x: x**2, lambda x: x // x, wl.nd.sign, wl.nd.relu, wl.nd.floor]
)
def test_truth_values_are_refused_where_numbers_are_needed(compute: Callable[[Any], Any]) -> None:
    with pytest.raises(UsageError, match="cast them"):
        compute(wl.nd.array([True, False]))
