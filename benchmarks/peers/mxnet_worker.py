"""Apache MXNet's KVStore as a contender. Runs in the environment build/peers/mxnet.

Push and pull of a list of keys with SGD on the servers, values in MXNet's own CPU arrays, waited for.
`dist_async` is what windlass calls asp, `dist_sync` bsp. Known of MXNet 1.9.1: a single CPU gradient doubles
as the buffer its pull is received into, so after the first exchange the pushed values are the weights. The
bytes and the work are the same; the values are not looked at here.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Any

from benchmarks.load import Load
from benchmarks.served import Subject, serve

LEARNING_RATE = 1e-3


class MxnetClient:
    def __init__(self, mode: str) -> None:
        warnings.simplefilter("ignore")
        self._mx: Any = importlib.import_module("mxnet")
        self._store = self._mx.kv.create(mode)
        self._store.set_optimizer(self._mx.optimizer.SGD(learning_rate=LEARNING_RATE))
        self._next_key = 0
        self._loads: dict[str, tuple[list[int], list[Any], list[Any]]] = {}

    def prepare(self, load: Load) -> None:
        nd = self._mx.nd
        keys = list(range(self._next_key, self._next_key + len(load.shapes)))
        self._next_key += len(keys)
        self._store.init(keys, [nd.zeros(shape) for shape in load.shapes])
        gradients = [nd.ones(shape) for shape in load.shapes]
        values = [nd.zeros(shape) for shape in load.shapes]
        nd.waitall()
        self._loads[load.key] = (keys, gradients, values)

    def exchange(self, key: str) -> None:
        keys, gradients, values = self._loads[key]
        for at, each in enumerate(keys):  # as gluon.Trainer does: one call a key, earlier layers first
            self._store.push(each, gradients[at], priority=-at)
            self._store.pull(each, out=values[at], priority=-at)
        for value in values:
            value.wait_to_read()

    def drop(self, key: str) -> None:
        del self._loads[key]  # the KVStore cannot forget a key: the servers keep their copy

    def close(self) -> None:
        os._exit(0)  # MXNet's own exit waits for a barrier of all workers; the bench ends the servers itself


def main() -> None:
    def connect() -> Subject:
        return MxnetClient(sys.argv[1])

    serve(connect)


if __name__ == "__main__":
    main()
