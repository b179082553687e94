"""What runs on a GPU gives what the host gives: CUDA C compiled for the host, CuPy by NumPy; and NVRTC takes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from tests.graph import host_raw_kernel
from tests.graph.cases import convolution as convolution_cases
from tests.graph.cases import normalisation as normalisation_cases
from tests.graph.cases import pooling as pooling_cases
from tests.graph.cases import recurrent as recurrent_cases
from tests.graph.op_case import OpCase
from tests.graph.test_convolution_kernels import CASES, drawn, kind_of, scratch_for, untouched
from tests.graph.test_pooling_kernels import CHANNELS, WINDOWS
from tests.rules import nvrtc
from windlass_graph.kernels import convolution, device_convolution, device_ctc, device_windows, pooling
from windlass_graph.kernels.ctc import ctc
from windlass_graph.op import Run, lookup
from windlass_graph.tensor_type import type_of
from windlass_graph.threads import Threads

Array = npt.NDArray[Any]
ALONE = Threads(1)


@pytest.fixture(scope="module")
def xp(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return host_raw_kernel.module(tmp_path_factory.mktemp("kernels"))


@pytest.mark.parametrize("columns_bytes", [1, 1 << 20])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolutions_and_their_gradients_are_those_of_the_host(
    xp: Any, case: Any, columns_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_convolution, "COLUMNS_BYTES", columns_bytes)
    kind = kind_of(case)
    x, w, bias, grad = drawn(kind, "float64")
    scratch = scratch_for(kind, x)
    here, there = ([untouched(shape, "f8") for shape in (grad.shape, x.shape, w.shape)] for _ in range(2))
    convolution.convolve(x, w, bias, here[0], kind, scratch, ALONE)
    convolution.data_gradient(grad, w, here[1], kind, scratch, ALONE)
    convolution.weight_gradient(x, grad, here[2], kind, scratch, ALONE)
    device_convolution.convolve(xp, x, w, bias, there[0], kind.window, kind.groups)
    device_convolution.data_gradient(xp, grad, w, there[1], kind.window, kind.groups)
    device_convolution.weight_gradient(xp, x, grad, there[2], kind.window, kind.groups)
    for one, other in zip(there, here, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", WINDOWS)
def test_pooling_and_its_gradients_are_those_of_the_host(xp: Any, name: str, dtype: str) -> None:
    window, rng = WINDOWS[name], np.random.default_rng(0)
    x = rng.standard_normal((CHANNELS, window.points)).astype(dtype)
    x[0, window.points // 3] = np.nan
    grad = rng.standard_normal((CHANNELS, window.places)).astype(dtype)
    found: list[list[Array]] = []
    for device in (True, False):
        out, at = np.empty_like(grad), np.empty(grad.shape, np.int32)
        averages, spread, of_mean = np.empty_like(grad), np.empty_like(x), np.empty_like(x)
        if device:
            device_windows.largest(xp, x, out, at, window)
            device_windows.spread(xp, grad, at, spread, window)
            device_windows.mean(xp, x, averages, window, count_padding=False)
            device_windows.mean_gradient(xp, grad, of_mean, window, count_padding=True)
        else:
            pooling.largest(x, out, at, window, ALONE)
            pooling.spread(grad, at, spread, ALONE)
            pooling.mean(x, averages, window, count_padding=False, threads=ALONE)
            pooling.mean_gradient(grad, of_mean, window, count_padding=True, threads=ALONE)
        found.append([out, at, averages, spread, of_mean])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


FAMILIES = [*convolution_cases.CASES, *pooling_cases.CASES, *normalisation_cases.CASES, *recurrent_cases.CASES]


@pytest.mark.parametrize("case", FAMILIES, ids=str)
def test_ops_on_a_device_give_what_they_give_on_the_host(xp: Any, case: OpCase) -> None:
    op = lookup(case.op)
    attrs = op.filled(case.attrs)
    types = op.infer(attrs, [type_of(each) for each in case.ins])
    found = []
    for module in (xp, np):
        outs = [np.empty(each.known_shape, each.dtype) for each in types]
        scratch = np.empty(op.scratch(attrs, [type_of(each) for each in case.ins]), "uint8") if op.scratch else None
        op.forward(module, attrs, case.ins, outs, Run(np.random.default_rng(0), scratch))
        found.append(outs)
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_nothing_is_launched_for_no_element(xp: Any) -> None:
    window = WINDOWS["two by two"]
    empty = np.empty((0, window.places))
    device_windows.mean(xp, np.empty((0, window.points)), empty, window, count_padding=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_of_sequences_is_that_of_the_host(xp: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((12, 300, 7)).astype(dtype)
    labels = rng.integers(1, 7, (300, 5)).astype("int32")
    steps, spelled = rng.integers(0, 13, 300).astype("int32"), rng.integers(0, 6, 300).astype("int32")
    here, there = ([np.full(300, np.nan, dtype), np.full_like(x, np.nan)] for _ in range(2))
    ctc(x, labels, steps, spelled, here[0], here[1], 0, ALONE)
    device_ctc.ctc(xp, x, labels, steps, spelled, there[0], there[1], 0)
    assert np.isinf(here[0]).any()
    assert np.isfinite(here[0]).any()
    for one, other in zip(there, here, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_nvrtc_takes_every_program() -> None:
    if nvrtc.library() is None:
        pytest.skip("needs NVRTC: `pip install nvidia-cuda-nvrtc-cu12`, which `make test-all` does")
    architecture = min(each for each in nvrtc.architectures() if each >= 70)
    for dtype in ("float32", "float64"):
        assert device_ctc.NAME in nvrtc.compiled(device_ctc.program(dtype), architecture)
        for name in device_windows.NAMES:
            assert name in nvrtc.compiled(device_windows.program(name, dtype), architecture)
