"""Any valid spec of any rule, for hypothesis: made from the fields of its class, so that a new rule is in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from hypothesis import strategies as st

from windlass_proto.rule_specs import RULES, SGD, RuleSpec

Ranges: TypeAlias = Mapping[str, st.SearchStrategy[Any]]

finite = st.floats(allow_nan=False, allow_infinity=False)
not_negative = st.floats(0, allow_nan=False, allow_infinity=False)
positive = st.floats(0, exclude_min=True, allow_nan=False, allow_infinity=False)
below_1 = st.floats(0, 1, exclude_max=True)

RATES = ("lr", "weight_decay", "lr_decay", "initial_accumulator_value", "l1", "l2", "l21", "compensation")

WHOLE: Ranges = {
    **dict.fromkeys(RATES, not_negative),
    **dict.fromkeys(("eps", "beta"), positive),
    **dict.fromkeys(("rho", "alpha", "momentum"), below_1),
    **dict.fromkeys(("dampening", "scale"), finite),
    **dict.fromkeys(("nesterov", "amsgrad", "centered", "decoupled_weight_decay", "adaptive"), st.booleans()),
    "momentum_decay": not_negative,
    "betas": st.tuples(below_1, below_1),
    **dict.fromkeys(("clip_value", "clip_norm", "clip_global_norm"), st.none() | positive),
    "trust_coefficient": positive,
}
"""All that a spec takes."""

ORDINARY: Ranges = {
    **WHOLE,
    **dict.fromkeys(RATES, st.floats(0, 1)),
    **dict.fromkeys(("eps", "beta"), st.floats(1e-3, 1)),
    **dict.fromkeys(("rho", "alpha", "momentum"), st.floats(0.1, 0.999)),
    **dict.fromkeys(("dampening", "scale"), st.floats(-1, 1)),
    "momentum_decay": st.floats(0, 10),
    "betas": st.tuples(st.floats(0.1, 0.999), st.floats(0.1, 0.999)),
    **dict.fromkeys(("clip_value", "clip_norm", "clip_global_norm"), st.none() | st.floats(1e-3, 10)),
    "trust_coefficient": st.floats(1e-3, 1),
}
"""Where float64 leaves many digits after a few steps."""


def specs(ranges: Ranges, rules: Iterable[type[RuleSpec]] = RULES.values()) -> st.SearchStrategy[RuleSpec]:
    """Specs of `rules` with values from `ranges`."""
    return st.one_of([_of(cls, ranges) for cls in rules])


def _of(cls: Any, ranges: Ranges) -> st.SearchStrategy[RuleSpec]:
    given = st.fixed_dictionaries({field.name: ranges[field.name] for field in dataclasses.fields(cls)})
    return given.map(lambda values: cls(**_consistent(cls, values)))


def _consistent(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    if values.get("clip_norm") is not None:
        values["clip_global_norm"] = None
    if cls is SGD and values["nesterov"]:
        return values | {"dampening": 0.0, "momentum": values["momentum"] or 0.5}
    return values
