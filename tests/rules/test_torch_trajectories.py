"""Rules train as torch.optim does: recorded float64 trajectories (record_trajectories.py wrote them)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass_rules
from tests.rules.record_trajectories import gradient
from windlass_proto.memory import aligned_zeros
from windlass_proto.rule_specs import from_name

RECORDED = json.loads((Path(__file__).parent / "trajectories.json").read_text())


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: f"{case['rule']}-{case['hyper_parameters']}")
@pytest.mark.parametrize(("dtype", "close"), [("float64", 1e-14), ("float32", 2e-6)])
def test_weights_follow_the_recorded_trajectory(case: dict[str, Any], dtype: str, close: float) -> None:
    spec = from_name(case["rule"], case["hyper_parameters"])
    kernels = windlass_rules.build(spec, dtype)
    n = len(RECORDED["start"])
    w, g = aligned_zeros(n, dtype), aligned_zeros(n, dtype)
    w[:] = RECORDED["start"]
    slots = tuple(aligned_zeros(n, dtype) for _ in kernels.slots)
    for array, slot in zip(slots, kernels.slots, strict=True):
        array[:] = slot.fill
    for step, recorded in enumerate(case["weights"], start=1):
        g[:] = [gradient(step, index) for index in range(n)]
        kernels.update(w, slots, 0, g, 1.0, kernels.scalars(spec, step))
        expected = [float.fromhex(value) for value in recorded]
        np.testing.assert_allclose(w, expected, rtol=close, atol=close, err_msg=f"step {step}")
