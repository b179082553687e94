"""The Estimator: a model, a loss, a trainer and metrics, and the loop over them that everybody writes.

    estimator = wl.Estimator(net, wl.loss.SoftmaxCrossEntropy(), wl.optim.Adam(lr=1e-3), metrics=[wl.metric.Accuracy()])
    estimator.fit(train, epochs=10, validation=test, callbacks=[wl.callback.Progress()])
    estimator.evaluate(test)     # {"loss": 0.07, "accuracy": 0.98}

Invariant: with a cluster, figures of epochs and of `evaluate` are those of all workers, equal on each to the last bit.

Prior art: MXNet's gluon.contrib.estimator.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from windlass_graph import autograd
from windlass_graph.array import Array
from windlass_graph.device import Device, device_of
from windlass_proto.errors import UsageError
from windlass_proto.rule_specs import RuleSpec
from windlass_worker.course import Course
from windlass_worker.devices import split_and_load
from windlass_worker.metric import Composite, Loss, Metric, figures_of
from windlass_worker.passes import Passes
from windlass_worker.saved_fit import copies
from windlass_worker.totals import Totals, Vector
from windlass_worker.trainer import Trainer

if TYPE_CHECKING:
    from windlass.cluster import Cluster
    from windlass.store import Store
    from windlass_worker.callback.event import Callback

Part = tuple[list[Array], Array]
"""What one device is given: inputs, and labels."""
_VALIDATION: Final = "validation_"


class Estimator:
    """Trains and judges a model.

    Args:
        net: a block, or anything that is called with inputs and has `collect_params()`.
        loss: of (prediction, label) to one value a sample.
        optimizer: the update rule; or a `wl.Trainer` of these parameters.
        metrics: what is told beside the loss.
        store: where the model is held; needs `cluster`.
        cluster: whose workers train together.
        devices: over which each batch is split; those of the parameters unless given.

    A batch is a tuple or list: inputs, and the label last.

    Raises:
        UsageError: arguments that do not go together.
    """

    def __init__(
        self,
        net: Any,
        loss: Callable[[Any, Any], Any],
        optimizer: RuleSpec | Trainer,
        metrics: Sequence[Metric | Composite] = (),
        *,
        store: Store | None = None,
        cluster: Cluster | None = None,
        devices: Sequence[str | Device] | str | Device | None = None,
    ) -> None:
        self.net = net
        self.loss = loss
        self.cluster = cluster
        self.store = optimizer.store if isinstance(optimizer, Trainer) else store
        if isinstance(optimizer, Trainer) and store is not None and store is not optimizer.store:
            raise UsageError("store= is not the trainer's", next_move="Leave store= out: the trainer has one or none.")
        if self.store is not None and cluster is None:
            raise UsageError(
                "a store was given without its cluster", next_move="Pass cluster=: its workers decide together."
            )
        self.metrics: list[Metric | Composite] = [Loss(), *metrics]
        names = [name for metric in self.metrics for name in figures_of([metric])]
        if len(set(names)) < len(names):
            raise UsageError("two metrics have one name", names=", ".join(names), next_move="Pass name= to one.")
        self._optimizer = optimizer
        self._trainer = optimizer if isinstance(optimizer, Trainer) else None
        listed = [devices] if isinstance(devices, str | Device) else devices
        self._devices = None if listed is None else [device_of(each) for each in listed]
        self.totals = Totals(cluster)

    @property
    def trainer(self) -> Trainer:
        """What steps the parameters.

        Raises:
            UsageError: there is none before the first `fit`.
        """
        if self._trainer is None:
            raise UsageError("no trainer was made yet", next_move="Call fit first, or give the estimator a wl.Trainer.")
        return self._trainer

    @property
    def is_main(self) -> bool:
        """Is this the worker that writes for all?"""
        return self.cluster is None or self.cluster.is_main

    def parameters(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.net.collect_params()
        return found

    def fit(
        self,
        train: Iterable[Any],
        epochs: int,
        *,
        validation: Iterable[Any] | None = None,
        callbacks: Sequence[Callback] = (),
        batches_per_epoch: int | None = None,
        resume: str | Path | None = None,
    ) -> list[dict[str, float]]:
        """Train for `epochs` epochs; the figures of each, by name.

        Every worker of a cluster calls it alike. They meet after each epoch, in every mode of consistency; under "bsp"
        each needs as many batches as the others, as a `wl.data.DataLoader(cluster=cluster)` gives them.

        Args:
            train: batches; iterated over again for each epoch.
            validation: batches on which the model is judged after each epoch; figures "validation_loss", ...
            callbacks: told of what happens, in order (`wl.callback`). One that raises ends the fit.
            batches_per_epoch: so many, instead of a pass over `train`.
            resume: a folder of `wl.callback.Checkpoint`: go on after the newest one in it, if there is one.

        Raises:
            UsageError: batches, callbacks or a saved fit do not fit.
        """
        if epochs < 0:
            raise UsageError("there is no such number of epochs", epochs=epochs)
        passes = Passes(train, batches_per_epoch)
        self.begin(passes.example())
        return Course(self, passes, epochs, validation, list(callbacks)).run(resume)

    def begin(self, example: Any) -> None:
        """Make the trainer, once a model whose shapes are not known has seen a batch."""
        if self._is_deferred():
            inputs = parts_of(example)[:-1]
            place = self.devices[0]
            with autograd.pause():
                self.net(*(split_and_load(each, place)[0] for each in inputs))
        if self._trainer is None:
            assert not isinstance(self._optimizer, Trainer), "a trainer that was given is there"
            self._trainer = Trainer(self.parameters(), self._optimizer, store=self.store)
        self._trainer.begin()

    @property
    def devices(self) -> list[Device]:
        """Over which batches are split."""
        if self._devices is None:
            parameters = self.parameters()
            if not parameters:
                raise UsageError("the net has no parameters", net=type(self.net).__name__)
            if self._is_deferred():
                return [device_of(None)]
            self._devices = [each.device for each in copies(next(iter(parameters.values())))]
        return self._devices

    def _is_deferred(self) -> bool:
        return any(getattr(parameter, "is_deferred", False) for parameter in self.parameters().values())

    def train_on(self, batch: Any, metrics: Sequence[Metric | Composite]) -> int:
        """One step; the number of samples."""
        split = _split(parts_of(batch), self.devices)
        with autograd.record():
            losses, outputs = self._scored(split)
        _measure(metrics, split, outputs, losses)
        self.trainer.backward(losses)
        self.trainer.step()
        return sum(labels.shape[0] for _, labels in split)

    def _scored(self, split: Sequence[Part]) -> tuple[list[Array], list[Any]]:
        """By device: the losses, and what the net gave.

        Raises:
            UsageError: the loss gives one number for all samples.
        """
        outputs = [self.net(*inputs) for inputs, _ in split]
        losses = [self.loss(output, labels) for output, (_, labels) in zip(outputs, split, strict=True)]
        if losses[0].ndim == 0:
            raise UsageError(
                "a loss gives one number for all samples",
                next_move="Let it give one value a sample: the trainer takes the mean, over all devices and workers.",
            )
        return losses, outputs

    def judged(self, data: Iterable[Any]) -> list[Metric | Composite]:
        """Metrics of this worker's batches, in prediction mode."""
        metrics = copy.deepcopy(self.metrics)
        for metric in metrics:
            metric.reset()
        with autograd.predict_mode():
            for batch in data:
                parts = parts_of(batch)
                split = _split(parts, self.devices[: max(1, len(parts[-1]))])
                losses, outputs = self._scored(split)
                _measure(metrics, split, outputs, losses)
        return metrics

    def merged(self, metrics: Sequence[Metric | Composite], trained: int | None = None) -> dict[str, float]:
        """Their figures over all workers; of those behind the first `trained` ones as "validation_...".

        It is one sum of one vector, however many metrics there are.
        """
        states = [metric.state() for metric in metrics]
        total: Vector = self.totals.of(np.concatenate(states))
        whole = copy.deepcopy(list(metrics))
        for metric, part in zip(whole, np.split(total, np.cumsum([len(each) for each in states])[:-1]), strict=True):
            metric.reset()
            metric.merge(part)
        if trained is None:
            return figures_of(whole)
        judged = figures_of(whole[trained:])
        return figures_of(whole[:trained]) | {_VALIDATION + name: value for name, value in judged.items()}

    def evaluate(self, data: Iterable[Any]) -> dict[str, float]:
        """The loss and the metrics on `data`; every worker of a cluster calls it, with its share or with all of it."""
        return self.merged(self.judged(data))

    def predict(self, data: Iterable[Any]) -> npt.NDArray[Any]:
        """What the net gives for each row, of this worker's batches.

        Args:
            data: batches of inputs, or with labels behind them, which are not looked at; or one array.

        Raises:
            UsageError: there are no batches.
        """
        batches = [data] if hasattr(data, "shape") else data
        found = []
        with autograd.predict_mode():
            for batch in batches:
                parts = parts_of(batch if isinstance(batch, tuple | list) else (batch, batch))
                split = _split(parts, self.devices[: max(1, len(parts[0]))])
                found += [np.asarray(self.net(*inputs)) for inputs, _ in split]
        if not found:
            raise UsageError("there are no batches to predict", next_move="Give at least one.")
        return np.concatenate(found)


def parts_of(batch: Any) -> list[Any]:
    """The inputs of a batch, and its labels last.

    Raises:
        UsageError: it is no tuple or list of both.
    """
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise UsageError(
            "a batch is not inputs and labels",
            got=type(batch).__name__,
            next_move="Give tuples such as (x, y); a data set of two arrays makes them, or collate=.",
        )
    return [part if isinstance(part, Array) else np.asarray(part) for part in batch]


def _split(parts: Sequence[Any], devices: Sequence[Device]) -> list[Part]:
    """By device: the inputs, and the labels."""
    split = [split_and_load(each, devices, even_split=False) for each in parts]
    return [(list(each[:-1]), each[-1]) for each in zip(*split, strict=True)]


def _measure(
    metrics: Sequence[Metric | Composite], split: Sequence[Part], outputs: Sequence[Any], losses: Sequence[Array]
) -> None:
    """The first metric is the loss."""
    for (_, labels), output, loss in zip(split, outputs, losses, strict=True):
        metrics[0].update(labels, loss)
        for metric in metrics[1:]:
            metric.update(labels, output)
