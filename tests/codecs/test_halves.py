"""Half types in integers, against NumPy's conversions and, for bfloat16, exact arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from windlass_proto.codecs import halves
from windlass_proto.errors import UsageError

ALL = np.arange(1 << 16, dtype=np.uint16)


def singles(dtype: str, patterns: np.ndarray) -> np.ndarray:
    found = np.zeros(patterns.size, np.float32)
    halves.build(dtype).to_single(patterns, found)
    return found


def rounded(dtype: str, values: np.ndarray) -> np.ndarray:
    found = np.zeros(values.size, np.uint16)
    halves.build(dtype).to_half(values, found)
    return found


@pytest.mark.parametrize("dtype", halves.HALVES)
def test_every_half_comes_back_from_float32_as_it_was(dtype: str) -> None:
    assert np.array_equal(rounded(dtype, singles(dtype, ALL)), ALL)


def test_every_float16_is_the_float32_that_numpy_says() -> None:
    expected = ALL.view(np.float16).astype(np.float32)
    assert np.array_equal(singles("float16", ALL).view(np.uint32), expected.view(np.uint32))


def neighbours(patterns: np.ndarray, spacing: int) -> np.ndarray:
    """float32 at, midway to and just beside midway to the next of each pattern, both signs."""
    steps = [0, 1, spacing // 2 - 1, spacing // 2, spacing // 2 + 1, spacing - 1]
    found = np.concatenate([patterns + np.uint32(step) for step in steps])
    return np.concatenate([found, found | np.uint32(1 << 31)]).view(np.float32)


def test_float16_rounds_as_numpy_does_at_and_beside_every_tie() -> None:
    normal = singles("float16", ALL[:0x7C00]).view(np.uint32)
    values = neighbours(normal, 1 << 13)
    subnormal = (np.arange(1 << 12, dtype=np.float64) * 2.0**-26).astype(np.float32)  # quarters of the last bit
    wild = np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, dtype=np.uint64).astype(np.uint32).view(np.float32)
    for given in (values, subnormal, -subnormal, wild):
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            expected = given.astype(np.float16)
        assert np.array_equal(rounded("float16", given), expected.view(np.uint16))


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    patterns = (np.arange(0x7F80, dtype=np.uint32) << 16).astype(np.uint32)
    low = patterns.view(np.float32).astype(np.float64)
    high = np.append(low[1:], 2.0**128)
    for offset in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        given = (patterns + np.uint32(offset)).view(np.float32)
        exact = given.astype(np.float64)
        up = (exact - low > high - exact) | ((exact - low == high - exact) & (patterns >> 16) % 2 == 1)
        expected = (patterns >> 16) + np.where(up, 1, 0)
        assert np.array_equal(rounded("bfloat16", given), expected.astype(np.uint16))
        assert np.array_equal(rounded("bfloat16", -given), (expected | 0x8000).astype(np.uint16))


def test_a_nan_whose_payload_lies_below_a_bfloat16_stays_one() -> None:
    value = np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32)
    assert np.isnan(singles("bfloat16", rounded("bfloat16", value))).all()


def test_sizes_that_differ_and_other_names_are_refused() -> None:
    with pytest.raises(IndexError):
        halves.build("float16").to_half(np.zeros(3, np.float32), np.zeros(2, np.uint16))
    with pytest.raises(UsageError, match="float16, bfloat16"):
        halves.build("float8")
