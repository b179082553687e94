"""Batches, barriers, broadcasts, observers: what workers of a job share besides tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.local_cluster import LocalCluster
from windlass_proto.errors import UnavailableError, UsageError

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]


def ones(value: float = 1.0) -> np.ndarray:
    return np.full(4, value, np.float32)


@pytest.mark.parametrize(("workers", "rows", "size"), [(1, 10, 3), (3, 100, 7), (2, 5, 8)])
def test_every_row_comes_once_an_epoch(team: MakeTeam, workers: int, rows: int, size: int) -> None:
    some = team(workers)
    taken = some.each(lambda worker, _: [list(batch) for batch in worker.batches(rows, size=size, epochs=2)])
    batches = [batch for batches in taken for batch in batches]
    assert Counter(row for batch in batches for row in batch) == dict.fromkeys(range(rows), 2)
    assert max(map(len, batches)) <= size


def test_the_order_is_the_seeds(team: MakeTeam) -> None:
    alone = team(1)[0]

    def rows(**options: Any) -> list[int]:
        return [int(row) for batch in alone.batches(50, size=8, **options) for row in batch]

    assert rows(seed=3) == rows(seed=3)
    assert rows(seed=3) != rows(seed=4)
    assert rows(shuffle=False) == list(range(50))
    assert len(rows(drop_last=True)) == 48
    epochs = rows(seed=3, epochs=2)
    assert epochs[:50] != epochs[50:]


def test_arrays_are_cut_alike_and_a_pass_may_be_repeated(team: MakeTeam) -> None:
    x, y = np.arange(20.0).reshape(10, 2), np.arange(10)
    loader = team(1)[0].batches(x, y, size=4, seed=1)
    passes = [list(loader), list(loader)]
    for batches in passes:
        assert sum(len(part) for part, _ in batches) == 10
        assert all((part[:, 0] == 2 * labels).all() for part, labels in batches)
    assert np.array_equal(passes[0][0][1], passes[1][0][1])


def test_what_a_dead_worker_had_not_finished_is_handed_to_the_others(team: MakeTeam) -> None:
    trio = team(2)
    loaders = [iter(worker.batches(64, size=4, seed=1)) for worker in trio.workers]
    trio[1].store("asp", consistency="asp")
    lost = next(loaders[1])
    first = next(loaders[0])
    trio[1].close()
    rest = [row for batch in loaders[0] for row in batch]
    seen = Counter([*first, *rest])
    assert set(seen) >= set(range(64)) - set(lost)
    assert set(lost) <= set(seen), "its unfinished batch came again"
    assert max(seen.values()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "without data"),
        ((10, 20), "one length"),
        ((np.zeros(3), np.zeros(4)), "different lengths"),
        ((0,), "no rows"),
    ],
    ids=["none", "two", "unequal", "no rows"],
)
def test_wrong_data_raises_in_the_call(team: MakeTeam, arguments: tuple[Any, ...], said: str) -> None:
    alone = team(1)[0]
    with pytest.raises(UsageError, match=said):
        alone.batches(*arguments, size=4)
    with pytest.raises(UsageError, match="impossible size"):
        alone.batches(10, size=0)


def test_a_barrier_holds_until_everybody_came(team: MakeTeam) -> None:
    pair = team()
    first = pair.begin(lambda: pair[0].barrier("epoch"))
    with pytest.raises(TimeoutError):
        first.result(0.3)
    pair[1].barrier("epoch")
    first.result(20.0)
    for _ in range(5):
        pair.each(lambda worker, _: worker.barrier("epoch"))


def test_a_broadcast_gives_all_the_roots_value(team: MakeTeam) -> None:
    trio = team(3)
    assert (
        trio.each(lambda worker, rank: worker.broadcast({"from": rank, "list": [1, None, "x"]}, root=1))
        == [{"from": 1, "list": [1, None, "x"]}] * 3
    )
    assert trio.each(lambda worker, rank: worker.broadcast(rank)) == [0] * 3


@pytest.mark.parametrize("value", [object(), np.zeros(3), {1, 2}, b"bytes"], ids=lambda value: type(value).__name__)
def test_a_broadcast_takes_json_only(team: MakeTeam, value: object) -> None:
    alone = team(1)[0]
    with pytest.raises(UsageError, match="not JSON"):
        alone.broadcast(value)
    assert alone.broadcast("next") == "next"


def test_an_observer_reads_and_joins_no_step(team: MakeTeam, local: LocalCluster, job: str) -> None:
    pair = team()
    stores = pair.stores({"w": ones(0), "b": ones(5)}, consistency="ssp:2")
    with wl.connect(local.address, job=job, observe=True) as watching:
        seen = watching.store("model")
        assert seen.consistency == "ssp:2"
        assert not watching.is_main
        assert seen.pull().result()["b"][0] == 5.0
        pair.each(lambda _, rank: [stores[rank].update({"w": ones()}) for _ in range(5)])
        assert seen.pull(["w"]).result()["w"][0] == -10.0
        for call in (
            lambda: seen.push({"w": ones()}),
            lambda: seen.update({"w": ones()}),
            lambda: seen.assign({"w": ones()}),
            lambda: seen.delete("w"),
            lambda: seen.init({"w": ones()}, wl.optim.SGD(lr=1.0)),
        ):
            with pytest.raises(UsageError, match="observer"):
                call()
        with pytest.raises(UnavailableError, match="no worker has opened"):
            watching.store("other")
