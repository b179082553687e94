"""The area under the ROC curve, from histograms that add up.

AUC is the share of (positive, negative) pairs in which the positive has the higher score, ties counting half. Exact
pairs need every score in one place; instead positives and negatives are counted by score in equal bins, and a pair in
one bin counts as a tie. So the figure is off by at most half the share of pairs that share a bin, and `error_max` says
that share for the rows seen. Rejected: sorting scores kept in memory (they grow with the data and do not add up).
"""

from __future__ import annotations

import math

import numpy as np

from windlass_proto.errors import UsageError
from windlass_worker.metric.sums import Array, Metric, Sums, same_shape


class AUC(Metric):
    """The area under the ROC curve of scores from 0 to 1.

    Labels above 0 are positive (so 0/1 and -1/+1 both do). Predictions of shape (rows, 2) are scores of both classes,
    of which the second counts.

    Args:
        from_logits: scores are any numbers, put through the sigmoid, which keeps their order.
        bins: the state is twice as many numbers.
    """

    def __init__(self, *, from_logits: bool = False, bins: int = 1 << 14, name: str = "auc") -> None:
        if bins < 2:
            raise UsageError("AUC needs two bins or more", bins=bins)
        super().__init__(name, 2 * bins)
        self._from_logits = from_logits
        self._bins = bins

    def measure(self, labels: Array, predictions: Array) -> Sums:
        if predictions.ndim == 2 and predictions.shape[1] == 2 and labels.size == len(predictions):
            predictions = predictions[:, 1]
            if self._from_logits:
                raise UsageError(f"{self.name} needs one logit a row", predictions=(len(predictions), 2))
        truth, scores = (each.reshape(-1) for each in same_shape(self.name, labels, predictions))
        if self._from_logits:
            scores = 0.5 * (1.0 + np.tanh(0.5 * scores))
        wrong = ~((scores >= 0) & (scores <= 1))
        if wrong.any():
            raise UsageError(
                f"{self.name} needs scores from 0 to 1",
                found=scores[wrong][0],
                next_move="Give probabilities, or AUC(from_logits=True).",
            )
        bins = np.minimum((scores * self._bins).astype(np.int64), self._bins - 1)
        return np.bincount(bins + self._bins * (truth > 0), minlength=2 * self._bins).astype(np.float64)

    def value(self, sums: Sums) -> float:
        negatives, positives = sums.reshape(2, self._bins)
        of_all = negatives.sum() * positives.sum()
        if not of_all:
            return math.nan
        below = np.cumsum(negatives) - negatives
        return float(positives @ (below + 0.5 * negatives) / of_all)

    @property
    def error_max(self) -> float:
        """How far the figure may be from that of exact pairs."""
        negatives, positives = self._sums.reshape(2, self._bins)
        of_all = negatives.sum() * positives.sum()
        return float(0.5 * (negatives @ positives) / of_all) if of_all else math.nan
