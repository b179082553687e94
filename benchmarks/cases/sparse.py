"""Sparse rows there and back: one worker, one server, shared memory; ids of a call are different and unordered.

The floor moves the same rows in one process: NumPy takes them by index and adds them, which is neither a table nor a
transfer. ps-lite, the peer whose figures the goals name, has no Python binding that can be installed.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

import windlass as wl
from benchmarks.case import Case, Extent
from benchmarks.report import Row
from windlass.local_cluster import LocalCluster
from windlass.sparse_table import Table

DIM = 16
CALL_ROWS = 100_000
RESIDENT = (100_000, 4_000_000)
RULES = (("sgd", wl.optim.SGD(lr=0.1)), ("adagrad", wl.optim.Adagrad()))


def sparse(extent: Extent) -> Iterator[Row]:
    count = CALL_ROWS // 50 if extent.quick else CALL_ROWS
    calls = 3 if extent.quick else 30
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder, LocalCluster.start(servers=1, run_dir=Path(folder)) as local:
        os.environ["WINDLASS_TOKEN_FILE"] = str(local.token_file)
        with wl.connect(local.address, job="bench", workers=1) as cluster:
            for resident in (CALL_ROWS,) if extent.quick else RESIDENT:
                setting = f"{resident:,} resident, {count:,} x {DIM} a call"
                ids = random.permutation(resident).astype(np.uint64)
                batches = [random.choice(ids, count, replace=False) for _ in range(calls)]
                yield Row("sparse", setting, "floor: numpy take, add", _floor(resident, batches))
                for name, rule in RULES:
                    table = cluster.store(f"{name} {resident}", consistency="asp").table("user", DIM, rule)
                    yield Row("sparse", f"growing to {resident:,}", f"windlass shm {name}", _filled(table, ids))
                    yield Row("sparse", setting, f"windlass shm {name}", _figures(table, batches))
                yield Row("sparse", setting, "ps-lite", not_measured="no Python binding can be installed")


def _filled(table: Table, ids: np.ndarray) -> dict[str, float]:
    """Push every id once; a server makes its rows. What the slowest calls took beyond the median one is growth."""
    seconds = []
    for begin in range(0, ids.size, CALL_ROWS):
        part = ids[begin : begin + CALL_ROWS]
        grads = np.ones((part.size, DIM), np.float32)
        start = time.perf_counter()
        table.push(part, grads).result()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return {
        "new_mrows_per_s": ids.size / sum(seconds) / 1e6,
        "median_s": median,
        "worst_beyond_median_s": max(seconds) - median,
        "bytes_a_row": table.figures()["bytes"] / ids.size,
    }


def _figures(table: Table, batches: list[np.ndarray]) -> dict[str, float]:
    grads = np.ones((batches[0].size, DIM), np.float32)
    return {
        "push_mrows_per_s": _rate(batches, lambda ids: table.push(ids, grads).result()),
        "pull_mrows_per_s": _rate(batches, lambda ids: table.pull(ids).result()),
        "push_pull_mrows_per_s": _rate(batches, lambda ids: table.push_pull(ids, grads).result()),
    }


def _floor(resident: int, batches: list[np.ndarray]) -> dict[str, float]:
    rows = np.zeros((resident, DIM), np.float32)
    grads = np.ones((batches[0].size, DIM), np.float32)

    def add(ids: np.ndarray) -> None:
        rows[ids] = rows[ids] + grads

    return {"push_mrows_per_s": _rate(batches, add), "pull_mrows_per_s": _rate(batches, lambda ids: rows[ids])}


def _rate(batches: list[np.ndarray], act: Callable[[np.ndarray], object]) -> float:
    """Million rows a second of the median call."""
    seconds = []
    for ids in batches:
        begin = time.perf_counter()
        act(ids)
        seconds.append(time.perf_counter() - begin)
    return batches[0].size / statistics.median(seconds) / 1e6


CASES = (Case("sparse", "rows of a sparse table: push and pull of 100,000 ids, one worker, one server", sparse),)
