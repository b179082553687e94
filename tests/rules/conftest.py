"""Cases over every rule and its terms, shared by the tests of kernels."""

from __future__ import annotations

import pytest

from windlass_proto.rule_specs import SGD, Adagrad, Adam, AdamW, RuleSpec

SPECS: list[RuleSpec] = [
    SGD(lr=0.1),
    SGD(lr=0.1, weight_decay=0.05),
    SGD(lr=0.1, momentum=0.9),
    SGD(lr=0.1, momentum=0.9, dampening=0.4, weight_decay=0.05),
    SGD(lr=0.1, momentum=0.9, weight_decay=0.05, nesterov=True),
    Adagrad(),
    Adagrad(lr=0.1, lr_decay=0.2, weight_decay=0.05, initial_accumulator_value=0.3, eps=1e-6),
    Adam(),
    Adam(lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.05),
    AdamW(),
    AdamW(lr=0.02, betas=(0.8, 0.9), eps=1e-4, weight_decay=0.5),
]


@pytest.fixture(params=SPECS, ids=str)
def spec(request: pytest.FixtureRequest) -> RuleSpec:
    case: RuleSpec = request.param
    return case


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name
