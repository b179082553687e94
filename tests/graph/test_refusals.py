"""What is wrong is said in words: indices, devices, gradients without a path."""

from __future__ import annotations

import numpy as np
import pytest

import windlass as wl
from windlass_proto.errors import UsageError


def test_a_mask_is_no_index() -> None:
    with pytest.raises(UsageError, match="a mask is no index"):
        wl.nd.ones((3,))[np.array([True, False, True])]


def test_backward_without_a_differentiable_path_is_an_error_and_leaves_the_gradient() -> None:
    x = wl.nd.ones((3,))
    x.attach_grad()
    with wl.autograd.record():
        y = wl.nd.argmax(x, axis=0).astype("float32")
    with pytest.raises(UsageError, match=r"no differentiable path.*float32\(\)"):
        y.backward()
    np.testing.assert_array_equal(x.grad, np.zeros(3))


def test_an_index_that_is_not_a_number_is_outside() -> None:
    with pytest.raises(UsageError, match="lies outside the axis"):
        wl.nd.take(wl.nd.zeros((3, 2)), wl.nd.array(np.array([np.nan], np.float32)))


def test_an_unknown_device_is_said_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r'tpu:0.*"cpu:0" or "gpu:0"'):
        wl.nd.zeros((3,), device="tpu:0")
