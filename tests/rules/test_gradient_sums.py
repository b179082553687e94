"""Sums of gradients are exact however a block is cut; what is not a number is found wherever it lies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from windlass_proto.errors import UsageError
from windlass_proto.memory import aligned_zeros
from windlass_rules import reduce

N = 16 * 9 + 7


@pytest.mark.parametrize("weight", [1.0, 0.25, 1 / 3])
def test_a_weighted_sum_has_the_bits_of_products_and_sums_in_rank_order(dtype: str, weight: float) -> None:
    random = np.random.default_rng(3)
    kind = np.dtype(dtype)
    sources = [random.standard_normal(N).astype(kind) for _ in range(4)]
    total = aligned_zeros(N, kind)
    reduce.scaled_copy(total, sources[0], weight)
    expected = kind.type(weight) * sources[0]
    for source in sources[1:]:
        reduce.scaled_add(total, source, weight)
        expected = expected + kind.type(weight) * source
    assert total.tobytes() == expected.tobytes()


def test_a_sum_made_in_parts_has_the_bits_of_one_made_whole(dtype: str) -> None:
    random = np.random.default_rng(4)
    first, second = (random.standard_normal(N).astype(dtype) for _ in range(2))
    whole, parts = aligned_zeros(N, dtype), aligned_zeros(N, dtype)
    for total, cuts in ((whole, [(0, N)]), (parts, [(64, N), (0, 48), (48, 64)])):
        for begin, end in cuts:
            reduce.scaled_copy(total[begin:end], first[begin:end], 0.7)
            reduce.scaled_add(total[begin:end], second[begin:end], 0.1)
    assert whole.tobytes() == parts.tobytes()


def test_sizes_that_differ_are_refused_before_anything_is_written(dtype: str) -> None:
    total, gradient = aligned_zeros(16, dtype), aligned_zeros(32, dtype)
    gradient[:] = 1
    for combine in (reduce.scaled_copy, reduce.scaled_add):
        for source in (gradient, gradient[:15]):
            with pytest.raises(IndexError, match="another size"):
                combine(total, source, 1.0)
    assert not total.any()


def test_read_only_gradients_are_read(dtype: str) -> None:
    gradient, total = np.ones(5, dtype), aligned_zeros(5, dtype)
    gradient.flags.writeable = False
    assert reduce.all_finite(gradient)
    reduce.scaled_add(total, gradient, 2.0)
    assert total.tolist() == [2.0] * 5


def test_the_largest_and_smallest_numbers_are_finite(dtype: str) -> None:
    limits = np.finfo(dtype)
    assert reduce.all_finite(np.array([limits.max, limits.min, limits.tiny, limits.smallest_subnormal, -0.0], dtype))
    assert reduce.all_finite(np.empty(0, dtype))


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1000])
def test_one_value_that_is_not_finite_is_found_wherever_it_lies(dtype: str, size: int) -> None:
    gradient = aligned_zeros(size, dtype)
    for at in {0, size // 2, size - 1}:
        for bad in (np.inf, -np.inf, np.nan, -np.nan):
            gradient[at] = bad
            assert reduce.all_finite(gradient) is False
            gradient[at] = 1.0
            assert reduce.all_finite(gradient) is True


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=80))
def test_every_float32_pattern_is_judged_as_numpy_judges_it(patterns: list[int]) -> None:
    values = np.array(patterns, np.uint32).view(np.float32)
    assert reduce.all_finite(values) == bool(np.isfinite(values).all())


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), max_size=40))
def test_every_float64_pattern_is_judged_as_numpy_judges_it(patterns: list[int]) -> None:
    values = np.array(patterns, np.uint64).view(np.float64)
    assert reduce.all_finite(values) == bool(np.isfinite(values).all())


def test_other_dtypes_are_refused_in_words() -> None:
    with pytest.raises(UsageError, match="dtype=float16"):
        reduce.all_finite(np.zeros(4, np.float16))
