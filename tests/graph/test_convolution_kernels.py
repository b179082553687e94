"""Convolutions equal the sum they are defined by, and their gradients finite differences, in every geometry."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.graph import oracles
from windlass_graph.kernels import columns, convolution
from windlass_graph.kernels.convolution import Convolution
from windlass_graph.kernels.windows import Window
from windlass_graph.threads import Threads
from windlass_proto.errors import UsageError

Array = npt.NDArray[Any]
# size, kernel, stride, padding, dilation, channels, out channels, groups
CASES = [
    ((7,), (3,), (1,), (0,), (1,), 2, 3, 1),
    ((9,), (3,), (2,), (2,), (2,), 2, 4, 2),
    ((6, 7), (3, 2), (1, 1), (0, 0), (1, 1), 2, 3, 1),
    ((6, 7), (3, 3), (2, 1), (1, 2), (1, 2), 4, 6, 2),
    ((5, 5), (5, 5), (3, 3), (4, 4), (1, 1), 1, 2, 1),
    ((3, 4), (1, 1), (1, 1), (0, 0), (1, 1), 4, 2, 2),
    ((4, 4), (1, 1), (2, 2), (0, 0), (1, 1), 2, 3, 1),
    ((4, 12), (2, 2), (1, 1), (1, 1), (1, 1), 3, 6, 3),
    ((5, 6), (3, 3), (2, 2), (1, 1), (1, 1), 3, 3, 3),
    ((3, 4, 5), (2, 3, 2), (1, 2, 1), (1, 0, 1), (1, 1, 2), 2, 2, 1),
    ((3, 3, 4), (2, 2, 2), (2, 1, 2), (1, 1, 1), (1, 1, 1), 2, 4, 2),
]
IMAGES = 2


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads(2)
    yield threads
    threads.stop()


def kind_of(case: Any) -> Convolution:
    size, kernel, stride, padding, dilation, channels, out_channels, groups = case
    return Convolution(Window.of(size, kernel, stride, padding, dilation), channels, out_channels, groups)


def drawn(kind: Convolution, dtype: str, images: int = IMAGES) -> tuple[Array, Array, Array, Array]:
    """x, w, bias, grad; then scratch of the size asked for, full of NaN."""
    rng = np.random.default_rng(3)
    window = kind.window
    x = rng.standard_normal((images, kind.channels, *window.size)).astype(dtype)
    w = rng.standard_normal((kind.out_channels, kind.channels // kind.groups, *window.kernel_size)).astype(dtype)
    grad = rng.standard_normal((images, kind.out_channels, *window.out)).astype(dtype)
    return x, w, rng.standard_normal(kind.out_channels).astype(dtype), grad


def scratch_for(kind: Convolution, like: Array) -> Array:
    nbytes = kind.scratch_bytes(len(like), like.itemsize)
    return np.full(nbytes // like.itemsize, np.nan, like.dtype).view(np.uint8)


def untouched(shape: tuple[int, ...], dtype: Any) -> Array:
    return np.full(shape, np.nan, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_convolution_is_the_sum_it_is_defined_by(case: Any, dtype: str, threads: Threads) -> None:
    kind = kind_of(case)
    x, w, bias, grad = drawn(kind, dtype)
    out = untouched(grad.shape, dtype)
    convolution.convolve(x, w, bias, out, kind, scratch_for(kind, x), threads)
    expected = oracles.convolution(x.astype(float), w.astype(float), kind.window, kind.groups)
    expected += bias[:, None, None, None]
    np.testing.assert_allclose(out, expected, rtol=1e-5 if dtype == "float32" else 1e-12, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_the_transposes_of_the_convolution(case: Any, threads: Threads) -> None:
    """It is linear in x and in w, so finite differences of any step are exact to rounding."""
    kind = kind_of(case)
    x, w, _, grad = drawn(kind, "float64", images=1)
    scratch = scratch_for(kind, x)

    def forward() -> Array:
        out = untouched(grad.shape, "float64")
        convolution.convolve(x, w, None, out, kind, scratch, threads)
        return out

    to_x, to_w, to_bias = untouched(x.shape, "f8"), untouched(w.shape, "f8"), untouched((kind.out_channels,), "f8")
    convolution.data_gradient(grad, w, to_x, kind, scratch, threads)
    convolution.weight_gradient(x, grad, to_w, kind, scratch, threads)
    convolution.bias_gradient(grad, to_bias)
    np.testing.assert_allclose(to_x, oracles.numeric_gradient(forward, x, grad, 1.0), atol=1e-10)
    np.testing.assert_allclose(to_w, oracles.numeric_gradient(forward, w, grad, 1.0), atol=1e-10)
    np.testing.assert_allclose(to_bias, grad.sum(axis=(0, 2, 3, 4)), atol=1e-12)


@pytest.mark.parametrize("part_bytes", [1, 700, 3000])
@pytest.mark.parametrize("case", [CASES[3], CASES[9]], ids=str)
def test_parts_of_any_size_add_up_to_the_same(
    case: Any, part_bytes: int, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = kind_of(case)
    x, w, _, grad = drawn(kind, "float64", images=5)

    def all_three() -> list[Array]:
        scratch = scratch_for(kind, x)
        found = [untouched(shape, "f8") for shape in (grad.shape, x.shape, w.shape)]
        convolution.convolve(x, w, None, found[0], kind, scratch, threads)
        convolution.data_gradient(grad, w, found[1], kind, scratch, threads)
        convolution.weight_gradient(x, grad, found[2], kind, scratch, threads)
        return found

    whole = all_three()
    monkeypatch.setattr(columns, "PART_BYTES", part_bytes)
    assert len(list(columns.parts(kind.window, kind.channels, 5, 8))) > 1
    for found, expected in zip(all_three(), whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 8])
def test_images_shared_among_threads_give_the_bits_of_one(groups: int, threads: Threads) -> None:
    kind = Convolution(Window.of((40, 40), (3, 3), padding=(1, 1)), 8, 8, groups)
    x, w, _, grad = drawn(kind, "float32", images=8)
    found = []
    for number in (threads, Threads(1)):
        arrays = [untouched(shape, "f4") for shape in (grad.shape, x.shape, w.shape)]
        scratch = scratch_for(kind, x)
        convolution.convolve(x, w, None, arrays[0], kind, scratch, number)
        convolution.data_gradient(grad, w, arrays[1], kind, scratch, number)
        convolution.weight_gradient(x, grad, arrays[2], kind, scratch, number)
        found.append(arrays)
    for shared, alone in zip(*found, strict=True):
        assert np.array_equal(shared, alone)


def test_a_window_that_does_not_fit_is_refused_with_its_numbers() -> None:
    with pytest.raises(UsageError, match=r"larger than the padded images.*\(4, 4\)"):
        Window.of((3, 9), (4, 4))
    with pytest.raises(UsageError, match="one number for each"):
        Window.of((3, 9), (2, 2), stride=(1,))
    with pytest.raises(UsageError, match="at least 1"):
        Window.of((3, 9), (2, 2), stride=(1, 0))
