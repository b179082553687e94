"""PyTorch's fused Adam on one core as a contender for the kernels. Runs in build/peers/torch."""

from __future__ import annotations

import importlib
from typing import Any

from benchmarks.load import Load
from benchmarks.served import Subject, serve


class FusedAdam:
    def __init__(self) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._torch.set_num_threads(1)
        self._optimizers: dict[str, Any] = {}

    def prepare(self, load: Load) -> None:
        parameters = []
        for shape in load.shapes:
            parameter = self._torch.full(shape, 0.5).requires_grad_()
            parameter.grad = self._torch.full(shape, 0.5)
            parameters.append(parameter)
        self._optimizers[load.key] = self._torch.optim.Adam(parameters, lr=1e-3, fused=True)

    def exchange(self, key: str) -> None:
        self._optimizers[key].step()

    def drop(self, key: str) -> None:
        del self._optimizers[key]

    def close(self) -> None:
        self._optimizers.clear()


def main() -> None:
    def connect() -> Subject:
        return FusedAdam()

    serve(connect)


if __name__ == "__main__":
    main()
