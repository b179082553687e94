"""Rules that step whole rows: right against their oracles and against what their objectives say, exact, confined."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import windlass_rules
from tests.rules import spec_strategies
from tests.rules.conftest import ROW_SPECS
from tests.rules.record_trajectories import START, gradient
from tests.rules.test_torch_trajectories import RECORDED
from windlass_proto.consistency import Consistency
from windlass_proto.errors import InvariantError, UsageError
from windlass_proto.ids import NONE
from windlass_proto.memory import aligned_zeros
from windlass_proto.rule_specs import (
    FTRL,
    ROW_RULES,
    GroupAdagrad,
    GroupFTRL,
    RowWiseAdagrad,
    RuleSpec,
    check_dense,
    check_rows,
)
from windlass_rules.registry import RULE_MODULES
from windlass_rules.row_sums import sum_of_squares
from windlass_rules.rows import RowRule, build_rows
from windlass_rules.rule import Per

ROWS = 40
Matrix = npt.NDArray[np.floating[Any]]


class Rows:
    """Rows and slots as a table keeps them, and gradients for some of the rows in another order."""

    def __init__(self, rule: RowRule, dim: int, rows: int = ROWS, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.rule, self.dim = rule, dim
        self.w = aligned_zeros(rows * dim, rule.dtype)
        self.w[:] = random.standard_normal(rows * dim)
        self.slots = tuple(aligned_zeros(rows * slot.width(dim), rule.dtype) for slot in rule.slots)
        for values, slot in zip(self.slots, rule.slots, strict=True):
            values[:] = slot.fill
        self.numbers = random.permutation(rows)[: rows - 7].astype(np.uint32)
        self.g = aligned_zeros(self.numbers.size * dim, rule.dtype)
        self.g[:] = random.standard_normal(self.g.size)

    def update(self, spec: RuleSpec, step: int, gscale: float = 0.25) -> None:
        scalars = self.rule.scalars(spec, step)
        self.rule.update((self.w, *self.slots), self.numbers, self.dim, self.g, gscale, scalars)

    def chosen(self) -> list[Matrix]:
        """Weights and slots of the rows that are updated, in float64."""
        wide = self.w.reshape(-1, self.dim)[self.numbers].astype(np.float64)
        slots = []
        for values, slot in zip(self.slots, self.rule.slots, strict=True):
            width = slot.width(self.dim)
            rows = values.reshape(-1, width)[self.numbers].astype(np.float64)
            slots.append(rows[:, 0] if width == 1 and slot.per is not Per.ELEMENT else rows)
        return [wide, *slots]

    def bits(self) -> list[bytes]:
        return [array.tobytes() for array in (self.w, *self.slots)]


@pytest.fixture(params=ROW_SPECS, ids=str)
def row_spec(request: pytest.FixtureRequest) -> RuleSpec:
    case: RuleSpec = request.param
    return case


@pytest.mark.parametrize("dim", [1, 3, 16, 37])
def test_each_step_agrees_with_the_float64_oracle(row_spec: RuleSpec, dtype: str, dim: int) -> None:
    rows = Rows(build_rows(row_spec, dtype), dim)
    close = 64 * float(np.finfo(dtype).eps)
    for step in (1, 2, 3, 50):
        before = rows.chosen()
        g = 0.25 * rows.g.reshape(-1, dim).astype(np.float64)
        w, slots = RULE_MODULES[type(row_spec)].oracle(row_spec, before[0], tuple(before[1:]), g, step)
        rows.update(row_spec, step)
        for found, expected in zip(rows.chosen(), [w, *slots], strict=True):
            np.testing.assert_allclose(found, expected, rtol=close, atol=close)
        rows.g[:] = np.roll(rows.g, 7)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(spec_strategies.specs(spec_strategies.ORDINARY, ROW_RULES), st.integers(1, 20))
def test_any_hyper_parameters_agree_with_the_float64_oracle(spec: RuleSpec, dim: int) -> None:
    rows = Rows(build_rows(spec, "float64"), dim, rows=12)
    w, *slots = rows.chosen()
    for step in (1, 2, 3):
        g = 0.25 * rows.g.reshape(-1, dim)
        w, slots = RULE_MODULES[type(spec)].oracle(spec, w, tuple(slots), g, step)
        rows.update(spec, step)
        for found, expected in zip(rows.chosen(), [w, *slots], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
        rows.g[:] = np.roll(rows.g, 7)


@pytest.mark.parametrize("dim", [1, 7, 16])
def test_machine_code_gives_the_bits_of_ieee_arithmetic_one_value_at_a_time(
    row_spec: RuleSpec, dtype: str, dim: int
) -> None:
    rule = build_rows(row_spec, dtype)
    rows, plain = Rows(rule, dim), Rows(rule, dim)
    rows.numbers = plain.numbers = np.arange(rows.numbers.size, dtype=np.uint32)
    for step in (1, 2):
        rows.update(row_spec, step, 1 / 3)
        rule.variant.kernel(plain.w, plain.slots, dim, plain.g, rule.dtype.type(1 / 3), rule.scalars(row_spec, step))
        assert rows.bits() == plain.bits()


def test_rows_that_are_not_named_keep_weights_and_slots(row_spec: RuleSpec, dtype: str) -> None:
    rows = Rows(build_rows(row_spec, dtype), 5)
    others = np.setdiff1d(np.arange(ROWS), rows.numbers)
    rows.numbers[3] = NONE
    arrays = [rows.w, *rows.slots]
    before = [array.reshape(ROWS, -1)[others].tobytes() for array in arrays]
    rows.update(row_spec, 1)
    assert [array.reshape(ROWS, -1)[others].tobytes() for array in arrays] == before


def test_a_gradient_that_is_not_a_number_shows_in_its_row_and_in_no_other(row_spec: RuleSpec, dtype: str) -> None:
    rows = Rows(build_rows(row_spec, dtype), 4)
    rows.g[4 * 5 + 2] = np.nan
    rows.update(row_spec, 1)
    bad = np.isnan(rows.w.reshape(ROWS, 4))
    assert bad[rows.numbers[5], 2]
    assert not np.delete(bad, rows.numbers[5], axis=0).any()


def test_a_push_larger_than_the_cache_has_the_bits_of_one_row_after_the_other(row_spec: RuleSpec) -> None:
    rule = build_rows(row_spec, "float32")
    whole, single = Rows(rule, 128, rows=300), Rows(rule, 128, rows=300)
    whole.update(row_spec, 1)
    scalars = rule.scalars(row_spec, 1)
    for at in range(single.numbers.size):
        g = single.g[128 * at : 128 * (at + 1)]
        rule.update((single.w, *single.slots), single.numbers[at : at + 1], 128, g, 0.25, scalars)
    assert whole.bits() == single.bits()


@pytest.mark.parametrize("mode", ["bsp", "asp"])
def test_dense_tensors_are_refused_in_words(row_spec: RuleSpec, mode: str) -> None:
    with pytest.raises(UsageError, match=r"steps whole rows.*Declare a sparse table with it"):
        check_dense(row_spec, Consistency.parse(mode))
    with pytest.raises(InvariantError, match="asked of a rule of rows"):
        windlass_rules.build(row_spec, "float32")
    check_rows(row_spec)


def test_a_row_of_one_value_follows_torchs_adagrad() -> None:
    for case in (case for case in RECORDED["cases"] if case["rule"] == "adagrad"):
        spec = RowWiseAdagrad(**case["hyper_parameters"])
        rows = Rows(build_rows(spec, "float64"), 1, rows=len(START))
        rows.w[:] = START
        rows.numbers = np.arange(len(START), dtype=np.uint32)
        for step, recorded in enumerate(case["weights"], start=1):
            rows.g = np.array([gradient(step, index) for index in range(len(START))])
            rows.update(spec, step, 1.0)
            np.testing.assert_allclose(rows.w, [float.fromhex(value) for value in recorded], rtol=1e-14, atol=1e-14)


def test_without_its_penalty_group_adagrad_is_row_wise_adagrad() -> None:
    shared = {"lr": 0.3, "weight_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-3}
    group, plain = GroupAdagrad(**shared), RowWiseAdagrad(**shared)
    one, other = Rows(build_rows(group, "float64"), 9), Rows(build_rows(plain, "float64"), 9)
    for step in (1, 2, 3):
        one.update(group, step)
        other.update(plain, step)
        assert one.bits() == other.bits()


def test_rows_of_one_value_without_a_penalty_on_them_are_those_of_ftrl() -> None:
    group, plain = GroupFTRL(lr=0.4, beta=0.5, l1=0.03), FTRL(lr=0.4, beta=0.5, l1=0.03)
    one, other = Rows(build_rows(group, "float64"), 1), Rows(build_rows(plain, "float64"), 1)
    for step in (1, 2, 3):
        one.update(group, step)
        other.update(plain, step)
        np.testing.assert_allclose(one.w, other.w, rtol=1e-13, atol=1e-13)


def test_a_step_of_group_adagrad_is_where_its_objective_is_least() -> None:
    """|x - u|^2 / (2 rate) + l21 sqrt(dim) |x|: its slope is 0 where x is not, and within the penalty where it is."""
    spec, dim = GroupAdagrad(lr=0.5, l21=0.9, eps=0.1), 6
    rows = Rows(build_rows(spec, "float64"), dim)
    before = rows.chosen()[0]
    rows.update(spec, 1)
    x, total = rows.chosen()
    grad = 0.25 * rows.g.reshape(-1, dim)
    rate = (spec.lr / (np.sqrt((grad**2).mean(axis=1)) + spec.eps))[:, None]
    slope = (x - (before - rate * grad)) / rate
    zero = (x == 0).all(axis=1)
    assert 0 < zero.sum() < len(zero)
    penalty = spec.l21 * np.sqrt(dim)
    live = x[~zero]
    np.testing.assert_allclose(slope[~zero], -penalty * live / np.linalg.norm(live, axis=1, keepdims=True), atol=1e-12)
    assert (np.linalg.norm(slope[zero], axis=1) <= penalty).all()
    np.testing.assert_allclose(total, (grad**2).mean(axis=1), rtol=1e-14)


def test_group_ftrl_is_where_the_objective_over_all_steps_is_least() -> None:
    """Taken from the whole history of gradients and rows, not from the recurrence."""
    spec, dim = GroupFTRL(lr=0.7, beta=0.4, l1=0.05, l2=0.3, l21=0.7), 6
    rows = Rows(build_rows(spec, "float64"), dim)
    visited, gs, inverse = [rows.chosen()[0]], [], [np.zeros(rows.numbers.size)]
    zeros = 0
    for step in (1, 2, 3, 4):
        gs.append(0.25 * rows.g.reshape(-1, dim).copy())
        rows.update(spec, step)
        x = rows.chosen()[0]
        inverse.append((spec.beta + np.sqrt(sum((g**2).mean(axis=1) for g in gs))) / spec.lr)
        slope = sum(gs) + spec.l2 * x
        for new, old, w in zip(inverse[1:], inverse, visited, strict=False):
            slope = slope + (new - old)[:, None] * (x - w)
        visited.append(x)
        length = np.linalg.norm(x, axis=1, keepdims=True)
        zero = length[:, 0] == 0
        zeros += int(zero.sum())
        penalty = spec.l21 * np.sqrt(dim)
        held = -slope[~zero] - penalty * x[~zero] / length[~zero]
        live = x[~zero] != 0
        np.testing.assert_allclose(held[live], spec.l1 * np.sign(x[~zero][live]), atol=1e-12)
        assert (np.abs(held[~live]) <= spec.l1 + 1e-12).all()
        beyond = np.maximum(np.abs(slope[zero]) - spec.l1, 0)
        assert (np.linalg.norm(beyond, axis=1) <= penalty + 1e-12).all()
        rows.g[:] = np.roll(rows.g, 5)
    assert 0 < zeros < 4 * rows.numbers.size


def test_a_rows_l2_penalty_counts_from_its_own_first_step() -> None:
    """A row made in the table's thousandth step is where one made in its first is."""
    spec = GroupFTRL(l2=0.5)
    early, late = (Rows(build_rows(spec, "float64"), 4) for _ in range(2))
    early.update(spec, 1)
    late.update(spec, 1000)
    assert early.bits() == late.bits()
    before = late.w.copy()
    late.g[:] = 0.0
    late.update(spec, 1001)
    np.testing.assert_allclose(late.w, before, rtol=1e-15)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 64, 1003])
def test_a_sum_of_squares_is_that_of_its_lanes(size: int, dtype: str) -> None:
    x = np.random.default_rng(size).standard_normal(size).astype(dtype)
    lanes = [x[lane::8] for lane in range(8)]
    sums = [np.dtype(dtype).type(0)] * 8
    for lane, values in enumerate(lanes):
        for value in values:
            sums[lane] = sums[lane] + value * value
    a, b, c, d, e, f, g, h = sums
    assert sum_of_squares(x, np.dtype(dtype).type(0)) == ((a + b) + (c + d)) + ((e + f) + (g + h))


def test_slots_of_one_value_a_row_start_as_the_rule_says() -> None:
    def slots(spec: RuleSpec) -> list[tuple[str, float, Per]]:
        return [(slot.name, slot.fill, slot.per) for slot in build_rows(spec, "float32").slots]

    assert slots(RowWiseAdagrad(initial_accumulator_value=0.5)) == [("sum", 0.5, Per.ROW)]
    assert slots(GroupAdagrad()) == [("sum", 0.0, Per.ROW)]
    assert slots(GroupFTRL()) == [("held", 0.0, Per.ELEMENT), ("n", -1.0, Per.ROW)]
