"""PyTorch, eager, on the engine's models as a contender. Runs in build/peers/torch; argument: the number of threads."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.engine_models import (
    CLASSES,
    FACTORS,
    FEATURES,
    HEADS,
    IDS,
    INNER,
    LEARNING_RATE,
    MODELS,
    UNITS,
    WORDS,
    batch_of,
)
from benchmarks.load import Load
from benchmarks.served import Subject, serve

Built = tuple[list[Any], Callable[..., Any]]  # modules with parameters, and the mean loss of a batch


def mlp(torch: Any) -> Built:
    nn = torch.nn
    layers = nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, CLASSES)
    return _classifier(torch, nn.Sequential(*layers))


def lenet(torch: Any) -> Built:
    nn = torch.nn
    convolutions = nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(20, 50, 5), nn.ReLU(), nn.MaxPool2d(2)
    return _classifier(
        torch, nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(800, 500), nn.ReLU(), nn.Linear(500, CLASSES))
    )


def _classifier(torch: Any, network: Any) -> Built:
    loss = torch.nn.CrossEntropyLoss()
    return [network], lambda x, y: loss(network(x), y)


def lstm(torch: Any) -> Built:
    nn = torch.nn
    table, layer, last = nn.Embedding(WORDS, UNITS), nn.LSTM(UNITS, UNITS), nn.Linear(UNITS, WORDS)
    loss = nn.CrossEntropyLoss()
    return [table, layer, last], lambda x, y: loss(last(layer(table(x))[0]).reshape(-1, WORDS), y.reshape(-1))


def transformer(torch: Any) -> Built:
    block = torch.nn.TransformerEncoderLayer(FEATURES, HEADS, INNER, dropout=0.0, batch_first=True)
    loss = torch.nn.MSELoss()
    return [block], lambda x, target: loss(block(x), target)


def fm(torch: Any) -> Built:
    class Machine(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Embedding(IDS, 1)
            self.factors = torch.nn.Embedding(IDS, FACTORS)
            self.bias = torch.nn.Parameter(torch.zeros(1))

        def forward(self, ids: Any) -> Any:
            v = self.factors(ids)
            pairs = v.sum(1).square() - v.square().sum(1)
            return self.linear(ids).sum((1, 2)) + 0.5 * pairs.sum(1) + self.bias

    machine, loss = Machine(), torch.nn.BCEWithLogitsLoss()
    return [machine], lambda ids, clicked: loss(machine(ids), clicked)


BUILT = {"mlp": mlp, "lenet": lenet, "lstm": lstm, "transformer": transformer, "fm": fm}


class Training:
    """All steps that were asked for, by the model's name."""

    def __init__(self, threads: int) -> None:
        self._torch: Any = importlib.import_module("torch")
        self._torch.set_num_threads(threads)
        self._steps: dict[str, Callable[[], None]] = {}

    def prepare(self, load: Load) -> None:
        self._torch.manual_seed(0)
        modules, loss_of = BUILT[load.key](self._torch)
        batch = [self._torch.from_numpy(each) for each in batch_of(MODELS[load.key])]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        optimizer = self._torch.optim.SGD(parameters, lr=LEARNING_RATE)

        def step() -> None:
            optimizer.zero_grad()
            loss_of(*batch).backward()
            optimizer.step()

        self._steps[load.key] = step

    def exchange(self, key: str) -> None:
        self._steps[key]()

    def drop(self, key: str) -> None:
        del self._steps[key]

    def close(self) -> None:
        self._steps.clear()


def main() -> None:
    def connect() -> Subject:
        return Training(int(sys.argv[1]))

    serve(connect)


if __name__ == "__main__":
    main()
