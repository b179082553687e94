"""Training steps of the engine's models in this process, on each of its fronts.

A load's key is `MODEL/FRONT`; one exchange is one step: forward, backward, update by SGD. The number of threads comes
with the environment, before NumPy is imported.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.engine_models import LEARNING_RATE, MODELS, Model, batch_of, values_of
from benchmarks.load import Load
from benchmarks.served import Subject, serve
from windlass import Trainer, autograd, nd, optim
from windlass_graph import functions
from windlass_graph.array import Array
from windlass_graph.cached_graph import CachedGraph
from windlass_graph.symbol import Variable

Step = Callable[[], None]


class Trained:
    """A model's parameters with gradients, its batch, and SGD in this process."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.parameters = {name: nd.array(value) for name, value in values_of(model).items()}
        for array in self.parameters.values():
            array.attach_grad()
        self.batch = [nd.array(value) for value in batch_of(model)]
        self._trainer = Trainer(self.parameters, optim.SGD(lr=LEARNING_RATE))

    def losses_by(self, losses_of: Callable[[], Array]) -> Step:
        """Record the losses, walk the tape, update."""

        def step() -> None:
            with autograd.record():
                losses = losses_of()
            losses.backward()
            self._trainer.step(self.model.targets)

        return step

    def update(self) -> None:
        """With gradients that were written without a tape."""
        for array in self.parameters.values():
            array.grad_is_fresh = True
        self._trainer.step(self.model.targets)


def imperative(trained: Trained) -> Step:
    """Ops compute at once and are recorded."""
    model = trained.model
    return trained.losses_by(lambda: model.losses(functions, trained.batch, trained.parameters))


def hybridized(trained: Trained) -> Step:
    """The losses are traced once and compiled: what `hybridize()` runs."""
    model = trained.model
    variables = {name: Variable(name) for name in trained.parameters}
    cached = CachedGraph(lambda inputs: [model.losses(functions, inputs, variables)])
    return trained.losses_by(lambda: cached(trained.batch, trained.parameters)[0][0])


def symbolic(trained: Trained) -> Step:
    """A symbol that is bound to arrays and their gradients."""
    model, parameters = trained.model, trained.parameters
    inputs = {f"data{i}": array for i, array in enumerate(trained.batch)}
    symbol = model.losses(functions, [Variable(name) for name in inputs], {name: Variable(name) for name in parameters})
    gradients = {name: array.grad for name, array in parameters.items()}
    requests = {name: "write" if name in parameters else "null" for name in [*inputs, *parameters]}
    executor = symbol.bind(args={**inputs, **parameters}, args_grad=gradients, grad_req=requests)

    def step() -> None:
        executor.forward(is_train=True)
        executor.backward()
        trained.update()

    return step


FRONTS: dict[str, Callable[[Trained], Step]] = {
    "hybridized": hybridized,
    "symbolic": symbolic,
    "imperative": imperative,
}


class Training:
    """All steps that were asked for, by key."""

    def __init__(self) -> None:
        self._steps: dict[str, Step] = {}

    def prepare(self, load: Load) -> None:
        model, _, front = load.key.partition("/")
        self._steps[load.key] = FRONTS[front](Trained(MODELS[model]))

    def exchange(self, key: str) -> None:
        self._steps[key]()

    def drop(self, key: str) -> None:
        del self._steps[key]

    def close(self) -> None:
        self._steps.clear()


def main() -> None:
    def connect() -> Subject:
        return Training()

    serve(connect)


if __name__ == "__main__":
    main()
