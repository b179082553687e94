"""The CUDA twins: the bits of the compiled rules over lists of blocks, and programs that NVRTC takes as they stand."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import windlass_rules
from tests.rules import nvrtc
from tests.rules.conftest import programs
from windlass_proto.errors import InvariantError, UsageError
from windlass_proto.memory import aligned_zeros
from windlass_proto.rule_specs import SGD, Adagrad, RowWiseAdagrad, RuleSpec, Sum
from windlass_rules import cupy_device, reduce
from windlass_rules import device as devices
from windlass_rules.cuda_source import OPTIONS, TILE_ELEMENTS, CudaSource, fill_source, finite_source, update_source
from windlass_rules.device import Device, DeviceVector
from windlass_rules.registry import RULE_MODULES, build_cuda
from windlass_rules.rule import Variant

Vector = npt.NDArray[Any]
SIZES = (1, 37, TILE_ELEMENTS - 1, TILE_ELEMENTS, TILE_ELEMENTS + 1, 3 * TILE_ELEMENTS + 77)
OUTSIDE = 3  # elements at both ends of a block that a run leaves out
ARCHITECTURES = (75, 80, 90)


class Block:
    """Weights, slots and gradients of one block, in memory and on a device."""

    def __init__(self, device: Device, spec: RuleSpec, dtype: str, run: int, seed: int, sources: int = 1) -> None:
        random = np.random.default_rng(seed)
        kernels = windlass_rules.build(spec, dtype)
        size = run + 2 * OUTSIDE

        def filled(values: npt.NDArray[np.float64]) -> Vector:
            array = aligned_zeros(values.size, kernels.dtype)
            array[:] = values
            return array

        self.device = device
        self.arrays = [filled(random.standard_normal(size)), *(filled(np.full(size, s.fill)) for s in kernels.slots)]
        self.gradients = [filled(random.standard_normal(run)) for _ in range(sources)]
        self.weights = [float(weight) for weight in random.uniform(0.1, 2.0, sources)]
        self.there = [self._up(array) for array in self.arrays]
        self.gradients_there = [self._up(gradient) for gradient in self.gradients]

    def _up(self, array: Vector) -> DeviceVector:
        vector = devices.empty(self.device, array.size, array.dtype)
        lane = self.device.lane()
        lane.upload(vector.address, array)
        lane.finish()
        return vector

    def down(self) -> list[Vector]:
        found = [np.empty_like(array) for array in self.arrays]
        lane = self.device.lane()
        for vector, out in zip(self.there, found, strict=True):
            lane.download(vector.address, out)
        lane.finish()
        return found

    def run(self, first: int, scale: float, scalars: Vector) -> tuple[Any, ...]:
        """The record of a launch over all but the ends."""
        moved = [vector.address + OUTSIDE * vector.itemsize for vector in self.there]
        return (self.gradients[0].size, *moved, first, len(self.gradients), scale, *scalars)

    def sources(self) -> list[tuple[int, float]]:
        found = zip(self.gradients_there, self.weights, strict=True)
        return [(vector.address, weight) for vector, weight in found]


def same(found: Vector, expected: Vector) -> bool:
    """Equal bits, where a NaN is a NaN."""
    kind = f"u{found.itemsize}"
    numbers = ~np.isnan(expected)
    return np.array_equal(np.isnan(found), ~numbers) and np.array_equal(
        found[numbers].view(kind), expected[numbers].view(kind)
    )


def test_one_launch_over_a_block_list_has_the_bits_of_the_compiled_rule(
    spec: RuleSpec, dtype: str, device: Device
) -> None:
    kernels, program = windlass_rules.build(spec, dtype), build_cuda(spec, dtype)
    blocks = [Block(device, spec, dtype, size, seed) for seed, size in enumerate(SIZES)]
    lane = device.lane()
    for step in (1, 2, 7):
        runs = []
        for number, block in enumerate(blocks):
            scalars, scale = kernels.scalars(spec, step, lr_mult=1.0 + number), 1.0 / (3 + number)
            w, *slots = block.arrays
            kernels.update(w, tuple(slots), OUTSIDE, block.gradients[0], scale, scalars)
            runs.append(block.run(number, scale, scalars))
        lane.launch(devices.launch_of(program, runs, [block.sources()[0] for block in blocks]))
        lane.finish()
        for block in blocks:
            assert all(map(same, block.down(), block.arrays))


def test_several_gradients_are_summed_in_their_order_within_the_launch(dtype: str, device: Device) -> None:
    spec = SGD(lr=0.1, momentum=0.9, weight_decay=0.05, clip_value=0.5)
    kernels, reductions = windlass_rules.build(spec, dtype), reduce.build(dtype)
    blocks = [Block(device, spec, dtype, size, seed, sources=1 + seed) for seed, size in enumerate(SIZES)]
    runs: list[tuple[Any, ...]] = []
    sources: list[tuple[int, float]] = []
    for block in blocks:
        scalars = kernels.scalars(spec, 2)
        w, *slots = block.arrays
        scale = (block.weights[0] if len(block.weights) == 1 else 1.0) / 3.0
        total = block.gradients[0]
        if len(block.weights) > 1:
            total = aligned_zeros(total.size, dtype)
            reductions.scaled_copy(total, block.gradients[0], block.weights[0])
            for gradient, weight in zip(block.gradients[1:], block.weights[1:], strict=True):
                reductions.scaled_add(total, gradient, weight)
        kernels.update(w, tuple(slots), OUTSIDE, total, scale, scalars)
        runs.append(block.run(len(sources), scale, scalars))
        sources += block.sources()
    lane = device.lane()
    lane.launch(devices.launch_of(build_cuda(spec, dtype), runs, sources))
    lane.finish()
    assert all(same(found, kept) for block in blocks for found, kept in zip(block.down(), block.arrays, strict=True))


def test_infinities_nans_zeros_and_the_smallest_numbers_go_the_same_way(
    spec: RuleSpec, dtype: str, device: Device
) -> None:
    kernels, program = windlass_rules.build(spec, dtype), build_cuda(spec, dtype)
    tiny = float(np.finfo(dtype).smallest_subnormal)
    odd = [np.nan, np.inf, -np.inf, 0.0, -0.0, tiny, -tiny, 4e3 * tiny, float(np.finfo(dtype).max), -1.0]
    block = Block(device, spec, dtype, 100, seed=1)
    pairs = np.array(np.meshgrid(odd, odd)).reshape(2, -1)
    block.gradients[0][:] = pairs[0]
    block.arrays[0][OUTSIDE:-OUTSIDE] = pairs[1]
    block.there = [block._up(array) for array in block.arrays]
    block.gradients_there = [block._up(block.gradients[0])]
    lane = device.lane()
    for step in (1, 2):
        scalars = kernels.scalars(spec, step)
        w, *slots = block.arrays
        with np.errstate(all="ignore"):
            kernels.update(w, tuple(slots), OUTSIDE, block.gradients[0], 1.0, scalars)
        lane.launch(devices.launch_of(program, [block.run(0, 1.0, scalars)], block.sources()))
        lane.finish()
        assert all(map(same, block.down(), block.arrays))


def test_each_step_agrees_with_the_float64_oracle(spec: RuleSpec, dtype: str, device: Device) -> None:
    kernels = windlass_rules.build(spec, dtype)
    block = Block(device, spec, dtype, 500, seed=3)
    close = 8 * float(np.finfo(dtype).eps)
    lane = device.lane()
    for step in (1, 2, 50):
        before = [array[OUTSIDE:-OUTSIDE].astype(np.float64) for array in block.down()]
        gradient = 0.25 * block.gradients[0].astype(np.float64)
        w, slots = RULE_MODULES[type(spec)].oracle(spec, before[0], tuple(before[1:]), gradient, step)
        run = block.run(0, 0.25, kernels.scalars(spec, step))
        lane.launch(devices.launch_of(build_cuda(spec, dtype), [run], block.sources()))
        lane.finish()
        for found, expected in zip(block.down(), [w, *slots], strict=True):
            np.testing.assert_allclose(found[OUTSIDE:-OUTSIDE], expected, rtol=close, atol=close)


def test_runs_are_filled_with_a_value_and_nothing_beside_them(dtype: str, device: Device) -> None:
    block = Block(device, Sum(), dtype, 5000, seed=4)
    run = (5000, block.there[0].address + OUTSIDE * block.there[0].itemsize, 0.1)
    lane = device.lane()
    lane.launch(devices.launch_of(fill_source(np.dtype(dtype)), [run], []))
    lane.finish()
    (found,) = block.down()
    assert (found[OUTSIDE:-OUTSIDE] == np.dtype(dtype).type(0.1)).all()
    assert found[:OUTSIDE].tolist() == block.arrays[0][:OUTSIDE].tolist()
    assert found[-OUTSIDE:].tolist() == block.arrays[0][-OUTSIDE:].tolist()


@pytest.mark.parametrize("odd", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("at", [0, TILE_ELEMENTS - 1, TILE_ELEMENTS, 3 * TILE_ELEMENTS + 6])
def test_what_is_not_finite_is_found_wherever_it_lies(dtype: str, device: Device, odd: float, at: int) -> None:
    random, lane = np.random.default_rng(5), device.lane()
    values = [random.standard_normal(3 * TILE_ELEMENTS + 7).astype(dtype) for _ in range(2)]
    values[0][0] = np.finfo(dtype).max
    values[1][at] = odd
    vectors = [devices.empty(device, array.size, array.dtype) for array in values]
    flags, seen = devices.empty(device, 2, np.dtype(np.uint32)), np.zeros(2, np.uint32)
    lane.upload(flags.address, seen)
    for vector, array in zip(vectors, values, strict=True):
        lane.upload(vector.address, array)
    runs = [(vector.size, vector.address, flags.address + 4 * number) for number, vector in enumerate(vectors)]
    lane.launch(devices.launch_of(finite_source(np.dtype(dtype)), runs, []))
    lane.download(flags.address, seen)
    lane.finish()
    assert seen.tolist() == [0, 1] == [not reduce.all_finite(array) for array in values]


def test_device_memory_is_sliced_and_viewed_as_arrays_are(device: Device) -> None:
    vector = devices.empty(device, 10, np.dtype(np.float64))
    assert vector.address % 64 == 0
    part = vector[2:7]
    assert (part.address - vector.address, len(part), part.nbytes) == (16, 5, 40)
    assert len(part[3:2]) == 0
    assert part.view(np.uint8).size == 40
    with pytest.raises(InvariantError, match="taken in runs"):
        vector[::2]
    with pytest.raises(InvariantError, match="whole elements"):
        vector[:1].view(np.uint8)[:3].view(np.uint16)


# ---- programs --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def architectures() -> list[int]:
    if nvrtc.library() is None:
        pytest.skip("needs NVRTC: `pip install nvidia-cuda-nvrtc-cu12`, which `make test-all` does")
    known = nvrtc.architectures()
    return [architecture for architecture in ARCHITECTURES if architecture in known]


PROGRAMS = programs()


@pytest.mark.parametrize("program", PROGRAMS, ids=[program.entry for program in PROGRAMS])
def test_ptx_of_every_program_rounds_every_operation_once(program: CudaSource, architectures: list[int]) -> None:
    assert len(architectures) >= 2
    for architecture in architectures:
        ptx = nvrtc.compiled(program.text, architecture)
        assert f".entry {program.entry}(" in ptx
        arithmetic = re.findall(
            r"^\s*(?:@%\w+ )?((?:add|sub|mul|div|sqrt|fma|rcp|rsqrt|mad|ex2|lg2)\S*\.f\d\d)\b", ptx, re.M
        )
        assert set(arithmetic) <= {
            f"{op}.rn.{kind}" for op in ("add", "sub", "mul", "div", "sqrt") for kind in ("f32", "f64")
        }
        if program.entry.startswith(("update", "squares", "measure", "lane_sums", "step_rows")):
            assert arithmetic


def test_the_reader_of_ptx_sees_a_fused_product(architectures: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "OPTIONS", [option for option in OPTIONS if option != "--fmad=false"])
    assert "fma.rn.f32" in nvrtc.compiled(build_cuda(SGD(lr=0.1), "float32").text, architectures[0])


def test_a_kernel_of_another_form_has_no_twin() -> None:
    def gathers(w: Any, slots: Any, begin: int, g: Any, gscale: float, scalars: Any, out: Any = None) -> None:
        n = g.size
        for i in range(n):
            w[g[i]] = gscale

    def sums_up(w: Any, slots: Any, begin: int, g: Any, gscale: float, scalars: Any, out: Any = None) -> None:
        n = g.size
        for i in range(n):
            w[i] += gscale * g[i]

    def counts(w: Any, slots: Any, begin: int, g: Any, gscale: float, scalars: Any, out: Any = None) -> None:
        n = g.size
        for i in range(n):
            w[i] = w[i] * 0.5

    for kernel, form in ((gathers, r"w\[g\[i\]\]"), (sums_up, r"w\[i\] \+="), (counts, "0.5")):
        with pytest.raises(UsageError, match=rf"no kernel for a device .*{form}"):
            update_source(Variant(kernel.__name__, (), kernel, lambda *_: ()), np.dtype("float32"))


def test_rules_for_rows_are_refused() -> None:
    with pytest.raises(InvariantError, match="rows"):
        build_cuda(RowWiseAdagrad(), "float32")


def test_a_twin_is_written_once() -> None:
    assert build_cuda(Adagrad(lr=0.1), "float32") is not None
    assert build_cuda(SGD(lr=0.1), "float32") is build_cuda(SGD(lr=0.2), "float32")


@pytest.mark.parametrize("name", ["gpu:x", "cpu", "gpu:-1", "cuda:0", ""])
def test_a_device_that_is_none_is_refused_in_words(name: str) -> None:
    with pytest.raises(UsageError, match=r"not gpu:N .*Write for example gpu:0"):
        cupy_device.open_device(name)
