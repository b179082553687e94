"""Estimators of two workers: figures of all, an end at the same step, fits that are resumed through the store."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from tests.cluster.team import Team
from tests.cluster.workers import Workers
from tests.training.digits_model import DigitsNet, X, Y, normalised
from windlass.cluster import Cluster
from windlass.local_cluster import LocalCluster
from windlass_proto.errors import UsageError
from windlass_worker.totals import Totals

pytestmark = pytest.mark.cluster
MakeTeam = Callable[..., Team]
SPEC: Any = wl.optim.Adam(lr=1e-2)


def loader(cluster: Cluster | None, begin: int = 0, end: int = 320, size: int = 32) -> wl.data.DataLoader:
    rows = wl.data.ArrayDataset(X[begin:end], Y[begin:end])
    return wl.data.DataLoader(rows, size, shuffle=True, seed=5, cluster=cluster)


def cross_entropy(scores: Any, labels: Any) -> Any:
    return wl.nd.softmax_cross_entropy(scores, labels)


def estimator(cluster: Cluster | None, net: Any = None, consistency: str = "bsp", seed: int = 0) -> wl.Estimator:
    store = None if cluster is None else cluster.store("model", consistency=consistency)
    metrics = [wl.metric.Accuracy()]
    return wl.Estimator(net or DigitsNet(seed=seed), cross_entropy, SPEC, metrics, store=store, cluster=cluster)


class Steps(wl.callback.Callback):
    """Keeps the step at which a fit ended, and acts after one step."""

    def __init__(self, at: int = -1, act: Callable[[Any], Any] | None = None) -> None:
        self.at, self.act, self.last, self.why = at, act, 0, ""

    def batch_end(self, event: wl.callback.Event) -> None:
        if event.step == self.at and self.act is not None:
            self.act(event)

    def end(self, event: wl.callback.Event) -> None:
        self.last, self.why = event.step, event.stop


def test_totals_are_the_sums_of_what_every_worker_gave(team: MakeTeam) -> None:
    pair = team(2)
    totals = [Totals(worker) for worker in pair.workers]

    def total(_: Cluster, rank: int) -> list[list[float]]:
        first = totals[rank].of([1.0, 0.1 * (rank + 1)])
        odd = totals[rank].of([math.nan, math.inf, -math.inf, math.inf] if rank else [1.0, 1.0, 1.0, -math.inf])
        return [first.tolist(), odd.tolist(), totals[rank].of([2.0, 0.25]).tolist()]

    one, two = pair.each(total)
    assert np.array_equal(one[1], two[1], equal_nan=True)
    assert (one[0], one[2]) == (two[0], two[2])
    assert one[2] == [4.0, 0.5]
    np.testing.assert_allclose(one[0], [2.0, 0.3], rtol=1e-15)
    assert np.array_equal(one[1], [math.nan, math.inf, -math.inf, math.nan], equal_nan=True)


def test_two_workers_fit_as_one_with_their_batches_together(team: MakeTeam) -> None:
    alone = estimator(None)
    wanted = alone.fit(loader(None, size=64), 4, validation=loader(None, 1000, 1200))
    pair = team(2)

    def fit(cluster: Cluster, rank: int) -> Any:
        made = estimator(cluster, seed=rank)
        train, test = loader(cluster), loader(cluster, 1000, 1200)
        history = made.fit(train, 4, validation=test)
        return history, made.evaluate(test), {name: array.numpy() for name, array in made.net.params.items()}

    (first, judged, values), (second, other, _) = pair.each(fit)
    assert first == second, "figures are those of both, to the last bit"
    assert judged == other
    assert judged["accuracy"] == first[-1]["validation_accuracy"]
    for name in wanted[0]:
        np.testing.assert_allclose([f[name] for f in first], [f[name] for f in wanted], rtol=1e-3, err_msg=name)
    for name, value in values.items():
        np.testing.assert_allclose(value, alone.net.params[name], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("consistency", ["bsp", "asp"])
def test_early_stopping_ends_all_workers_after_the_same_epoch(team: MakeTeam, consistency: str) -> None:
    pair = team(2)

    def fit(cluster: Cluster, rank: int) -> Any:
        stopping = wl.callback.EarlyStopping("loss", patience=2, min_delta=0.3)
        steps = Steps()
        made = estimator(cluster, consistency=consistency)
        history = made.fit(loader(cluster), 30, callbacks=[stopping, steps])
        return history, stopping.best_epoch, steps.last if consistency == "bsp" else 0

    first, second = pair.each(fit)
    assert first == second
    assert 3 <= len(first[0]) < 30
    assert first[1] == len(first[0]) - 3


def test_one_worker_asks_for_an_end_and_all_end_after_that_epoch(team: MakeTeam) -> None:
    pair = team(2)

    def fit(cluster: Cluster, rank: int) -> tuple[int, str]:
        asks = Steps(7, lambda event: event.request_stop("enough")) if rank else Steps()
        estimator(cluster).fit(loader(cluster), 9, callbacks=[asks])
        return asks.last, asks.why

    assert pair.each(fit) == [(10, "another worker asked for it"), (10, "enough")], "five batches an epoch"


def test_a_worker_that_dies_is_not_waited_for(team: MakeTeam) -> None:
    pair = team(2)

    def fit(cluster: Cluster, rank: int) -> int:
        dies = Steps(7, lambda _: cluster.close()) if rank else Steps()
        return len(estimator(cluster).fit(loader(cluster), 4, callbacks=[dies]))

    alive, dead = pair.errors(fit)
    assert alive is None
    assert dead is not None


def test_an_interrupt_leaves_the_trainer_of_a_store_usable(team: MakeTeam) -> None:
    cluster = team(1)[0]
    rows = [(X[i : i + 32], Y[i : i + 32]) for i in range(0, 256, 32)]
    whole = estimator(None)
    whole.fit(rows, 1)
    made = estimator(cluster)
    calls = iter(range(100))

    def interrupted(scores: Any, labels: Any) -> Any:
        if next(calls) == 3:
            raise KeyboardInterrupt
        return cross_entropy(scores, labels)

    made.loss = interrupted
    with pytest.raises(KeyboardInterrupt):
        made.fit(rows, 1)
    made.fit(rows[3:], 1)
    for name, array in whole.net.params.items():
        np.testing.assert_array_equal(array, made.net.params[name])


def test_shares_of_different_lengths_are_refused_on_every_worker(team: MakeTeam) -> None:
    pair = team(2)

    def fit(cluster: Cluster, rank: int) -> None:
        estimator(cluster).fit([(X[:8], Y[:8])] * (3 + rank), 1)

    for rank, error in enumerate(pair.errors(fit)):
        assert isinstance(error, UsageError)
        assert f"batches_here={3 + rank}" in str(error)
    assert [len(made) for made in pair.each(lambda cluster, rank: fitted_by_count(cluster, 3 + rank))] == [2, 2]


def fitted_by_count(cluster: Cluster, batches: int) -> list[dict[str, float]]:
    return estimator(cluster).fit([(X[:8], Y[:8])] * batches, 2, batches_per_epoch=4)


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("stops", [1, 2])
def test_a_fit_is_resumed_through_the_store_bit_for_bit(
    stops: int, local: LocalCluster, job: str, tmp_path: Path
) -> None:
    def fit(folder: str, epochs: int) -> Callable[[Cluster, int], Any]:
        def act(cluster: Cluster, rank: int) -> Any:
            saving = wl.callback.Checkpoint(tmp_path / folder, keep=1)
            stopping = wl.callback.EarlyStopping("loss", patience=50)
            made = estimator(cluster, seed=rank)
            history = made.fit(loader(cluster), epochs, callbacks=[stopping, saving], resume=tmp_path / folder)
            return history, stopping.best, [array.numpy() for _, array in sorted(made.net.params.items())]

        return act

    with Team(local, f"{job}-whole") as pair:
        wanted = pair.each(fit("whole", 4))
    with Team(local, f"{job}-stopped") as pair:
        pair.each(fit("parted", stops))
    with Team(local, f"{job}-resumed") as pair:
        found = pair.each(fit("parted", 4))
    for (history, best, values), (other, other_best, other_values) in zip(found, wanted, strict=True):
        assert (history, best) == (other, other_best)
        for value, expected in zip(values, other_values, strict=True):
            np.testing.assert_array_equal(value, expected)


@pytest.mark.usefixtures("token")
def test_moving_averages_are_resumed_beside_the_store(local: LocalCluster, job: str, tmp_path: Path) -> None:
    found = []
    for folder, stops in (("whole", []), ("parted", [2])):
        for epochs in (*stops, 4):
            net = normalised(seed=epochs if folder == "parted" and epochs == 4 else 0)
            with Team(local, f"{job}-{folder}-{epochs}", workers=1) as alone:
                saving = wl.callback.Checkpoint(tmp_path / folder)
                rows = loader(None)
                made = estimator(alone[0], net)
                made.fit(rows, epochs, callbacks=[saving], resume=tmp_path / folder)
        found.append({name: np.array(each.data()) for name, each in net.collect_params().items()})
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value, err_msg=name)


def test_a_net_whose_shapes_are_not_known_begins_with_the_values_of_rank_0(team: MakeTeam) -> None:
    pair = team(2)

    def fit(cluster: Cluster, rank: int) -> list[Any]:
        net = wl.nn.HybridSequential(wl.nn.Dense(32, activation="relu"), wl.nn.Dropout(0.1), wl.nn.Dense(10))
        net.initialize(seed=rank, device=["cpu:0", "cpu:1"])
        net.hybridize()
        made = estimator(cluster, net)
        assert made.fit(loader(cluster), 5)[-1]["accuracy"] > 0.8
        return [np.asarray(each.data("cpu:1")) for each in net.collect_params("*weight").values()]

    for one, two in zip(*pair.each(fit), strict=True):
        np.testing.assert_array_equal(one, two)


SCRIPT = """
import windlass as wl
from windlass.datasets import load_digits

x, y = load_digits()
net = wl.nn.HybridSequential(wl.nn.Dense(32, activation="relu"), wl.nn.Dense(10))
net.initialize()
with wl.connect() as cluster:
    made = wl.Estimator(net, wl.loss.SoftmaxCrossEntropy(), wl.optim.Adam(lr=1e-2), [wl.metric.Accuracy()],
                        store=cluster.store("digits"), cluster=cluster)
    train = wl.data.DataLoader(wl.data.ArrayDataset(x[:320], y[:320]), 32, cluster=cluster)
    history = made.fit(train, 2, callbacks=[wl.callback.Progress(), wl.callback.Logging()])
    print("accuracies", [figures["accuracy"] for figures in history], flush=True)
"""


def test_rank_0_says_how_it_goes_and_the_run_folder_has_it_merged(
    local: LocalCluster, job: str, tmp_path: Path
) -> None:
    with Workers(local, SCRIPT, count=2, run_dir=tmp_path, job=job) as workers:
        first, second = workers.finish()
    said, accuracies = first.out.splitlines()[:2], first.out.splitlines()[2]
    assert [line.split("  loss")[0] for line in said] == ["epoch 1/2", "epoch 2/2"]
    assert second.out.splitlines() == [accuracies], "the figures are those of both workers, and one says them"
    path = tmp_path / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert {record["step"] for record in records} == set(range(1, 11))
    logged = [record["accuracy"] for record in records if "accuracy" in record]
    np.testing.assert_allclose(logged, json.loads(accuracies.removeprefix("accuracies ")), rtol=1e-12)
    assert max(record.get("progress", 0.0) for record in records) == 1.0
