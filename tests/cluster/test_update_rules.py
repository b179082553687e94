"""Every update rule on real servers: cut over two of them, with the bits of one kernel over the whole tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass_rules
from tests.cluster.team import Team
from windlass.cluster import Cluster
from windlass_proto import limits
from windlass_proto.memory import aligned_zeros
from windlass_proto.rule_specs import ROW_RULES, RULES, RMSprop, RuleSpec, from_name

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]

ELEMENTS = 2 * limits.BLOCK_ELEMENTS_MIN + 37  # two blocks or more
SPECS: list[RuleSpec] = [
    *(
        from_name(name, {"clip_value": 0.5} | ({"lr": 0.1} if name == "sgd" else {}))
        for name, cls in RULES.items()
        if cls not in ROW_RULES
    ),
    from_name("adam", {"amsgrad": True}),
    RMSprop(momentum=0.9, centered=True),
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_a_tensor_cut_over_servers_has_the_bits_of_one_kernel(team: MakeTeam, spec: RuleSpec) -> None:
    random = np.random.default_rng(11)
    first = random.standard_normal(ELEMENTS).astype(np.float32)
    gradients = [random.standard_normal(ELEMENTS).astype(np.float32) for _ in range(3)]
    kernels = windlass_rules.build(spec, "float32")
    w = aligned_zeros(ELEMENTS, "float32")
    w[:] = first
    slots = tuple(aligned_zeros(ELEMENTS, "float32") for _ in kernels.slots)
    for array, slot in zip(slots, kernels.slots, strict=True):
        array[:] = slot.fill
    pair = team()
    stores = pair.stores({"w": first}, spec)
    for step, gradient in enumerate(gradients, start=1):

        def update(_: Cluster, rank: int, gradient: Any = gradient) -> Any:
            return stores[rank].update({"w": gradient})["w"].tobytes()

        kernels.update(w, slots, 0, gradient, 1.0, kernels.scalars(spec, step))
        # Both workers push the same: a mean of two halves is exact.
        assert pair.each(update) == [w.tobytes()] * 2
