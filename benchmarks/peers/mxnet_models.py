"""Apache MXNet's gluon, hybridized, on the engine's models as a contender. Runs in build/peers/mxnet.

It has no attention among its layers, so the Transformer block is refused. Its engine is asynchronous: a step waits
for the updated parameters. The number of threads comes with the environment.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable
from typing import Any

from benchmarks.engine_models import CLASSES, FACTORS, IDS, LEARNING_RATE, MODELS, UNITS, WORDS, batch_of
from benchmarks.load import Load
from benchmarks.served import Subject, serve


def mlp(mx: Any) -> Any:
    network = mx.gluon.nn.HybridSequential()
    dense = mx.gluon.nn.Dense
    network.add(dense(128, activation="relu"), dense(64, activation="relu"), dense(CLASSES))
    return _classifier(mx, network)


def lenet(mx: Any) -> Any:
    nn = mx.gluon.nn
    network = nn.HybridSequential()
    network.add(nn.Conv2D(20, 5, activation="relu"), nn.MaxPool2D(2, 2))
    network.add(nn.Conv2D(50, 5, activation="relu"), nn.MaxPool2D(2, 2))
    network.add(nn.Dense(500, activation="relu"), nn.Dense(CLASSES))
    return _classifier(mx, network)


def _classifier(mx: Any, network: Any) -> Any:
    class Losses(mx.gluon.HybridBlock):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.loss = mx.gluon.loss.SoftmaxCrossEntropyLoss()

        def hybrid_forward(self, F: Any, x: Any, y: Any) -> Any:
            return self.loss(self.network(x), y)

    return Losses()


def lstm(mx: Any) -> Any:
    network = mx.gluon.nn.HybridSequential()
    network.add(mx.gluon.nn.Embedding(WORDS, UNITS), mx.gluon.rnn.LSTM(UNITS, input_size=UNITS))
    network.add(mx.gluon.nn.Dense(WORDS, flatten=False, in_units=UNITS))
    return _classifier(mx, network)


def fm(mx: Any) -> Any:
    class Machine(mx.gluon.HybridBlock):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.linear = mx.gluon.nn.Embedding(IDS, 1)
            self.factors = mx.gluon.nn.Embedding(IDS, FACTORS)
            self.bias = self.params.get("bias", shape=(1,), init="zeros")
            self.loss = mx.gluon.loss.SigmoidBinaryCrossEntropyLoss()

        def hybrid_forward(self, F: Any, ids: Any, clicked: Any, bias: Any) -> Any:
            v = self.factors(ids)
            pairs = F.square(F.sum(v, axis=1)) - F.sum(F.square(v), axis=1)
            linear = F.sum(self.linear(ids), axis=(1, 2))
            return self.loss(F.broadcast_add(linear + 0.5 * F.sum(pairs, axis=1), bias), clicked)

    return Machine()


BUILT: dict[str, Callable[[Any], Any]] = {"mlp": mlp, "lenet": lenet, "lstm": lstm, "fm": fm}


class Training:
    """All steps that were asked for, by the model's name."""

    def __init__(self) -> None:
        warnings.simplefilter("ignore")
        self._mx: Any = importlib.import_module("mxnet")
        self._steps: dict[str, Callable[[], None]] = {}

    def prepare(self, load: Load) -> None:
        if load.key not in BUILT:
            raise NotImplementedError(f"gluon has no layers for {load.key}")
        mx = self._mx
        block = BUILT[load.key](mx)
        block.initialize(mx.init.Xavier())
        block.hybridize(static_alloc=True, static_shape=True)
        batch = [mx.nd.array(each, dtype="float32") for each in batch_of(MODELS[load.key])]
        trainer = mx.gluon.Trainer(block.collect_params(), "sgd", {"learning_rate": LEARNING_RATE})

        def step() -> None:
            with mx.autograd.record():
                losses = block(*batch)
            losses.backward()
            trainer.step(losses.size)
            mx.nd.waitall()

        self._steps[load.key] = step

    def exchange(self, key: str) -> None:
        self._steps[key]()

    def drop(self, key: str) -> None:
        del self._steps[key]

    def close(self) -> None:
        os._exit(0)  # its own exit was seen to wait for threads of its engine


def main() -> None:
    def connect() -> Subject:
        return Training()

    serve(connect)


if __name__ == "__main__":
    main()
