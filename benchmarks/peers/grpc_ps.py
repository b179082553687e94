"""A parameter server in gRPC, as most people would first write it: unary calls, bytes, SGD in NumPy."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np

LEARNING_RATE = np.float32(1e-3)
UNLIMITED = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]


class Servicer(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        _, method, name = handler_call_details.method.strip("/").split("/")
        call = {"init": self.init, "push_pull": self.push_pull}[method]
        return grpc.unary_unary_rpc_method_handler(lambda request, _: call(name, request))

    def init(self, name: str, request: bytes) -> bytes:
        self.weights[name] = np.frombuffer(request, np.float32).copy()
        return b""

    def push_pull(self, name: str, request: bytes) -> Any:
        self.weights[name] -= LEARNING_RATE * np.frombuffer(request, np.float32)
        return self.weights[name].tobytes()


def serve() -> None:
    server = grpc.server(ThreadPoolExecutor(4), handlers=[Servicer()], options=UNLIMITED)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    serve()
