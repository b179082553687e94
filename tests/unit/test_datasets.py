"""The digits that travel with the package: every example and the demo's promised accuracy rest on them."""

from __future__ import annotations

import hashlib
from importlib.resources import files

import numpy as np

from windlass.datasets import load_digits

# optdigits.tes: how often each digit occurs, from the data set's own description.
OPTDIGITS_TES_COUNTS = [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
PACKED_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"


def test_digits_have_the_promised_shape_dtype_and_range() -> None:
    x, y = load_digits()
    assert x.shape == (1797, 64)
    assert x.dtype == np.float32
    assert x.flags.c_contiguous
    assert y.shape == (1797,)
    assert y.dtype == np.int64
    assert (x.min(), x.max()) == (0.0, 1.0)


def test_digits_are_the_test_part_of_the_published_data_set() -> None:
    x, y = load_digits()
    assert np.bincount(y).tolist() == OPTDIGITS_TES_COUNTS
    assert np.array_equal(x * 16, np.round(x * 16)), "grey values are sixteenths"
    packed = files("windlass.datasets").joinpath("digits.csv.gz").read_bytes()
    assert hashlib.sha256(packed).hexdigest() == "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"


def test_each_call_returns_arrays_of_the_callers_own() -> None:
    first, labels = load_digits()
    first[:] = 0
    labels[:] = 0
    again, y = load_digits()
    assert again.max() == 1.0
    assert y.max() == 9


def test_the_licence_note_travels_with_the_data() -> None:
    note = files("windlass.datasets").joinpath("LICENSE-digits.txt").read_text(encoding="utf-8")
    assert "CC BY 4.0" in note
    assert "10.24432/C50P49" in note
