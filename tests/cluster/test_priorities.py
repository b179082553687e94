"""Priorities and overlap on a slow link, told by what has passed it, not by the clock."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.slow_cluster import behind_slow_links
from benchmarks.throttle import Throttle
from tests.cluster.team import Team
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD
from windlass.store import Store

pytestmark = pytest.mark.cluster

LAYERS = 16
LAYER_BYTES = 2 << 20
ALL_BYTES = LAYERS * LAYER_BYTES
FIRST = {f"layer {i}": np.zeros(LAYER_BYTES // 4, np.float32) for i in range(LAYERS)}
DEADLINE_S = 30.0
HELD_BYTES_PER_S, OPEN_BYTES_PER_S = 1e5, 32e6  # nearly nothing passes while calls are made, however long they take


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalCluster, Throttle]]:
    with behind_slow_links(tmp_path_factory.mktemp("slow"), servers=1, bytes_per_s=1e9) as (cluster, (throttle,)):
        yield cluster, throttle


@pytest.fixture
def line(
    slow: tuple[LocalCluster, Throttle], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, job: str
) -> Iterator[tuple[Store, Throttle]]:
    """A store of LAYERS tensors behind a link that is held; open, it takes about a second for them."""
    cluster, throttle = slow
    monkeypatch.setenv("WINDLASS_TOKEN_FILE", str(cluster.token_file))
    monkeypatch.setenv("WINDLASS_LINK", "tcp")
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as opened:
        team = opened.enter_context(Team(cluster, job, workers=1))
        (store,) = team.stores(FIRST, SGD(lr=1.0), "asp")
        throttle.bytes_per_s = HELD_BYTES_PER_S
        opened.callback(setattr, throttle, "bytes_per_s", 1e9)
        yield store, throttle


def backward(store: Store, throttle: Throttle, priorities: bool) -> list[int]:
    """Push the layers' gradients, last layer first; which layers were pushed by when the first was answered."""
    tickets = {}
    for layer in reversed(range(LAYERS)):
        name = f"layer {layer}"
        tickets[layer] = store.push({name: FIRST[name]}, priority=LAYERS - layer if priorities else 0)
    throttle.bytes_per_s = OPEN_BYTES_PER_S
    tickets[0].result(DEADLINE_S)
    return [layer for layer in tickets if tickets[layer].done()]


def test_what_is_needed_first_overtakes_what_has_not_been_sent(line: tuple[Store, Throttle]) -> None:
    store, throttle = line
    before = throttle.passed_up
    done = backward(store, throttle, priorities=True)
    assert throttle.passed_up - before < ALL_BYTES / 2
    assert len(done) < LAYERS / 2, done


def test_without_priorities_the_first_layer_comes_last(line: tuple[Store, Throttle]) -> None:
    store, throttle = line
    before = throttle.passed_up
    assert len(backward(store, throttle, priorities=False)) == LAYERS
    assert throttle.passed_up - before >= ALL_BYTES


def test_a_pull_with_priority_is_answered_ahead_of_pushes_that_wait(line: tuple[Store, Throttle]) -> None:
    store, throttle = line
    before = throttle.passed_up
    with store.step():
        pushed = store.push(FIRST, priority=-1)
        pulled = store.pull("layer 3", priority=1)
        throttle.bytes_per_s = OPEN_BYTES_PER_S
        pulled.result(DEADLINE_S)
        assert not pushed.done()
    assert throttle.passed_up - before < ALL_BYTES / 2


@pytest.mark.parametrize("priority", [0, 1])
def test_a_small_pull_overtakes_what_a_large_one_still_has_to_be_sent_if_its_priority_is_higher(
    line: tuple[Store, Throttle], priority: int
) -> None:
    store, throttle = line
    before = throttle.passed_down
    large = store.pull([f"layer {i}" for i in range(1, LAYERS)], priority=0)
    small = store.pull("layer 0", priority=priority)
    throttle.bytes_per_s = OPEN_BYTES_PER_S
    small.result(DEADLINE_S)
    ahead = throttle.passed_down - before - LAYER_BYTES
    if priority:
        assert ahead < ALL_BYTES / 2
        assert not large.done()
    else:
        assert ahead >= ALL_BYTES - 2 * LAYER_BYTES
    large.result(DEADLINE_S)


def test_gradients_leave_while_the_next_are_computed(line: tuple[Store, Throttle]) -> None:
    store, throttle = line
    before, deadline = throttle.passed_up, time.monotonic() + DEADLINE_S
    store.push({f"layer {i}": FIRST[f"layer {i}"] for i in range(4)})
    throttle.bytes_per_s = OPEN_BYTES_PER_S
    matrix = np.ones((200, 200), np.float32)
    while throttle.passed_up - before < 4 * LAYER_BYTES:  # the loop computes, and calls nothing of the store
        matrix = matrix @ matrix * np.float32(0.001)
        assert time.monotonic() < deadline
