"""Scaled dot product attention, one query at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.graph.op_case import OpCase, Values, drawn


def attend(q: Values, k: Values, v: Values, *mask: Values, causal: bool = False, **given: Any) -> Values:
    scale = given.get("scale") or 1 / np.sqrt(q.shape[-1])
    out = np.zeros((*q.shape[:-1], v.shape[-1]))
    seen = np.broadcast_to(mask[0], (*q.shape[:-1], k.shape[-2])) if mask else np.ones((*q.shape[:-1], k.shape[-2]))
    for place in np.ndindex(*q.shape[:-1]):
        *batch, step = place
        weights = [
            np.exp(scale * q[place] @ key) if seen[(*place, at)] and not (causal and at > step) else 0.0
            for at, key in enumerate(k[tuple(batch)])
        ]
        if any(weights):
            out[place] = np.array(weights) @ v[tuple(batch)] / sum(weights)
    return out


Q, K, V = drawn(2, 3, 4), drawn(2, 5, 4, seed=1), drawn(2, 5, 2, seed=2)
MASK = np.array([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]])
HEADS = (drawn(2, 2, 3, 2), drawn(2, 2, 3, 2, seed=1), drawn(2, 2, 3, 2, seed=2))

CASES = [
    OpCase("attention", (Q, K, V), attend, by=(0, 1, 2)),
    OpCase("attention", (Q, K, V, MASK), attend, {"use_mask": True, "scale": 2.0}, by=(0, 1, 2)),
    OpCase("attention", HEADS, attend, {"causal": True}, by=(0, 1, 2)),
]
