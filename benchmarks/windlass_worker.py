"""A windlass worker as a contender: one `connect()`, a store a load, SGD on the servers.

The link is what `WINDLASS_LINK` allows. With launcher variables set it joins that cluster; without, it starts
a private one of `--servers` servers. `load.arena` takes arrays from `store.empty`, else plain NumPy arrays.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

import windlass as wl
from benchmarks.aligned import aligned_vector
from benchmarks.load import Load
from benchmarks.served import Subject, serve

LEARNING_RATE = 1e-3
TICKET_S = 60.0


class WindlassClient:
    def __init__(self, servers: int | None, consistency: str) -> None:
        self._cluster = wl.connect(servers=servers) if servers is not None else wl.connect()
        self._consistency = consistency
        self._loads: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {}

    def prepare(self, load: Load) -> None:
        store = self._cluster.store(load.key, consistency=self._consistency)
        zeros = {f"t{at}": np.zeros(shape, np.float32) for at, shape in enumerate(load.shapes)}
        store.init(zeros, optimizer=wl.optim.SGD(lr=LEARNING_RATE))

        def arrays() -> dict[str, Any]:
            return {name: self._array(store, load, value.shape) for name, value in zeros.items()}

        self._loads[load.key] = (store, arrays(), arrays())

    def exchange(self, key: str) -> None:
        store, gradients, values = self._loads[key]
        store.push_pull(gradients, out=values).result(timeout=TICKET_S)

    def drop(self, key: str) -> None:
        store, gradients, _ = self._loads.pop(key)
        store.delete(list(gradients))

    def close(self) -> None:
        self._cluster.close()

    def _array(self, store: Any, load: Load, shape: tuple[int, ...]) -> Any:
        if not load.arena:
            return aligned_vector(int(np.prod(shape))).reshape(shape)
        array = store.empty(shape, np.float32)
        array[...] = 0.5
        return array


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--servers", type=int, default=None)
    parser.add_argument("--consistency", default="asp")
    arguments = parser.parse_args()

    def connect() -> Subject:
        return WindlassClient(arguments.servers, arguments.consistency)

    serve(connect)


if __name__ == "__main__":
    main()
