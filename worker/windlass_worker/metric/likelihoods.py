"""Metrics of predicted distributions: cross-entropy, negative log-likelihood, perplexity; natural logarithms.

Labels are class numbers of shape (rows, ...), predictions (rows, classes, ...). A probability of 0 counts as
`PROBABILITY_MIN`, so that one wrong certainty is a large number and no infinity.
"""

from __future__ import annotations

import math

import numpy as np

from windlass_worker.metric.classes import rows_of_scores
from windlass_worker.metric.sums import Array, Metric, Sums, ratio

PROBABILITY_MIN = 1e-12


class CrossEntropy(Metric):
    """The mean of -log p[label].

    Args:
        from_logits: predictions are scores before the softmax; else they are probabilities.
        ignore_label: rows with this label (padding) are left out.
    """

    def __init__(
        self, *, from_logits: bool = False, ignore_label: int | None = None, name: str = "cross_entropy"
    ) -> None:
        super().__init__(name, 2)
        self._from_logits = from_logits
        self._ignore_label = ignore_label

    def measure(self, labels: Array, predictions: Array) -> list[float]:
        own, scores = _kept(self.name, labels, predictions, self._ignore_label)
        if self._from_logits:
            greatest = scores.max(1, keepdims=True, initial=-math.inf)
            own = own - greatest[:, 0] - np.log(np.exp(scores - greatest).sum(1))
        else:
            own = np.log(np.maximum(own, PROBABILITY_MIN))
        return [-float(own.sum()), own.size]

    def value(self, sums: Sums) -> float:
        return ratio(sums[0], sums[1])


class Perplexity(CrossEntropy):
    """exp of `CrossEntropy` over all rows: among how many classes, equally likely, the model would be as unsure."""

    def __init__(self, *, from_logits: bool = False, ignore_label: int | None = None, name: str = "perplexity") -> None:
        super().__init__(from_logits=from_logits, ignore_label=ignore_label, name=name)

    def value(self, sums: Sums) -> float:
        entropy = super().value(sums)
        return math.inf if entropy > 709 else math.exp(entropy)


class NegativeLogLikelihood(Metric):
    """The mean of -q[label], where predictions q are logarithms of probabilities (after `log_softmax`)."""

    def __init__(self, *, ignore_label: int | None = None, name: str = "nll") -> None:
        super().__init__(name, 2)
        self._ignore_label = ignore_label

    def measure(self, labels: Array, predictions: Array) -> list[float]:
        own, _ = _kept(self.name, labels, predictions, self._ignore_label)
        return [-float(own.sum()), own.size]

    def value(self, sums: Sums) -> float:
        return ratio(sums[0], sums[1])


def _kept(name: str, labels: Array, predictions: Array, ignore_label: int | None) -> tuple[Sums, Sums]:
    """The label's score, and all scores, of every row that counts, in float64."""
    truth = labels.reshape(-1).astype(np.int64)
    kept = np.ones(truth.shape, bool) if ignore_label is None else truth != ignore_label
    scores = rows_of_scores(name, np.where(kept, truth, 0), predictions)[kept].astype(np.float64)
    return np.take_along_axis(scores, truth[kept][:, None], 1)[:, 0], scores
