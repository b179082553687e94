"""A DataLoader over a cluster: shares of one epoch, and what is made ahead of the loop is not done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from windlass.cluster import Cluster
from windlass_proto.errors import UsageError

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("tracker_of_multiprocessing")]
MakeTeam = Callable[..., Team]


def loader(cluster: Cluster | None, rows: int, size: int, **options: Any) -> Any:
    return wl.data.DataLoader(wl.data.ArrayDataset(np.arange(rows)), size, cluster=cluster, **options)


def test_workers_share_the_order_that_one_alone_would_have(team: MakeTeam) -> None:
    pair = team(2)
    alone = loader(None, 64, 8, shuffle=True, seed=3)
    loaders = pair.each(lambda worker, _: loader(worker, 64, 4, shuffle=True, seed=3))
    for _ in range(2):
        shares = pair.each(lambda _, rank: [batch.tolist() for batch in loaders[rank]])
        assert [sorted(a + b) for a, b in zip(*shares, strict=True)] == [sorted(batch) for batch in alone]
    assert loaders[0].epoch == 2
    assert len(loaders[0]) == 8


@pytest.mark.parametrize("workers", [0, 1])
def test_prefetching_gives_the_batches_of_a_plain_loop(team: MakeTeam, workers: int) -> None:
    alone = team(1)[0]
    plain = list(alone.batches(50, size=3, shuffle=False))
    made = list(loader(alone, 50, 3, num_workers=workers, prefetch=20))
    assert [batch.tolist() for batch in made] == [batch.tolist() for batch in plain]


@pytest.mark.parametrize(("used", "done"), [(14, 0), (22, 16)])
def test_what_a_dead_worker_prefetched_and_did_not_use_goes_to_the_others(team: MakeTeam, used: int, done: int) -> None:
    # 40 batches of one row each, in shards of 16, 16 and 8: all three are asked for before 20 are used
    pair = team(2)
    loaders = pair.each(lambda worker, _: loader(worker, 80, 1, num_workers=1, prefetch=20))
    pair[1].store("asp", consistency="asp")
    lost = iter(loaders[1])
    rows = [int(next(lost)[0]) for _ in range(used)]
    first = iter(loaders[0])
    seen = [int(next(first)[0])]
    pair[1].close()
    seen += [int(batch[0]) for batch in first]
    lost.close()
    assert max(Counter(seen).values()) == 1
    assert set(seen) == set(range(80)) - set(rows[:done]), "a shard is done once all of it is used"


def test_a_checkpoints_position_is_that_of_the_batch_in_the_loop(team: MakeTeam) -> None:
    alone = team(1)[0]
    plain, ahead = (
        alone.batches(50, size=2, seed=1, shuffle=False),
        loader(alone, 50, 2, seed=1, num_workers=1, prefetch=20),
    )

    def positions(batches: Any, name: str) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for _ in batches:
            position, epoch = alone._member.positions[name]
            found.append((*position.order, position.row, epoch))
        return found

    expected = positions(plain, plain.name)
    assert positions(ahead, ahead._shared.name) == expected
    assert len(set(expected)) == 25


def test_a_cluster_deals_its_own_batches_and_rolls_nothing_over(team: MakeTeam) -> None:
    alone = team(1)[0]
    assert sum(len(batch) for batch in loader(alone, 50, 8, last_batch="discard")) == 48
    with pytest.raises(UsageError, match="rolls no rows over"):
        loader(alone, 50, 8, last_batch="rollover")
    with pytest.raises(UsageError, match="also_given=cluster"):
        wl.data.DataLoader(np.arange(4), batch_sampler=[[1]], cluster=alone)
