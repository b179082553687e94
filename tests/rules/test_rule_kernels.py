"""Every rule's kernel: right against its oracle, exact where that is promised, confined to its range."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import windlass_rules
from tests.rules import spec_strategies
from windlass_proto.errors import InvariantError, UsageError
from windlass_proto.memory import aligned_zeros
from windlass_proto.rule_specs import (
    DCASGD,
    FTML,
    FTRL,
    ROW_RULES,
    SGD,
    TRUST_RULES,
    Adagrad,
    Adam,
    AdamW,
    OwnRule,
    RMSprop,
    RuleSpec,
    Signum,
    Sum,
)
from windlass_rules import RuleKernels
from windlass_rules.registry import RULE_MODULES

N = 16 * 12 + 5  # whole vectors and a remainder
DENSE = [cls for cls in RULE_MODULES if cls not in (*ROW_RULES, *TRUST_RULES)]


class Block:
    """Weights, slots and a gradient of one block, aligned as a server keeps them."""

    def __init__(self, kernels: RuleKernels, n: int = N, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.w = self._filled(random.standard_normal(n), kernels.dtype)
        self.g = self._filled(random.standard_normal(n), kernels.dtype)
        self.slots = tuple(self._filled(np.full(n, slot.fill), kernels.dtype) for slot in kernels.slots)

    @staticmethod
    def _filled(values: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> npt.NDArray[np.floating[Any]]:
        array = aligned_zeros(values.size, dtype)
        array[:] = values
        return array

    def arrays(self) -> list[npt.NDArray[np.floating[Any]]]:
        return [self.w, *self.slots]

    def bits(self) -> list[bytes]:
        return [array.tobytes() for array in self.arrays()]


def test_each_step_agrees_with_the_float64_oracle(spec: RuleSpec, dtype: str) -> None:
    kernels = windlass_rules.build(spec, dtype)
    block = Block(kernels)
    oracle = RULE_MODULES[type(spec)].oracle
    gscale = 0.25
    for step in (1, 2, 3, 50):
        before = [array.astype(np.float64) for array in block.arrays()]
        gradient = np.float64(gscale) * block.g.astype(np.float64)
        w, slots = oracle(spec, before[0], tuple(before[1:]), gradient, step)
        kernels.update(block.w, block.slots, 0, block.g, gscale, kernels.scalars(spec, step))
        close = 8 * float(np.finfo(dtype).eps)
        for found, expected in zip(block.arrays(), [w, *slots], strict=True):
            np.testing.assert_allclose(found, expected, rtol=close, atol=close)
        block.g[:] = np.roll(block.g, 7)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(spec_strategies.specs(spec_strategies.ORDINARY, DENSE), st.integers(1, 10_000))
def test_any_hyper_parameters_agree_with_the_float64_oracle(spec: RuleSpec, first_step: int) -> None:
    kernels = windlass_rules.build(spec, "float64")
    block = Block(kernels)
    w, slots = block.w.copy(), tuple(slot.copy() for slot in block.slots)
    for step in range(first_step, first_step + 3):
        w, slots = RULE_MODULES[type(spec)].oracle(spec, w, slots, 0.5 * block.g, step)
        kernels.update(block.w, block.slots, 0, block.g, 0.5, kernels.scalars(spec, step))
        for found, expected in zip(block.arrays(), [w, *slots], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
        block.g[:] = np.roll(block.g, 7)


def test_machine_code_gives_the_bits_of_ieee_arithmetic_one_element_at_a_time(spec: RuleSpec, dtype: str) -> None:
    """NumPy scalars round after every operation: equal bits mean no fused, reordered or widened operation."""
    kernels = windlass_rules.build(spec, dtype)
    compiled, plain = Block(kernels), Block(kernels)
    python = RULE_MODULES[type(spec)].variant(spec).kernel
    gscale = kernels.dtype.type(1 / 3)
    for step in (1, 2):
        scalars = kernels.scalars(spec, step)
        kernels.update(compiled.w, compiled.slots, 0, compiled.g, 1 / 3, scalars)
        python(plain.w, plain.slots, 0, plain.g, gscale, scalars)
        assert compiled.bits() == plain.bits()


def test_update_out_does_what_update_does_and_copies_the_weights(spec: RuleSpec, dtype: str) -> None:
    kernels = windlass_rules.build(spec, dtype)
    one, other = Block(kernels), Block(kernels)
    out = aligned_zeros(64, dtype)
    for step in (1, 2):
        scalars = kernels.scalars(spec, step)
        kernels.update(one.w, one.slots, 32, one.g[:64], 0.5, scalars)
        kernels.update_out(other.w, other.slots, 32, other.g[:64], 0.5, scalars, out)
        assert one.bits() == other.bits()
        assert out.tobytes() == other.w[32:96].tobytes()


def test_new_weights_may_be_written_over_the_gradient(spec: RuleSpec, dtype: str) -> None:
    kernels = windlass_rules.build(spec, dtype)
    one, other = Block(kernels), Block(kernels)
    scalars = kernels.scalars(spec, 1)
    kernels.update(one.w, one.slots, 0, one.g, 0.5, scalars)
    kernels.update_out(other.w, other.slots, 0, other.g, 0.5, scalars, other.g)
    assert one.bits() == other.bits()
    assert other.g.tobytes() == one.w.tobytes()


def test_a_gradient_is_cut_after_the_mean_is_taken_and_before_weight_decay(dtype: str) -> None:
    spec = SGD(lr=1.0, weight_decay=0.5, clip_value=1.0)
    kernels = windlass_rules.build(spec, dtype)
    block = Block(kernels, n=3)
    block.w[:] = 4.0
    block.g[:] = [10.0, -np.inf, 2.0]
    kernels.update(block.w, (), 0, block.g, 0.25, kernels.scalars(spec, 1))
    assert block.w.tolist() == [1.0, 3.0, 1.5]


def test_a_gradient_that_is_not_a_number_leaves_a_weight_that_is_none(spec: RuleSpec, dtype: str) -> None:
    """Bounds, signs and maxima must not turn it into a number: a table may allow it, and then it has to show."""
    kernels = windlass_rules.build(spec, dtype)
    block = Block(kernels)
    block.g[3::5] = np.nan
    kernels.update(block.w, block.slots, 0, block.g, 0.5, kernels.scalars(spec, 1))
    assert np.isnan(block.w).tolist() == [index % 5 == 3 for index in range(N)]


@pytest.mark.parametrize("spec", [FTRL(lr=0.3, beta=0.5), FTRL(lr=0.3, l1=0.2), FTML(lr=0.3)], ids=str)
def test_leaders_go_on_from_the_weights_they_find_whatever_the_rate(spec: FTRL | FTML) -> None:
    """Weights may be assigned, a rate may change or be 0: none of it moves a weight by itself."""
    kernels = windlass_rules.build(spec, "float32")
    block = Block(kernels)
    for step, rate in ((1, 0.0), (2, 0.3), (3, 0.03), (4, 1e-40), (5, 0.0), (6, 0.3)):
        if step == 5:
            block.w[:] = np.roll(block.w, 1)
        before = block.w.copy()
        gradient = block.g if step in (2, 5) else np.zeros_like(block.g)
        scalars = kernels.scalars(dataclasses.replace(spec, lr=rate), step)
        kernels.update(block.w, block.slots, 0, gradient, 1.0, scalars)
        moved = np.abs(block.w - before)
        bound = 4 * 0.3 * spec.l1 if isinstance(spec, FTRL) else 0.0  # L1 may take its share of other weights
        assert (moved > 0).all() if step == 2 else (moved <= bound).all()


def test_ftml_leaves_weights_without_a_gradient_alone() -> None:
    kernels = windlass_rules.build(FTML(), "float32")
    block = Block(kernels)
    for step in range(1, 300):
        before = block.w.copy()
        kernels.update(block.w, block.slots, 0, block.g, 1.0, kernels.scalars(FTML(), step))
        assert (block.w == before).all() == (step > 1)
        block.g[:] = 0.0


def test_numbers_beyond_float32_are_infinite_there() -> None:
    kernels = windlass_rules.build(SGD(lr=0.1), "float32")
    assert kernels.scalars(SGD(lr=0.1, clip_value=1e300), 1)[0] == np.inf


def test_l1_makes_weights_exactly_0_and_l2_does_not() -> None:
    for spec, zeros in ((FTRL(l1=0.5), True), (FTRL(l2=0.5), False)):
        kernels = windlass_rules.build(spec, "float32")
        block = Block(kernels)
        block.w[:] = 0.0
        for step in range(1, 5):
            kernels.update(block.w, block.slots, 0, block.g, 0.5 / step, kernels.scalars(spec, step))
        assert bool((block.w == 0).any()) is zeros
        assert (block.w != 0).any()


def test_a_variance_that_rounding_made_negative_counts_as_0() -> None:
    spec = RMSprop(alpha=0.9, eps=1e-8, centered=True)
    kernels = windlass_rules.build(spec, "float32")
    block = Block(kernels)
    scalars = kernels.scalars(spec, 1)
    for _ in range(400):
        kernels.update(block.w, block.slots, 0, block.g, 1.0, scalars)
    square, mean = block.slots
    assert (square < mean * mean).any()
    assert np.isfinite(block.w).all()


def test_elements_outside_of_the_range_keep_their_bits(spec: RuleSpec, dtype: str) -> None:
    kernels = windlass_rules.build(spec, dtype)
    block = Block(kernels)
    before = [array.copy() for array in block.arrays()]
    kernels.update(block.w, block.slots, 48, block.g[:37], 1.0, kernels.scalars(spec, 1))
    for array, old in zip(block.arrays(), before, strict=True):
        assert array[:48].tobytes() == old[:48].tobytes()
        assert array[85:].tobytes() == old[85:].tobytes()
    assert (block.w[48:85] != before[0][48:85]).all()


def test_a_block_updated_in_parts_has_the_bits_of_one_updated_whole(spec: RuleSpec, dtype: str) -> None:
    kernels = windlass_rules.build(spec, dtype)
    whole, parts = Block(kernels), Block(kernels)
    for step in (1, 2):
        scalars = kernels.scalars(spec, step)
        kernels.update(whole.w, whole.slots, 0, whole.g, 0.3, scalars)
        for begin, end in ((96, 112), (0, 16), (112, N), (16, 96)):
            kernels.update(parts.w, parts.slots, begin, parts.g[begin:end], 0.3, scalars)
    assert whole.bits() == parts.bits()


@pytest.mark.parametrize(("begin", "size"), [(-16, 16), (N - 15, 16), (N + 16, 16), (0, N + 1)])
def test_a_range_that_leaves_the_block_is_refused_before_anything_is_written(
    spec: RuleSpec, begin: int, size: int
) -> None:
    kernels = windlass_rules.build(spec, "float64")
    block = Block(kernels)
    before = block.bits()
    gradient, scalars = aligned_zeros(size, "float64"), kernels.scalars(spec, 1)
    with pytest.raises(IndexError, match="leaves its block"):
        kernels.update(block.w, block.slots, begin, gradient, 1.0, scalars)
    with pytest.raises(IndexError, match="leaves its block"):
        kernels.update_out(block.w, block.slots, begin, gradient, 1.0, scalars, gradient.copy())
    assert block.bits() == before


def test_sizes_that_differ_are_refused_before_anything_is_written(spec: RuleSpec) -> None:
    kernels = windlass_rules.build(spec, "float64")
    block = Block(kernels)
    before, scalars = block.bits(), kernels.scalars(spec, 1)
    with pytest.raises(IndexError, match="another size"):
        kernels.update_out(block.w, block.slots, 0, block.g, 1.0, scalars, block.g[: N - 1])
    for index in range(len(block.slots)):
        short = tuple(slot[: N // 2] if i == index else slot for i, slot in enumerate(block.slots))
        with pytest.raises(IndexError, match="leaves its block"):
            kernels.update(block.w, short, 0, block.g, 1.0, scalars)
    assert block.bits() == before


def test_a_gradient_may_be_read_only_and_an_array_of_another_dtype_is_refused(spec: RuleSpec) -> None:
    kernels = windlass_rules.build(spec, "float32")
    block, twin = Block(kernels), Block(kernels)
    scalars = kernels.scalars(spec, 1)
    twin.g.flags.writeable = False
    kernels.update(block.w, block.slots, 0, block.g, 1.0, scalars)
    kernels.update(twin.w, twin.slots, 0, twin.g, 1.0, scalars)
    assert block.bits() == twin.bits()
    with pytest.raises(TypeError, match="No matching definition"):
        kernels.update(block.w, block.slots, 0, block.g.astype(np.float64), 1.0, scalars)
    block.w.flags.writeable = False
    with pytest.raises(TypeError, match="No matching definition"):
        kernels.update(block.w, block.slots, 0, block.g, 1.0, scalars)


def test_an_empty_gradient_changes_nothing(spec: RuleSpec, dtype: str) -> None:
    kernels = windlass_rules.build(spec, dtype)
    block = Block(kernels)
    before = block.bits()
    kernels.update(block.w, block.slots, N, block.g[:0], 1.0, kernels.scalars(spec, 1))
    assert block.bits() == before


def test_multipliers_are_those_of_a_spec_with_multiplied_values(spec: RuleSpec, dtype: str) -> None:
    kernels = windlass_rules.build(spec, dtype)
    assert not isinstance(spec, OwnRule)
    rate = "scale" if isinstance(spec, Sum) else "lr"
    penalty = {FTRL: "l2", Sum: None}.get(type(spec), "weight_decay")
    changes = {rate: spec.lr * 2.0} | ({penalty: spec.weight_decay * 0.5} if penalty else {})
    multiplied: RuleSpec = dataclasses.replace(spec, **changes)  # type: ignore[arg-type]
    for step in (1, 7):
        found = kernels.scalars(spec, step, lr_mult=2.0, decay_mult=0.5)
        assert found.dtype == dtype
        assert found.tobytes() == kernels.scalars(multiplied, step).tobytes()


def test_a_rule_changed_live_keeps_its_kernels_within_a_variant() -> None:
    kernels = windlass_rules.build(SGD(lr=0.1, momentum=0.9), "float32")
    nesterov = SGD(lr=0.2, momentum=0.8, nesterov=True)
    assert windlass_rules.build(nesterov, "float32").update is kernels.update
    assert kernels.scalars(nesterov, 1).size == kernels.scalars(SGD(lr=0.1, momentum=0.9), 1).size
    assert windlass_rules.build(Adam(), "float32").update is windlass_rules.build(AdamW(), "float32").update


def test_slots_say_their_names_and_first_values() -> None:
    def slots(rule: RuleSpec) -> list[tuple[str, float]]:
        return [(slot.name, slot.fill) for slot in windlass_rules.build(rule, "float64").slots]

    assert slots(SGD(lr=0.1)) == []
    assert slots(SGD(lr=0.1, momentum=0.5)) == [("momentum", 0.0)]
    assert slots(Adagrad(initial_accumulator_value=0.25)) == [("sum", 0.25)]
    assert slots(AdamW()) == [("m", 0.0), ("v", 0.0)]
    assert slots(Adam(amsgrad=True)) == [("m", 0.0), ("v", 0.0), ("top", 0.0)]
    assert slots(RMSprop(centered=True, momentum=0.5)) == [("square", 0.0), ("mean", 0.0), ("momentum", 0.0)]
    assert slots(Signum(momentum=0.0)) == slots(Sum()) == []
    assert slots(DCASGD(adaptive=True)) == [("square", 0.0), ("copy", 0.0)]


def test_a_copy_that_each_worker_has_is_not_among_what_is_kept_once() -> None:
    constant, adaptive = (windlass_rules.build(DCASGD(adaptive=each), "float32") for each in (False, True))
    assert constant.copies
    assert adaptive.copies
    assert constant.kept == ()
    assert [slot.name for slot in adaptive.kept] == ["square"]
    adam = windlass_rules.build(Adam(), "float32")
    assert adam.kept == adam.slots
    assert not adam.copies


def test_compensation_is_0_where_the_weights_have_not_moved_since() -> None:
    for adaptive in (False, True):
        spec = DCASGD(lr=0.1, compensation=3.0, adaptive=adaptive)
        kernels, plain = windlass_rules.build(spec, "float64"), windlass_rules.build(SGD(lr=0.1), "float64")
        one, other = Block(kernels), Block(plain)
        one.slots[-1][:] = one.w
        kernels.update(one.w, one.slots, 0, one.g, 0.5, kernels.scalars(spec, 1))
        plain.update(other.w, (), 0, other.g, 0.5, plain.scalars(SGD(lr=0.1), 1))
        np.testing.assert_allclose(one.w, other.w, rtol=1e-15)


def test_late_steps_have_no_bias_left_to_correct() -> None:
    spec = Adam(lr=0.5)
    scalars = windlass_rules.build(spec, "float64").scalars(spec, 10**9)
    np.testing.assert_array_equal(scalars[5:7], [0.5, 1.0])


def test_bias_corrections_are_within_rounding_of_their_powers() -> None:
    spec = Adam(lr=1.0, betas=(0.9, 0.999))
    kernels = windlass_rules.build(spec, "float64")
    for step in (1, 2, 3, 10, 999, 12_345):
        scalars = kernels.scalars(spec, step)
        assert scalars[5] == pytest.approx(1 / (1 - 0.9**step), rel=1e-13)
        assert scalars[6] == pytest.approx((1 - 0.999**step) ** -0.5, rel=1e-12)


def test_step_0_is_our_own_bug() -> None:
    kernels = windlass_rules.build(SGD(lr=0.1), "float32")
    with pytest.raises(InvariantError, match="counted from 1"):
        kernels.scalars(SGD(lr=0.1), 0)


@pytest.mark.parametrize(
    ("built", "other"),
    [
        (SGD(lr=0.1), SGD(lr=0.1, momentum=0.9)),
        (Signum(momentum=0.0), Signum()),
        (RMSprop(), RMSprop(centered=True)),
        (Adam(), AdamW(amsgrad=True)),
        (FTRL(), FTML()),
    ],
)
def test_a_rule_of_another_variant_is_our_own_bug(built: RuleSpec, other: RuleSpec) -> None:
    """Its kernel would read numbers that are not there."""
    for one, another in ((built, other), (other, built)):
        with pytest.raises(InvariantError, match="kernels of one variant met a rule of another"):
            windlass_rules.build(one, "float32").scalars(another, 1)


@pytest.mark.parametrize("other", ["float16", "int32", "complex64", ">f4"])
def test_other_dtypes_are_refused_in_words(spec: RuleSpec, other: str) -> None:
    with pytest.raises(UsageError, match=r"no kernels for this dtype .*known=float32, float64"):
        windlass_rules.build(spec, other)


def test_threads_that_build_at_once_get_one_kernel() -> None:
    barrier, found = threading.Barrier(8), []

    def build() -> None:
        barrier.wait()
        found.append(windlass_rules.build(Adagrad(), "float32").update)

    threads = [threading.Thread(target=build) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(kernel is found[0] for kernel in found)


def test_check_arrays_names_the_array_that_is_not_as_kernels_need_it() -> None:
    w, g = aligned_zeros(64, "float32"), aligned_zeros(32, "float32")
    windlass_rules.check_arrays(w, (w.copy()[:0],)[:0], 16, g, out=g)
    with pytest.raises(InvariantError, match=r"64 bytes \(array=g\)"):
        windlass_rules.check_arrays(w, (), 0, g[1:])
    with pytest.raises(InvariantError, match=r"contiguous.*array=out"):
        windlass_rules.check_arrays(w, (), 0, g, out=w[::2])
    with pytest.raises(InvariantError, match="does not fit"):
        windlass_rules.check_arrays(w, (), 8, g)
    with pytest.raises(InvariantError, match="does not fit"):
        windlass_rules.check_arrays(w, (), 48, g)
    with pytest.raises(InvariantError, match="differ in size"):
        windlass_rules.check_arrays(w, (g,), 0, g)
