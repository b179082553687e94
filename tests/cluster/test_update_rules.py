"""Every update rule on real servers: cut over two of them, with the bits of one kernel over the whole tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass_rules
from tests.cluster.team import Team
from windlass.cluster import Cluster
from windlass.store import Store
from windlass_proto import limits
from windlass_proto.errors import UsageError
from windlass_proto.memory import aligned_zeros
from windlass_proto.rule_specs import DCASGD, ROW_RULES, RULES, TRUST_RULES, RMSprop, RuleSpec, from_name

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]

ELEMENTS = 2 * limits.BLOCK_ELEMENTS_MIN + 37  # two blocks or more
SPECS: list[RuleSpec] = [
    *(
        from_name(name, {"clip_value": 0.5} | ({"lr": 0.1} if name == "sgd" else {}))
        for name, cls in RULES.items()
        if cls not in (*ROW_RULES, *TRUST_RULES, DCASGD)
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


@pytest.mark.parametrize("mode", ["asp", "ssp:4"])
@pytest.mark.parametrize("adaptive", [False, True])
def test_a_late_gradient_is_compensated_from_what_its_worker_last_saw(
    team: MakeTeam, mode: str, adaptive: bool
) -> None:
    """Pushes and pulls one after the other, against the paper's equations with a copy a worker."""
    random = np.random.default_rng(7)
    spec = DCASGD(lr=0.1, compensation=0.8, adaptive=adaptive)
    start = random.standard_normal(ELEMENTS).astype(np.float32)
    first, second = team().stores({"w": start}, spec, mode)
    w, square = start.astype(np.float64), np.zeros(ELEMENTS)
    seen = {first: w.copy(), second: w.copy()}  # `init` gave them

    def push(store: Store) -> None:
        nonlocal w, square
        gradient = random.standard_normal(ELEMENTS).astype(np.float32)
        store.push({"w": gradient}).result()
        g = gradient.astype(np.float64)
        square = 0.95 * square + 0.05 * g**2
        factor = 0.8 / np.sqrt(square + 1e-7) if adaptive else 0.8
        w = w - 0.1 * (g + factor * g**2 * (w - seen[store]))

    def pull(store: Store) -> None:
        found = store.pull().result()["w"]
        np.testing.assert_allclose(found, w, rtol=2e-5, atol=2e-5)
        seen[store] = w.copy()

    for act, store in [(push, first), (push, second), (pull, second), (push, first), (push, second), (pull, first)]:
        act(store)
    pull(second)


def test_delay_compensation_is_refused_where_no_gradient_is_late_and_for_tables(team: MakeTeam) -> None:
    (worker,) = team(1).workers
    with pytest.raises(UsageError, match=r"under bsp none does.*rule=dcasgd"):
        worker.store("model", consistency="bsp").init({"w": np.zeros(3, np.float32)}, DCASGD())
    store = worker.store("other", consistency="asp")
    with pytest.raises(UsageError, match=r"copy of the weights for each worker.*rule=dcasgd"):
        store.table("user", 4, DCASGD())
