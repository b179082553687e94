"""What a hybrid block lets one see and choose of its compilation: explanations, recomputation, profiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph import nn
from windlass_graph.array import Array
from windlass_proto.errors import UsageError

X = np.random.default_rng(0).normal(size=(256, 16)).astype(np.float32)


def deep(**hybrid: Any) -> nn.HybridSequential:
    net = nn.HybridSequential(*(nn.Dense(16, activation="tanh") for _ in range(16)))
    net.initialize(seed=1)
    net.hybridize(**hybrid)
    return net


def gradients(net: nn.HybridSequential) -> list[Any]:
    with wl.autograd.record():
        loss: Array = wl.F.square(net(wl.nd.array(X))).mean()
    loss.backward()
    return [np.array(parameter.data().grad) for parameter in net.collect_params().values()]


def test_a_block_explains_what_was_compiled() -> None:
    net = deep()
    with pytest.raises(UsageError, match="nothing of this block has been compiled"):
        net.explain()
    net(wl.nd.array(X))
    [(signature, explanation)] = net.explain().items()
    assert signature == "float32(256, 16): prediction"
    assert explanation.steps["fully_connected"] == 16
    assert "written over an input" in str(explanation)


def test_recomputation_takes_less_memory_for_the_same_gradients() -> None:
    plain, again = deep(), deep(recompute="sqrt")
    for one, other in zip(gradients(plain), gradients(again), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-8)  # fused, tanh is rounded otherwise
    kept, computed = (next(iter(net.explain().values())).arena_bytes for net in (plain, again))
    assert computed < 0.7 * kept


def test_a_profile_sees_the_nodes_of_a_block() -> None:
    net = deep()
    with wl.profiler.profile() as profile:
        gradients(net)
    steps = [row for row in profile.rows() if row.op == "fully_connected"]
    assert len(steps) == 16
    assert any(row.name.startswith("backward_") for row in profile.rows())
