"""Rules train as torch.optim, Optax and the papers do (record_trajectories.py wrote what they did)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass_rules
from tests.rules.record_trajectories import CLIPPED, START, TORCH, Gradient, Hyper, gradient, torch_weights
from tests.rules.whole_step import step_whole
from windlass_proto.memory import aligned_zeros
from windlass_proto.rule_specs import ROW_RULES, RULES, from_name

RECORDED = json.loads((Path(__file__).parent / "trajectories.json").read_text())


def our_weights(rule: str, hyper: Hyper, dtype: str, steps: int, gradient: Gradient = gradient) -> Iterator[Any]:
    """The weights after each step of our kernels; the array is theirs and changes with the next step."""
    spec = from_name(rule, hyper)
    kernels = windlass_rules.build(spec, dtype)
    w, g = aligned_zeros(len(START), dtype), aligned_zeros(len(START), dtype)
    w[:] = START
    slots = tuple(aligned_zeros(len(START), dtype) for _ in kernels.slots)
    for array, slot in zip(slots, kernels.slots, strict=True):
        array[:] = slot.fill
    for step in range(1, steps + 1):
        g[:] = [gradient(step, index) for index in range(len(START))]
        step_whole(kernels, spec, w, slots, g, 1.0, step)
        yield w


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: f"{case['rule']}-{case['hyper_parameters']}")
@pytest.mark.parametrize(("dtype", "close"), [("float64", 1e-14), ("float32", 2e-6)])
def test_weights_follow_the_recorded_trajectory(case: dict[str, Any], dtype: str, close: float) -> None:
    recorded = [[float.fromhex(value) for value in step] for step in case["weights"]]
    ours = our_weights(case["rule"], case["hyper_parameters"], dtype, len(recorded))
    for step, (found, expected) in enumerate(zip(ours, recorded, strict=True), start=1):
        np.testing.assert_allclose(found, expected, rtol=close, atol=close, err_msg=f"step {step}")


def test_every_dense_rule_that_torch_optax_or_a_history_can_tell_of_has_a_recorded_trajectory() -> None:
    dense = {name for name, cls in RULES.items() if cls not in ROW_RULES}
    assert {case["rule"] for case in RECORDED["cases"]} == dense - {"sum", "dcasgd"}


@pytest.mark.large
@pytest.mark.parametrize(("rule", "hyper"), TORCH + CLIPPED, ids=str)
def test_weights_follow_the_installed_torch_for_300_steps(rule: str, hyper: Hyper) -> None:
    drawn = np.random.default_rng(5).standard_normal((301, len(START)))

    def some(step: int, index: int) -> float:
        return float(drawn[step, index])

    theirs = torch_weights(rule, hyper, 300, some)
    for step, found in enumerate(our_weights(rule, hyper, "float64", 300, some), start=1):
        np.testing.assert_allclose(found, theirs[step - 1], rtol=1e-11, atol=1e-11, err_msg=f"step {step}")
