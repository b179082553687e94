"""A team: the workers of one job as threads of the test's process, each with a connection of its own.

    with Team(local, "a job", workers=2) as team:
        stores = team.stores({"w": np.zeros(8, np.float32)}, SGD(lr=1.0))
        first, second = team.each(lambda worker, rank: stores[rank].update(...))

What waits for peers must run in `each`, in which every worker has its own thread. `Workers` starts real processes; a
team is for promises that need none, and costs a tenth of a second.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, TypeVar

import windlass as wl
from windlass.cluster import Cluster
from windlass.local_cluster import LocalCluster
from windlass.optim import SGD
from windlass.store import Store
from windlass_proto.rule_specs import RuleSpec

T = TypeVar("T")
EACH_S = 30.0


class Team:
    """`workers` connections to `local`, by rank. Owner: the test's thread."""

    def __init__(self, local: LocalCluster, job: str, *, workers: int = 2, **options: Any) -> None:
        self._local = local
        self._job = job
        self._declared = workers
        self._options = options
        self._pool = ThreadPoolExecutor(workers + 2, thread_name_prefix="worker")
        self.workers: list[Cluster] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.__exit__, None, None, None)
            for _ in range(workers):
                self.join()
            undo.pop_all()

    def join(self) -> Cluster:
        """One more worker of the job."""
        joined = wl.connect(self._local.address, job=self._job, workers=self._declared, **self._options)
        self.workers.append(joined)
        return joined

    def __getitem__(self, rank: int) -> Cluster:
        return self.workers[rank]

    def each(self, act: Callable[[Cluster, int], T]) -> list[T]:
        """`act(worker, rank)` on every worker at once; the results by rank, or the first one's error."""
        running = [self._pool.submit(act, worker, rank) for rank, worker in enumerate(self.workers)]
        return [future.result(EACH_S) for future in running]

    def errors(self, act: Callable[[Cluster, int], Any]) -> list[BaseException | None]:
        """The error that `act(worker, rank)` raised on each worker, None where it raised none."""
        running = [self._pool.submit(act, worker, rank) for rank, worker in enumerate(self.workers)]
        return [future.exception(EACH_S) for future in running]

    def stores(
        self,
        arrays: Mapping[str, Any],
        optimizer: RuleSpec | None = None,
        consistency: str = "bsp",
        name: str = "model",
        **init: Any,
    ) -> list[Store]:
        """A store on every worker, declared with `arrays`."""

        def declare(worker: Cluster, rank: int) -> Store:
            store = worker.store(name, consistency=consistency)
            store.init(arrays, optimizer if optimizer is not None else SGD(lr=1.0), **init)
            return store

        return self.each(declare)

    def begin(self, act: Callable[[], T]) -> Any:
        """`act()` in a thread of its own; a future."""
        return self._pool.submit(act)

    def __enter__(self) -> Team:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        closing = [self._pool.submit(worker.close) for worker in self.workers]
        failures = [future.exception(EACH_S) for future in closing]
        self._pool.shutdown()
        if error is None:
            for failure in filter(None, failures):
                raise failure
