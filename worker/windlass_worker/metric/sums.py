"""What every metric is: a vector of sums over rows, and a formula.

Invariant: `state()` of two metrics of the same arguments, added, is the state of one that saw both their batches. So a
metric over a cluster needs one all-reduce and no order of arrival, and a mean is never a mean of means.

Owner: the loop that updates it; nothing here locks. Sums are float64, exact for counts up to 2**53.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from windlass_proto.errors import UsageError

Array: TypeAlias = npt.NDArray[Any]
Sums: TypeAlias = npt.NDArray[np.float64]


class Metric(abc.ABC):
    """A figure over all rows since `reset`.

    A metric of one's own defines `measure` and `value`, and says how many sums it keeps.

    Args:
        name: what `get` calls it.
        sums: the length of its state.
    """

    def __init__(self, name: str, sums: int) -> None:
        self.name = name
        self._sums = np.zeros(sums)

    @abc.abstractmethod
    def measure(self, labels: Array, predictions: Array) -> Sums | list[float]:
        """What one batch adds to the sums."""

    @abc.abstractmethod
    def value(self, sums: Sums) -> float:
        """The figure that the sums stand for; nan where there is none yet."""

    def update(self, labels: Any, predictions: Any) -> None:
        """Add a batch. Both are arrays, anything with `__array__`, or lists of as many arrays (several outputs).

        Raises:
            UsageError: their shapes or values do not belong together; the metric is as before.
        """
        for label, prediction in pairs(labels, predictions):
            self._sums += self.measure(label, prediction)

    def get(self) -> tuple[str, float]:
        """Its name and its value over all rows since `reset`; nan before the first row."""
        return self.name, self.value(self._sums)

    def reset(self) -> None:
        """Forget every row."""
        self._sums[:] = 0.0

    def state(self) -> Sums:
        """The sums, a copy: add those of all workers, and `merge` the total into a metric that was reset."""
        return self._sums.copy()

    def merge(self, state: npt.ArrayLike) -> None:
        """Add the rows that another metric of the same arguments has seen.

        Raises:
            UsageError: that state is of another metric or of other arguments.
        """
        given = np.asarray(state, np.float64)
        if given.shape != self._sums.shape:
            raise UsageError(
                f"{self.name} cannot merge that state",
                shape=given.shape,
                expected=self._sums.shape,
                next_move="Give every worker's metric the same arguments.",
            )
        self._sums += given


class Loss(Metric):
    """The mean of losses: `update(labels, losses)`, of which the labels are not looked at."""

    def __init__(self, name: str = "loss") -> None:
        super().__init__(name, 2)

    def measure(self, labels: Array, predictions: Array) -> list[float]:
        return [float(predictions.sum(dtype=np.float64)), predictions.size]

    def value(self, sums: Sums) -> float:
        return ratio(sums[0], sums[1])

    def update(self, labels: Any, predictions: Any) -> None:
        """Add the losses of a batch, one number each or one a row."""
        for losses in predictions if is_list(predictions) else [predictions]:
            self._sums += self.measure(np.zeros(0), np.asarray(losses))


class Custom(Metric):
    """The mean over rows of a function of one's own.

    Args:
        function: of (labels, predictions), NumPy arrays, to the batch's mean, which weighs as much as the batch has
            rows; or to (sum, count), where it counts otherwise.
        name: the function's own, unless given.
    """

    def __init__(self, function: Callable[[Array, Array], Any], name: str = "") -> None:
        super().__init__(name or getattr(function, "__name__", type(function).__name__), 2)
        self._function = function

    def measure(self, labels: Array, predictions: Array) -> list[float]:
        found = self._function(labels, predictions)
        if isinstance(found, tuple):
            return [float(found[0]), float(found[1])]
        rows = len(labels) if labels.ndim else 1
        return [float(found) * rows, rows]

    def value(self, sums: Sums) -> float:
        return ratio(sums[0], sums[1])


class Composite:
    """Several metrics of the same labels and predictions; `get` gives their names and their values as lists."""

    def __init__(self, *metrics: Metric | Composite, name: str = "composite") -> None:
        if not metrics:
            raise UsageError("a composite was given no metric", next_move="Give it some: Composite(Accuracy(), ...).")
        self.name = name
        self.metrics = metrics

    def update(self, labels: Any, predictions: Any) -> None:
        """Add a batch to every metric, in order."""
        for metric in self.metrics:
            metric.update(labels, predictions)

    def get(self) -> tuple[list[Any], list[Any]]:
        """The names and the values, in order."""
        found = [metric.get() for metric in self.metrics]
        return [name for name, _ in found], [value for _, value in found]

    def reset(self) -> None:
        """Forget every row."""
        for metric in self.metrics:
            metric.reset()

    def state(self) -> Sums:
        """The metrics' states, one behind the other; they add up as those do."""
        return np.concatenate([metric.state() for metric in self.metrics])

    def merge(self, state: npt.ArrayLike) -> None:
        """Add the rows that another composite of the same metrics has seen."""
        given = np.asarray(state, np.float64)
        sizes = [metric.state().size for metric in self.metrics]
        if given.shape != (sum(sizes),):
            raise UsageError(f"{self.name} cannot merge that state", shape=given.shape, expected=(sum(sizes),))
        for metric, part in zip(self.metrics, np.split(given, np.cumsum(sizes)[:-1]), strict=True):
            metric.merge(part)


def figures_of(metrics: Iterable[Metric | Composite]) -> dict[str, float]:
    """Names and values of metrics, of composites those within."""
    found: dict[str, float] = {}
    for metric in metrics:
        if isinstance(metric, Composite):
            found |= figures_of(metric.metrics)
        else:
            name, value = metric.get()
            found[name] = value
    return found


def ratio(total: float, count: float) -> float:
    """`total / count`, nan where nothing was counted."""
    return float(total / count) if count else math.nan


def is_list(given: Any) -> bool:
    """Is it a list of arrays, rather than an array written as a list?"""
    return isinstance(given, list | tuple) and any(hasattr(item, "__array__") and np.ndim(item) for item in given)


def pairs(labels: Any, predictions: Any) -> list[tuple[Array, Array]]:
    """Labels and predictions as arrays, output by output."""
    if is_list(predictions) != is_list(labels) or (is_list(labels) and len(labels) != len(predictions)):
        raise UsageError(
            "labels and predictions are not as many",
            labels=len(labels) if is_list(labels) else 1,
            predictions=len(predictions) if is_list(predictions) else 1,
            next_move="Give one array of each, or lists of equal length.",
        )
    if not is_list(labels):
        return [(np.asarray(labels), np.asarray(predictions))]
    return [(np.asarray(a), np.asarray(b)) for a, b in zip(labels, predictions, strict=True)]


def same_shape(name: str, labels: Array, predictions: Array) -> tuple[Sums, Sums]:
    """Both in float64; a last axis of one that only one of them has does not count."""
    a, b = labels.astype(np.float64), predictions.astype(np.float64)
    if a.shape != b.shape and a.size == b.size and a.squeeze().shape == b.squeeze().shape:
        b = b.reshape(a.shape)
    if a.shape != b.shape:
        raise UsageError(f"{name} needs labels and predictions of one shape", labels=a.shape, predictions=b.shape)
    return a, b
