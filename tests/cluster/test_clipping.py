"""Clipping where pushes are applied on arrival: by the worker's own norms, with the bits that a step of its own has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.local_cluster import LocalCluster
from windlass.store import Store
from windlass_proto import limits
from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import SGD, Adam, RuleSpec

pytestmark = pytest.mark.cluster

# One tensor over three blocks, so over several servers, and two beside its end.
SHAPES = {"wide": (2 * limits.BLOCK_ELEMENTS_MIN // 500 + 30, 500), "b": (33,), "tail": (700,)}
SPECS: list[RuleSpec] = [Adam(lr=0.01, clip_norm=2.0), SGD(lr=0.1, momentum=0.9, clip_global_norm=1.5)]
HOW: dict[str, dict[str, Any]] = {
    "plain": {},
    "encoded": {"codec": wl.codec.Int8()},
    "halves": {"dtype": "bfloat16"},
    "cleaned": {"nonfinite": "zero"},
    "whole": {"layout": "whole"},
}


def values(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module", params=[1, 2, 5])
def sized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster.start(servers=request.param, run_dir=tmp_path_factory.mktemp("clipping")) as cluster:
        yield cluster


FOUND: dict[str, list[bytes]] = {}
"""What the first size of cluster made of each."""


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("spec", SPECS, ids=["each", "all"])
def test_a_lone_worker_s_pushes_on_arrival_are_clipped_to_the_bits_of_its_bsp_steps(
    sized: LocalCluster, spec: RuleSpec, how: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(sized.token_file))
    monkeypatch.chdir(tmp_path)
    with Team(sized, f"{how} {spec}", workers=1) as team:
        found = [trained(team, mode, spec, how) for mode in ("bsp", "asp", "ssp:2")]
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert found[0] == FOUND.setdefault(f"{how} {spec}", found[0]), "another number of servers made other bits"


def trained(team: Team, mode: str, spec: RuleSpec, how: str) -> list[bytes]:
    (store,) = team.stores(values(0), spec, mode, name=mode, **HOW[how])
    for step in range(3):
        grads = sent(values(step + 1), store)
        if how == "cleaned":
            grads["tail"][3] = np.inf
        store.update(grads, weight=2)  # 2 of 2: exactly 1
    if isinstance(spec, Adam):
        store.set("[wt]*", clip_norm=0.5)
    else:
        store.set("[wt]*", clip_global_norm=0.5)
    store.update(sent(values(9), store))
    if how not in ("encoded", "halves"):
        rows = np.array([3, 200, 262, 263, 541])
        store.push_pull({"wide": wl.Rows(rows, values(5)["wide"][rows]), "tail": values(6)["tail"]}).result()
    pulled = store.pull().result()
    return [np.asarray(pulled[name]).tobytes() for name in SHAPES]


def sent(grads: dict[str, Any], store: Store) -> dict[str, Any]:
    """Gradients as the store's dtype wants them: the upper halves of float32."""
    if store.specs()["b"]["dtype"] != "bfloat16":
        return grads
    return {name: (g.view(np.uint32) >> 16).astype(np.uint16) for name, g in grads.items()}


def test_a_gradient_without_a_norm_is_rejected_whole_and_what_is_beside_it_is_applied(
    team: Callable[..., Team],
) -> None:
    (store,) = team(workers=1).stores(values(0), SGD(lr=1.0, clip_norm=2.0), "asp")
    bad = values(1)
    bad["wide"][-1, -1] = np.nan
    with pytest.raises(UsageError, match="wide"):
        store.update(bad)
    found = store.pull().result()
    assert (found["wide"] == values(0)["wide"]).all(), "a block of it was applied"
    assert np.linalg.norm(found["tail"] - values(0)["tail"]) == pytest.approx(2.0, rel=1e-5)


def test_each_worker_is_clipped_by_its_own_gradient(team: Callable[..., Team]) -> None:
    made = team(workers=2)
    stores = made.stores({"w": np.zeros(2)}, SGD(lr=1.0, clip_norm=5.0), "asp")
    made.each(lambda _, rank: stores[rank].update({"w": np.array([[300.0, 400.0], [0.0, -1.0]][rank])}))
    assert stores[0].pull().result()["w"].tolist() == pytest.approx([-3.0, -3.0])
