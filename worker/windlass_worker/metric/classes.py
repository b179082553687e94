"""Metrics of chosen classes: accuracy, top-k, F1 and Matthews' correlation.

Labels are class numbers of any shape. Predictions are class numbers of the labels' shape, or scores with one more axis
(axis 1, as images are NCHW), of which the greatest, at a tie the first, is the choice.

F1 and MCC keep counts for every class, so how many there are is an argument: a worker that has seen no batch must have
a state of the same length as the others.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

from windlass_proto.arguments import did_you_mean
from windlass_proto.errors import UsageError
from windlass_worker.metric.sums import Array, Metric, Sums, ratio

_AVERAGES = ("binary", "macro", "micro")


class Accuracy(Metric):
    """The share of rows whose predicted class is the label.

    Args:
        axis: the axis of the scores in the predictions.
        threshold: predictions of the labels' shape are scores of class 1, chosen from there on.
        ignore_label: rows with this label are left out.
    """

    def __init__(
        self, *, axis: int = 1, threshold: float | None = None, ignore_label: int | None = None, name: str = "accuracy"
    ) -> None:
        super().__init__(name, 2)
        self._axis = axis
        self._threshold = threshold
        self._ignore_label = ignore_label

    def measure(self, labels: Array, predictions: Array) -> list[float]:
        if self._threshold is not None:
            predictions = np.greater_equal(predictions, self._threshold).astype(np.int64)
        truth, chosen = choices(self.name, labels, predictions, self._axis)
        if self._ignore_label is not None:
            kept = truth != self._ignore_label
            truth, chosen = truth[kept], chosen[kept]
        return [int((truth == chosen).sum()), truth.size]

    def value(self, sums: Sums) -> float:
        return ratio(sums[0], sums[1])


class TopKAccuracy(Metric):
    """The share of rows whose label is among the `k` greatest scores; at a tie the smaller class number goes first.

    Predictions are scores of shape (rows, classes).
    """

    def __init__(self, k: int, *, name: str = "") -> None:
        if k < 1:
            raise UsageError("top-k accuracy needs k of one or more", k=k)
        super().__init__(name or f"top_{k}_accuracy", 2)
        self._k = k

    def measure(self, labels: Array, predictions: Array) -> list[float]:
        truth = _whole(self.name, labels).reshape(-1)
        scores = rows_of_scores(self.name, truth, predictions)
        if scores.shape[1] < self._k:
            raise UsageError(f"{self.name} needs at least k classes", k=self._k, classes=scores.shape[1])
        own = np.take_along_axis(scores, truth[:, None], 1)
        before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < truth[:, None]))
        return [int((before.sum(1) < self._k).sum()), truth.size]

    def value(self, sums: Sums) -> float:
        return ratio(sums[0], sums[1])


class F1(Metric):
    """F1 = 2 tp / (2 tp + fp + fn).

    Args:
        average: "binary": of class 1; "macro": the mean over classes (0 for one that is neither met nor chosen);
            "micro": of the counts of all classes together.
        classes: how many there are; two for "binary".
    """

    def __init__(
        self, average: Literal["binary", "macro", "micro"] = "binary", *, classes: int = 2, name: str = "f1"
    ) -> None:
        if average not in _AVERAGES:
            raise UsageError("F1 has no such average", given=average, next_move=did_you_mean(average, _AVERAGES))
        if average == "binary" and classes != 2:
            raise UsageError("F1 of class 1 has two classes", classes=classes, next_move='Take average="macro".')
        super().__init__(name, 3 * classes)
        self._average = average
        self._classes = classes

    def measure(self, labels: Array, predictions: Array) -> Sums:
        confused = confusion(self.name, labels, predictions, self._classes)
        hits = confused.diagonal()
        return np.concatenate([hits, confused.sum(0) - hits, confused.sum(1) - hits]).astype(np.float64)

    def value(self, sums: Sums) -> float:
        counts = sums.reshape(3, self._classes)
        if not counts.any():
            return math.nan
        if self._average == "micro":
            counts = counts.sum(1, keepdims=True)
        elif self._average == "binary":
            counts = counts[:, 1:]
        hits, false_hits, missed = counts
        below = 2 * hits + false_hits + missed
        return float(np.divide(2 * hits, below, out=np.zeros_like(below), where=below > 0).mean())


class MCC(Metric):
    """Matthews' correlation of labels and choices, from -1 to 1; 0 where one of them is constant.

        (c s - sum_k p_k t_k) / sqrt((s^2 - sum_k p_k^2) (s^2 - sum_k t_k^2))

    with c hits of s rows, class k met t_k times and chosen p_k times. Reference: J. Gorodkin, Comparing two K-category
    assignments by a K-category correlation coefficient, 2004; of two classes it is B. W. Matthews' of 1975.
    """

    def __init__(self, *, classes: int = 2, name: str = "mcc") -> None:
        super().__init__(name, classes * classes)
        self._classes = classes

    def measure(self, labels: Array, predictions: Array) -> Sums:
        return confusion(self.name, labels, predictions, self._classes).reshape(-1).astype(np.float64)

    def value(self, sums: Sums) -> float:
        confused = sums.reshape(self._classes, self._classes)
        met, chosen, rows = confused.sum(1), confused.sum(0), confused.sum()
        if not rows:
            return math.nan
        above = confused.trace() * rows - chosen @ met
        below = (rows * rows - chosen @ chosen) * (rows * rows - met @ met)
        return float(above / math.sqrt(below)) if below > 0 else 0.0


def choices(
    name: str, labels: Array, predictions: Array, axis: int = 1
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Labels and chosen classes as flat class numbers."""
    if predictions.size != labels.size:
        if predictions.ndim == labels.ndim + 1:
            predictions = predictions.argmax(axis)
        elif predictions.ndim == 2 and labels.shape == (len(predictions), 1):
            predictions = predictions.argmax(1)
    truth, chosen = _whole(name, labels).reshape(-1), _whole(name, predictions).reshape(-1)
    if truth.shape != chosen.shape:
        raise UsageError(
            f"{name} needs a prediction for every label",
            labels=labels.shape,
            predictions=predictions.shape,
            next_move="Give class numbers of the labels' shape, or scores with one more axis.",
        )
    return truth, chosen


def confusion(name: str, labels: Array, predictions: Array, classes: int) -> npt.NDArray[np.int64]:
    """How often a row of class [i] was taken for [j]."""
    truth, chosen = choices(name, labels, predictions)
    for what, found in (("label", truth), ("prediction", chosen)):
        if found.size and not 0 <= found.min() <= found.max() < classes:
            wrong = found[(found < 0) | (found >= classes)][0]
            raise UsageError(f"{name} met a class that it has not", what=what, found=wrong, classes=classes)
    return np.bincount(truth * classes + chosen, minlength=classes * classes).reshape(classes, classes)


def rows_of_scores(name: str, truth: npt.NDArray[np.int64], predictions: Array) -> Array:
    """Scores as (rows, classes), with every label among the classes."""
    if predictions.ndim < 2:
        raise UsageError(f"{name} needs a score for every class", predictions=predictions.shape)
    scores = np.moveaxis(predictions, 1, -1).reshape(-1, predictions.shape[1])
    if len(scores) != len(truth):
        raise UsageError(f"{name} needs scores for every label", labels=len(truth), predictions=predictions.shape)
    if truth.size and not 0 <= truth.min() <= truth.max() < scores.shape[1]:
        wrong = truth[(truth < 0) | (truth >= scores.shape[1])][0]
        raise UsageError(f"{name} met a label without a score", found=wrong, classes=scores.shape[1])
    return scores


def _whole(name: str, classes: Array) -> npt.NDArray[np.int64]:
    whole = classes.astype(np.int64)
    if not np.issubdtype(classes.dtype, np.integer) and (whole != classes).any():
        raise UsageError(
            f"{name} needs class numbers",
            found=classes.reshape(-1)[(whole != classes).reshape(-1)][0],
            next_move="Give scores with one more axis than the labels, or Accuracy(threshold=).",
        )
    return whole
