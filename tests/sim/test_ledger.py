"""The whole cluster balances its books over modes, faults, deaths and newcomers; a seed always plays the same run."""

from __future__ import annotations

import pytest

from tests.sim.cluster import Cluster, plan_of, play

SEEDS = 300
CHUNK = 25

pytestmark = pytest.mark.sim


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_every_promise_holds_through_faults_and_everything_finishes_after_them(first: int) -> None:
    for seed in range(first, first + CHUNK):
        play(seed)


def test_a_seed_plays_the_same_run_twice() -> None:
    first, second = play(11), play(11)
    assert first.weights() == second.weights()
    assert (first.timeline.events, first.timeline.now_s) == (second.timeline.events, second.timeline.now_s)


def test_the_seeds_meet_what_they_are_for() -> None:
    """The faults, and what they call forth in the cores, happen often enough for the chunks above to mean something."""
    met = {
        "duplicates": 0,
        "deaths": 0,
        "late joins": 0,
        "sent away": 0,
        "pauses beyond the lease": 0,
        "exact": 0,
        "versions": 0,
        "unknown stamps": 0,
        "totals": 0,
        "partials said again": 0,
        "late": 0,
        "modes": 0,
        "modes with a version": 0,
    }
    for seed in range(0, SEEDS, 5):
        plan = plan_of(seed)
        cluster = Cluster(plan)
        cluster.run()
        met["duplicates"] += sum(
            core.tallies.duplicates for server in cluster.servers for core in server.cores.values()
        )
        met["versions"] += len(cluster.job.versions)
        met["totals"] += cluster.norms.totals
        met["partials said again"] += cluster.norms.said_again
        met["unknown stamps"] += sum(server.unknown_stamps for server in cluster.servers)
        met["modes"] += len(cluster.job.ledger.modes.changes)
        met["modes with a version"] += sum(change.stamp is not None for change in cluster.job.ledger.modes.changes)
        met["late"] += sum(book.late for book in cluster.job.ledger.books)
        met["deaths"] += len(plan.deaths)
        met["late joins"] += sum(book.join_clock > 0 for book in cluster.job.ledger.books)
        met["sent away"] += plan.faults.refuse > 0
        met["pauses beyond the lease"] += sum(length_s >= 1.0 for _, _, length_s in plan.pauses)
        met["exact"] += plan.exact
    assert min(met.values()) >= 5, met
