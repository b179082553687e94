"""Rules that take norms: right against their oracles, the same bits however the work is cut, exact at the edges."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import windlass_rules
from tests.rules import spec_strategies
from tests.rules.conftest import TRUST_SPECS
from tests.rules.whole_step import Wide, oracle_step, step_whole
from windlass_proto.memory import aligned_zeros
from windlass_proto.rule_specs import LAMB, LARS, SGD, TRUST_RULES, Adam, RuleSpec
from windlass_rules import norms
from windlass_rules.norms import CHUNK, LANES, Norm
from windlass_rules.registry import trust_of

N = 2 * CHUNK + 37
CLIPPED: list[RuleSpec] = [
    SGD(lr=0.1, momentum=0.9, clip_norm=0.5),
    Adam(lr=0.02, clip_global_norm=0.5, clip_value=0.01),
    LAMB(lr=0.02, clip_norm=0.5),
    LARS(lr=2.0, weight_decay=0.1, clip_global_norm=0.5),
]
SPECS = [*TRUST_SPECS, *CLIPPED]


def tensor(values: Any, dtype: str) -> Any:
    array = aligned_zeros(len(values), dtype)
    array[:] = values
    return array


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_each_step_agrees_with_the_float64_oracle(spec: RuleSpec, dtype: str) -> None:
    _agree(spec, dtype, N, (1, 2, 3, 50))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(spec_strategies.specs(spec_strategies.ORDINARY, TRUST_RULES), st.integers(1, 10_000), st.integers(0, 70))
def test_any_hyper_parameters_agree_with_the_float64_oracle(spec: RuleSpec, first_step: int, n: int) -> None:
    _agree(spec, "float64", n, (first_step, first_step + 1))


def _agree(spec: RuleSpec, dtype: str, n: int, steps: tuple[int, ...]) -> None:
    random = np.random.default_rng(3)
    kernels = windlass_rules.build(spec, dtype)
    w, slots = tensor(random.standard_normal(n), dtype), tuple(aligned_zeros(n, dtype) for _ in kernels.slots)
    close = {"float32": 4e-6, "float64": 1e-11}[dtype]
    for step in steps:
        g = tensor(random.standard_normal(n), dtype)
        wide: list[Wide] = [array.astype(np.float64) for array in (w, *slots)]
        expected, kept = oracle_step(spec, wide[0], tuple(wide[1:]), 0.25 * g.astype(np.float64), step)
        step_whole(kernels, spec, w, slots, g, 0.25, step)
        for found, due in zip((w, *slots), (expected, *kept), strict=True):
            np.testing.assert_allclose(found, due, rtol=close, atol=close)


def test_sums_are_made_in_the_order_that_is_written_down(dtype: str) -> None:
    values = np.random.default_rng(4).standard_normal(N).astype(dtype)
    gscale = np.dtype(dtype).type(0.3)
    padded = np.zeros(3 * CHUNK)
    padded[:N] = (gscale * values).astype(np.float64) ** 2
    due = np.zeros(LANES)
    for chunk in padded.reshape(3, CHUNK):
        while chunk.size > LANES:
            chunk = chunk[: chunk.size // 2] + chunk[chunk.size // 2 :]
        due += chunk
    while due.size > 1:
        due = due[: due.size // 2] + due[due.size // 2 :]
    lanes = np.zeros(LANES)
    norms.build_squares(np.dtype(dtype))(tensor(values, dtype), 0.3, lanes)
    assert norms.folded(lanes) == (due[0],)


@pytest.mark.parametrize("spec", TRUST_SPECS, ids=str)
def test_a_tensor_measured_in_runs_of_whole_chunks_has_the_sums_and_moments_of_one_run(spec: RuleSpec) -> None:
    random = np.random.default_rng(5)
    kernels = windlass_rules.build(spec, "float32")
    assert kernels.measure is not None
    w, g = (tensor(random.standard_normal(N), "float32") for _ in range(2))
    found = []
    for borders in ((0, N), (0, CHUNK, 2 * CHUNK, N)):
        lanes, slots = np.zeros(2 * LANES), tuple(aligned_zeros(N, "float32") for _ in kernels.slots)
        for begin, end in itertools.pairwise(borders):
            kernels.measure(w, slots, begin, g[begin:end], 0.5, kernels.scalars(spec, 1), lanes)
        found.append((norms.folded(lanes), [slot.tobytes() for slot in slots]))
    assert found[0] == found[1]
    assert found[0][0][0] == pytest.approx(float((w.astype(np.float64) ** 2).sum()), rel=1e-14)


def test_large_and_small_float32_gradients_have_finite_exact_norms() -> None:
    squares = norms.build_squares(np.dtype(np.float32))
    for value in (3e38, 1e-40):
        lanes = np.zeros(LANES)
        squares(tensor([value] * 4, "float32"), 1.0, lanes)
        assert norms.folded(lanes)[0] == 4 * float(np.float32(value)) ** 2


def test_a_gradient_within_its_bound_is_left_as_it_is_and_a_longer_one_has_the_bound_as_its_norm() -> None:
    spec = SGD(lr=1.0, clip_norm=5.0)
    kernels = windlass_rules.build(spec, "float64")
    for scale, length in ((1.0, 5.0), (0.5, 2.5), (100.0, 5.0), (0.0, 0.0)):
        w = aligned_zeros(2, "float64")
        step_whole(kernels, spec, w, (), tensor([3.0 * scale, 4.0 * scale], "float64"), 1.0, 1)
        assert math.hypot(*w) == pytest.approx(length, rel=1e-15)
    assert norms.clipping_divisor(spec, Norm.CLIP_TENSOR, 25.0, 3.0) == 3.0
    assert norms.clipping_divisor(spec, Norm.CLIP_TENSOR, math.inf, 1.0) == math.inf


def test_a_norm_that_is_no_number_clips_nothing_and_is_trusted_with_1() -> None:
    """Where gradients that are not finite are allowed, weights show them."""
    assert norms.clipping_divisor(SGD(lr=1.0, clip_norm=5.0), Norm.CLIP_TENSOR, math.nan, 3.0) == 3.0
    assert trust_of(LAMB(), (math.nan, math.nan), decay_mult=1.0, clock=0) == 1.0


@pytest.mark.parametrize("spec", [LAMB(), LARS()], ids=str)
def test_a_norm_of_0_is_trusted_with_1(spec: RuleSpec) -> None:
    for sums in ((0.0, 4.0), (4.0, 0.0), (0.0, 0.0)):
        assert trust_of(spec, sums, decay_mult=1.0, clock=0) == 1.0
    assert trust_of(LAMB(), (9.0, 4.0), decay_mult=1.0, clock=0) == 1.5


def test_decay_enters_the_trust_of_lars_with_its_multiplier() -> None:
    spec = LARS(trust_coefficient=0.5, weight_decay=0.2, eps=0.1)
    assert trust_of(spec, (9.0, 4.0), decay_mult=2.0, clock=0) == pytest.approx(0.5 * 3 / (2 + 0.4 * 3 + 0.1))


@pytest.mark.parametrize("spec", TRUST_SPECS, ids=str)
def test_a_range_that_leaves_the_block_is_refused_before_anything_is_written(spec: RuleSpec) -> None:
    kernels = windlass_rules.build(spec, "float32")
    assert kernels.measure is not None
    slots = tuple(aligned_zeros(64, "float32") for _ in kernels.slots)
    w, g, lanes = tensor(np.ones(64), "float32"), tensor(np.ones(32), "float32"), np.zeros(2 * LANES)
    for begin in (-16, 48):
        with pytest.raises(IndexError, match="leaves its block"):
            kernels.measure(w, slots, begin, g, 1.0, kernels.scalars(spec, 1), lanes)
        with pytest.raises(IndexError, match="leaves its block"):
            kernels.update(w, slots, begin, g, 1.0, kernels.scalars(spec, 1))
    with pytest.raises(IndexError, match="another size"):
        kernels.update_out(w, slots, 0, g, 1.0, kernels.scalars(spec, 1), w[:16].copy())
    assert not lanes.any() and (w == 1).all() and not any(slot.any() for slot in slots)  # noqa: PT018
