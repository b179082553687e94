"""The gRPC parameter server as a contender. Runs in the environment build/peers/grpc; argument: the port."""

from __future__ import annotations

import sys
from typing import Any

import grpc
import numpy as np

from benchmarks.load import Load
from benchmarks.peers.grpc_ps import UNLIMITED
from benchmarks.served import Subject, serve

RPC_S = 60.0


class GrpcClient:
    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=UNLIMITED)
        grpc.channel_ready_future(self._channel).result(timeout=RPC_S)
        self._loads: dict[str, list[tuple[Any, Any, Any]]] = {}

    def prepare(self, load: Load) -> None:
        tensors = []
        for at, shape in enumerate(load.shapes):
            name = f"{load.key}-{at}"
            gradient = np.ones(shape, np.float32)
            self._channel.unary_unary(f"/ps/init/{name}")(gradient.tobytes(), timeout=RPC_S)
            call = self._channel.unary_unary(f"/ps/push_pull/{name}")
            tensors.append((call, gradient, np.zeros(shape, np.float32)))
        self._loads[load.key] = tensors

    def exchange(self, key: str) -> None:
        for call, gradient, values in self._loads[key]:
            answer = call(gradient.tobytes(), timeout=RPC_S)
            values[...] = np.frombuffer(answer, np.float32).reshape(values.shape)

    def drop(self, key: str) -> None:
        del self._loads[key]

    def close(self) -> None:
        self._channel.close()


def main() -> None:
    def connect() -> Subject:
        return GrpcClient(int(sys.argv[1]))

    serve(connect)


if __name__ == "__main__":
    main()
