"""Time to accuracy on real digits: one process, 1, 2 and 4 workers, PyTorch with gloo.

The network has 9,610 parameters, so this measures what a step's exchange costs, not bandwidth: a model this
small is trained fastest by one process, and the rows say by how much. Every process computes on one thread.
Each worker takes `BATCH` rows a step, so more workers make fewer and larger steps. Times begin when everybody
is connected and declared.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.case import Case, Extent, count_text
from benchmarks.child import Child, NotMeasuredError
from benchmarks.contender import LOGS
from benchmarks.course import summary
from benchmarks.isolation import moved_into, own_folder
from benchmarks.mlp import ACCURACY_GOAL, BATCH, EPOCHS, LEARNING_RATE, split_digits
from benchmarks.peers.environments import python_of
from benchmarks.peers.fleets import free_port
from benchmarks.report import Row
from benchmarks.windlass_fleet import Cluster
from windlass.datasets import load_digits

RUN_S = 120.0
ROUNDS = 5
LOG = LOGS / "digits.log"
WORKER = (sys.executable, "-m", "benchmarks.digits_worker")
ONE_BLAS_THREAD = {"OPENBLAS_NUM_THREADS": "1"}


def digits(extent: Extent) -> Iterator[Row]:
    workers = (1, 2) if extent.quick else (1, 2, 4)
    runs: dict[str, Callable[[], dict[str, float]]] = {"one process, no cluster": alone}
    runs |= {f"windlass, {count_text(count)}": partial(clustered, count) for count in workers}
    runs |= {f"torch ddp, {count_text(count)}": partial(torch_ddp, count) for count in workers}
    measured: dict[str, list[dict[str, float]]] = {name: [] for name in runs}
    refused: dict[str, str] = {}
    for _ in range(1 if extent.quick else ROUNDS):
        for name, run in runs.items():
            if name not in refused:
                try:
                    measured[name].append(run())
                except NotMeasuredError as error:
                    refused[name] = str(error)
    setting = f"{BATCH} rows a worker, to {ACCURACY_GOAL:.0%}"
    for name in runs:
        if name in refused:
            yield Row("digits", setting, name, not_measured=refused[name])
        else:
            yield Row("digits", setting, name, medians(measured[name]))


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Of the figures that every run has: a goal that one run missed was not reached."""
    shared = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: statistics.median(run[name] for run in runs) for name in shared}


def alone() -> dict[str, float]:
    with Child("numpy", [*WORKER, "alone"], LOG, ONE_BLAS_THREAD) as child:
        return summary(child.reply(RUN_S), ACCURACY_GOAL)


def clustered(workers: int) -> dict[str, float]:
    with ExitStack() as opened:
        folder = opened.enter_context(own_folder())
        if workers == 1:
            environment = {**ONE_BLAS_THREAD, **moved_into(folder)}
            return _first_of([opened.enter_context(_worker(["--servers", "1"], environment))])
        cluster = Cluster(1, folder, LOG)
        opened.callback(cluster.close)
        environments = [{**ONE_BLAS_THREAD, **cluster.launch(rank, workers)} for rank in range(workers)]
        return _first_of([opened.enter_context(_worker([], environment)) for environment in environments])


def torch_ddp(workers: int) -> dict[str, float]:
    python = python_of("torch")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as opened:
        train_x, train_y, test_x, test_y = split_digits(*load_digits())
        np.save(Path(folder) / "train_x.npy", train_x)
        np.save(Path(folder) / "train_y.npy", train_y)
        np.save(Path(folder) / "test_x.npy", test_x)
        np.save(Path(folder) / "test_y.npy", test_y)
        settings = [folder, str(BATCH), str(EPOCHS), str(LEARNING_RATE)]
        port = str(free_port())
        members = []
        for rank in range(workers):
            where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(workers)}
            argv = [python, "-m", "benchmarks.peers.torch_digits", *settings]
            child = Child("torch", argv, LOG, {**where, "RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"})
            members.append(opened.enter_context(child))
        return _first_of(members)


def _worker(argv: list[str], environment: dict[str, str]) -> Child:
    return Child("windlass", [*WORKER, "windlass", *argv], LOG, environment)


def _first_of(members: Sequence[Child]) -> dict[str, float]:
    """Rank 0 evaluated; the others' answers say that they ended well."""
    answers = [child.reply(RUN_S) for child in members]
    evaluated = next((answer for answer in answers if answer["after_epochs"]), None)
    if evaluated is None:
        raise NotMeasuredError("no worker evaluated")
    return summary(evaluated, ACCURACY_GOAL)


CASES = (Case("digits", "time to 97 % on real digits: one process, 1, 2, 4 workers, PyTorch DDP", digits),)
