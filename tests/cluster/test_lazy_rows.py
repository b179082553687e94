"""Lazy rows on real servers: what is pushed is updated and nothing else, the same on 1, 2 and 5 of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD, Adam
from windlass_proto import limits
from windlass_proto.errors import UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]

ROWS, WIDTH = 1_100, 613  # over five blocks and more, whose borders cut rows
assert ROWS * WIDTH > 5 * limits.BLOCK_ELEMENTS_MIN
assert limits.BLOCK_ELEMENTS_MIN % WIDTH
FIRST = {
    "emb": np.random.default_rng(9).normal(size=(ROWS, WIDTH)).astype(np.float32),
    "b": np.ones(17, np.float32),
}
LR, DECAY, STEPS = 0.02, 0.1, 3
BIT_LEVEL: dict[str, list[bytes]] = {}
"""What the first size of cluster made, by mode."""


@pytest.fixture(scope="module", params=[1, 2, 5])
def sized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster.start(servers=request.param, run_dir=tmp_path_factory.mktemp("lazy")) as cluster:
        yield cluster


def pushed(step: int, rank: int) -> wl.Rows:
    """Rows of a step: even ones of worker 0, odd ones of worker 1, each named twice, and 7 of both."""
    random = np.random.default_rng(10 * step + rank)
    ids = np.concatenate([2 * random.permutation(ROWS // 2)[:30] + rank, [7]])
    ids = np.concatenate([ids, ids])
    return wl.Rows(ids, random.normal(size=(ids.size, WIDTH)).astype(np.float32))


def lazy_adam(pushes: list[list[tuple[wl.Rows, float]]]) -> tuple[np.ndarray, set[int]]:
    """Adam in float64 on the rows of each update, whose pushes have weights; and the rows that were ever named.

    Moments of rows that no push of an update names stay; bias is corrected by the number of the update.
    """
    w = FIRST["emb"].astype(np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    named: set[int] = set()
    for t, update in enumerate(pushes, start=1):
        total, g = sum(weight for _, weight in update), np.zeros_like(w)
        for rows, weight in update:
            np.add.at(g, rows.ids, rows.values.astype(np.float64) * weight / total)
        at = sorted({int(row) for rows, _ in update for row in rows.ids})
        named |= set(at)
        d = g[at] + DECAY * w[at]
        m[at] = 0.9 * m[at] + 0.1 * d
        v[at] = 0.999 * v[at] + 0.001 * d * d
        w[at] -= LR / (1 - 0.9**t) * m[at] / (np.sqrt(v[at]) / math.sqrt(1 - 0.999**t) + 1e-8)
    return w, named


@pytest.mark.parametrize("mode", ["bsp", "asp"])
def test_only_rows_that_are_pushed_are_updated_on_any_number_of_servers(
    sized: LocalCluster, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(sized.token_file))
    monkeypatch.chdir(tmp_path)
    workers = 2 if mode == "bsp" else 1
    with Team(sized, f"lazy {mode}", workers=workers) as team:
        stores = team.stores(FIRST, Adam(lr=LR, weight_decay=DECAY), mode, lazy=True)

        def train(_: object, rank: int) -> bytes:
            for step in range(STEPS):
                rows = pushed(step, rank)
                found = stores[rank].update({"emb": rows}, weight=1.0 + rank)["emb"]
                assert np.array_equal(found[:31], found[31:])
            whole: np.ndarray = stores[rank].pull().result()["emb"]
            return whole.tobytes()

        found = team.each(train)
    assert found == BIT_LEVEL.setdefault(mode, found)
    weights = np.frombuffer(found[0], np.float32).reshape(ROWS, WIDTH)
    updates = [[(pushed(step, rank), 1.0 + rank) for rank in range(workers)] for step in range(STEPS)]
    due, named = lazy_adam(updates)
    others = sorted({*range(ROWS)} - named)
    assert weights[others].tobytes() == FIRST["emb"][others].tobytes()
    np.testing.assert_allclose(weights, due, rtol=2e-4, atol=2e-5)


def test_who_pushes_the_whole_tensor_names_every_row(team: MakeTeam) -> None:
    group = team()
    lazy = group.stores(FIRST, Adam(lr=LR, weight_decay=DECAY), name="lazy", lazy=True)
    plain = group.stores(FIRST, Adam(lr=LR, weight_decay=DECAY), name="plain")
    whole = np.random.default_rng(3).normal(size=(ROWS, WIDTH)).astype(np.float32)

    def step(_: object, rank: int) -> list[bytes]:
        given = {"emb": whole if rank else pushed(0, rank)}
        for store in (lazy[rank], plain[rank]):
            store.push(given)
        return [store.pull().result()["emb"].tobytes() for store in (lazy[rank], plain[rank])]

    for one, other in group.each(step):
        assert one == other


def test_a_push_without_rows_is_an_update_that_changes_nothing(team: MakeTeam) -> None:
    (store,) = team(1).stores(FIRST, Adam(lr=LR, weight_decay=DECAY), "asp", lazy=True)
    store.update({"emb": wl.Rows([], np.zeros((0, WIDTH), np.float32))})
    assert np.array_equal(store.pull().result()["emb"], FIRST["emb"])
    rows = pushed(0, 0)
    store.update({"emb": rows})
    due, _ = lazy_adam([[(wl.Rows([], np.zeros((0, WIDTH), np.float32)), 1.0)], [(rows, 1.0)]])
    np.testing.assert_allclose(store.pull().result()["emb"], due, rtol=2e-4, atol=2e-5)


def test_a_lazy_store_goes_on_from_a_checkpoint_bit_for_bit(team: MakeTeam, tmp_path: Path) -> None:
    (store,) = team(1).stores(FIRST, Adam(lr=LR, weight_decay=DECAY), lazy=True)

    def train(steps: range) -> bytes:
        for step in steps:
            store.update({"emb": pushed(step, 0)})
        whole: np.ndarray = store.pull().result()["emb"]
        return whole.tobytes()

    train(range(2))
    store.checkpoint(tmp_path).result()
    through = train(range(2, 4))
    store.restore(tmp_path)
    assert train(range(2, 4)) == through


def test_what_cannot_be_lazy_is_refused_in_words(team: MakeTeam) -> None:
    store = team(1)[0].store("model")
    with pytest.raises(UsageError, match="norm of a whole tensor"):
        store.init(FIRST, SGD(lr=1.0, clip_norm=1.0), lazy=True)
    with pytest.raises(UsageError, match="half tensors travel whole"):
        store.init({"h": np.ones((3, 2), np.float16)}, SGD(lr=1.0), lazy=True)


def test_a_lazy_tensor_says_so(team: MakeTeam) -> None:
    (store,) = team(1).stores(FIRST, SGD(lr=1.0), lazy=True)
    assert store.specs()["emb"]["lazy"] is True
