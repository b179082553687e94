"""Norms of whole tensors on real servers: the same numbers on 1, 2 and 5 of them, whoever brings what when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from tests.cluster.team import Team
from tests.rules.whole_step import Wide, clipped_by_norm
from windlass.cluster import Cluster
from windlass.local_cluster import LocalCluster
from windlass.store import Store
from windlass_proto import limits
from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import LAMB, LARS, SGD, Adam, RuleSpec
from windlass_rules.registry import RULE_MODULES

pytestmark = pytest.mark.cluster

# One tensor over five blocks, so over five servers, and two that share a block with its end.
SHAPES = {"wide": (4 * limits.BLOCK_ELEMENTS_MIN + 500,), "b": (33,), "tail": (limits.BLOCK_ELEMENTS_MIN // 2,)}
SPECS: list[RuleSpec] = [
    LAMB(lr=0.02, weight_decay=0.1, clip_global_norm=5.0),
    LARS(lr=2.0, weight_decay=0.1, clip_norm=2.0),
    Adam(lr=0.01, clip_norm=1.0),
    SGD(lr=0.1, momentum=0.9, clip_global_norm=1.0),
]
WORKERS = 4
STEPS = 3


def values(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module", params=[1, 2, 5])
def sized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster.start(servers=request.param, run_dir=tmp_path_factory.mktemp("norms")) as cluster:
        yield cluster


FOUND: dict[str, list[bytes]] = {}
"""What the first size of cluster made of each rule."""


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_tensors_cut_over_any_number_of_servers_get_the_same_bits(
    sized: LocalCluster, spec: RuleSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(sized.token_file))
    monkeypatch.chdir(tmp_path)
    with Team(sized, f"norms {spec}", workers=WORKERS) as team:
        stores = team.stores(values(0), spec)
        found = train(team, stores)
    assert len({tuple(each) for each in found}) == 1, "workers read different weights"
    assert found[0] == FOUND.setdefault(str(spec), found[0])
    for name, raw, due in zip(SHAPES, found[0], expected(spec), strict=True):
        np.testing.assert_allclose(np.frombuffer(raw, np.float32), due, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("spec", [LAMB(lr=0.02, weight_decay=0.1), LARS(lr=2.0, weight_decay=0.1)], ids=str)
def test_rules_that_take_norms_of_weights_apply_pushes_on_arrival_where_no_tensor_is_cut(
    sized: LocalCluster, spec: RuleSpec, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(sized.token_file))
    monkeypatch.chdir(tmp_path)
    with Team(sized, f"whole {spec}", workers=1) as team:
        (store,) = team.stores(values(0), spec, "asp", layout="whole")
        layouts = [table.layout for table in store.exchange.tables.values()]
        assert all(len(places) == 1 for layout in layouts for places in layout.segments_of)
        homes = set(store.exchange.servers())
        assert len(homes) == min(2, team[0].num_servers), "the small ones share a block"
        assert store.specs()["wide"]["layout"] == "whole"
        for step in range(STEPS):
            found = store.update(values(100 * step + 1))
    raw = [found[name].tobytes() for name in SHAPES]
    assert raw == FOUND.setdefault(f"whole {spec}", raw)
    weights = {name: array.astype(np.float64) for name, array in values(0).items()}
    slots = {name: tuple(np.zeros(shape) for _ in range(3)) for name, shape in SHAPES.items()}
    for name in SHAPES:
        module = RULE_MODULES[type(spec)]
        kept = slots[name][: len(module.variant(spec).slots)]
        for step in range(STEPS):
            g = values(100 * step + 1)[name].astype(np.float64)
            weights[name], kept = module.oracle(spec, weights[name], kept, g, step + 1)
        np.testing.assert_allclose(found[name], weights[name], rtol=2e-4, atol=2e-5, err_msg=name)


def train(team: Team, stores: list[Store]) -> list[list[bytes]]:
    """Each worker pushes what its rank says; nobody pushes "b" in the second step, and "tail" comes from rank 0."""

    def act(_: Cluster, rank: int) -> list[bytes]:
        store, params = stores[rank], {}
        for step in range(STEPS):
            grads = values(100 * step + rank + 1)
            pushed = [n for n in SHAPES if (n != "b" or step != 1) and (n != "tail" or rank == 0)]
            params = store.update({name: grads[name] for name in pushed}, weight=rank + 1)
            params = store.pull().result()
        return [params[name].tobytes() for name in SHAPES]

    return team.each(act)


def expected(spec: RuleSpec) -> list[Wide]:
    """The same in float64 by the oracles."""
    weights = {name: array.astype(np.float64) for name, array in values(0).items()}
    slots = {name: tuple(np.zeros(shape) for _ in range(3)) for name, shape in SHAPES.items()}
    kept = {name: slots[name][: len(RULE_MODULES[type(spec)].variant(spec).slots)] for name in SHAPES}
    updates = dict.fromkeys(SHAPES, 0)
    for step in range(STEPS):
        means = {}
        for name in SHAPES:
            ranks = [0] if name == "tail" else range(WORKERS)
            if name != "b" or step != 1:
                pushed = [(rank + 1, values(100 * step + rank + 1)[name].astype(np.float64)) for rank in ranks]
                means[name] = sum(w * g for w, g in pushed) / sum(w for w, _ in pushed)
        for name, g in zip(means, clipped_by_norm(spec, list(means.values())), strict=True):
            updates[name] += 1
            weights[name], kept[name] = RULE_MODULES[type(spec)].oracle(
                spec, weights[name], kept[name], g, updates[name]
            )
    return [weights[name].reshape(-1) for name in SHAPES]


def test_norms_of_weights_that_no_step_could_be_taken_for_are_refused_in_words(team: Callable[..., Team]) -> None:
    (alone,) = team(workers=1).workers
    free = alone.store("free", consistency="asp")
    with pytest.raises(UsageError, match=r'applies a push on arrival.*tensors=wide.*layout="whole"'):
        free.init({"wide": np.zeros(SHAPES["wide"], np.float32)}, LAMB())
    with pytest.raises(UsageError, match=r"too large for layout=.whole. \(tensor=huge"):
        free.init({"huge": np.zeros(limits.WHOLE_TENSOR_BYTES_MAX // 4 + 1, np.float32)}, LAMB(), layout="whole")
    with pytest.raises(UsageError, match="Did you mean whole"):
        free.init({"w": np.zeros(3, np.float32)}, LAMB(), layout="hole")
    small = alone.store("small", consistency="asp")
    small.init({"w": np.zeros(2, np.float32)}, SGD(lr=1.0, clip_norm=5.0))
    assert small.update({"w": np.array([30, 40], np.float32)})["w"].tolist() == [-3.0, -4.0]
    with pytest.raises(UsageError, match="stays under bsp, or apart from it"):
        small.set(consistency="bsp")
    moved = alone.store("moved", consistency="asp")
    moved.init({"w": np.zeros(2, np.float32)}, SGD(lr=1.0))
    moved.set(consistency="bsp")
    with pytest.raises(UsageError, match="stays under bsp, or apart from it"):
        moved.init({"v": np.zeros(2, np.float32)}, SGD(lr=1.0, clip_norm=5.0))
    with pytest.raises(UsageError, match="no push to a sparse table has"):
        small.table("rows", 4, LAMB())


BLOCK = limits.BLOCK_ELEMENTS_MIN


@pytest.mark.parametrize("gone", ["first", "second"])
def test_norms_go_on_where_a_server_holds_nothing_of_the_group_any_more(
    sized: LocalCluster, gone: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tensor is a block. The first block's server adds up for all, also once its tensor is deleted."""
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(sized.token_file))
    monkeypatch.chdir(tmp_path)
    kept = {"first": "second", "second": "first"}[gone]
    rule = SGD(lr=1.0, clip_global_norm=1.0)
    with Team(sized, f"deleted {gone}", workers=2) as team:
        stores = team.stores(
            {name: np.zeros(BLOCK, np.float32) for name in (gone, kept)[:: 1 if gone < kept else -1]}, rule
        )
        ones = np.ones(BLOCK, np.float32)
        team.each(lambda _, rank: stores[rank].update({gone: ones, kept: ones}))
        team.each(lambda _, rank: stores[rank].delete(gone))
        found = team.each(lambda _, rank: stores[rank].update({kept: ones})[kept])
        again = team.each(lambda _, rank: stores[rank].init({gone: ones}, rule)[gone])
        after = team.each(lambda _, rank: stores[rank].update({kept: ones, gone: ones})[kept])
    alone, both = 1 / np.sqrt(BLOCK), 1 / np.sqrt(2 * BLOCK)
    for each, new, last in zip(found, again, after, strict=True):
        np.testing.assert_allclose(each, -both - alone, rtol=1e-6)
        assert (new == 1).all()
        np.testing.assert_allclose(last, -both - 2 * alone, rtol=1e-6)


def test_a_worker_that_joins_after_a_server_s_tensors_were_deleted_declares_the_rest(
    sized: LocalCluster, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(sized.token_file))
    monkeypatch.chdir(tmp_path)
    rule = SGD(lr=1.0)
    ones = np.ones(BLOCK, np.float32)
    with Team(sized, "joins late", workers=1) as team:
        (store,) = team.stores({"gone": ones, "kept": ones}, rule, "asp")
        store.delete("gone")
        late = team.join().store("model", "asp")
        found = late.init({"kept": ones}, rule)
        assert (found["kept"] == 1).all()
