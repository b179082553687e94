"""Metrics of numbers: mean absolute and squared errors, and Pearson's correlation.

Labels and predictions have one shape, but for a last axis of one; the mean is over every number.
"""

from __future__ import annotations

import math

import numpy as np

from windlass_worker.metric.sums import Array, Metric, Sums, ratio, same_shape


class MAE(Metric):
    """The mean of |label - prediction|."""

    def __init__(self, name: str = "mae") -> None:
        super().__init__(name, 2)

    def measure(self, labels: Array, predictions: Array) -> list[float]:
        a, b = same_shape(self.name, labels, predictions)
        return [float(np.abs(a - b).sum()), a.size]

    def value(self, sums: Sums) -> float:
        return ratio(sums[0], sums[1])


class MSE(Metric):
    """The mean of (label - prediction)^2."""

    def __init__(self, name: str = "mse") -> None:
        super().__init__(name, 2)

    def measure(self, labels: Array, predictions: Array) -> list[float]:
        a, b = same_shape(self.name, labels, predictions)
        return [float(np.square(a - b).sum()), a.size]

    def value(self, sums: Sums) -> float:
        return ratio(sums[0], sums[1])


class RMSE(MSE):
    """The root of `MSE` over all rows, not a mean of the batches' roots."""

    def __init__(self, name: str = "rmse") -> None:
        super().__init__(name)

    def value(self, sums: Sums) -> float:
        return math.sqrt(super().value(sums))


class PearsonCorrelation(Metric):
    """The linear correlation of labels and predictions, from -1 to 1; nan where one of them is constant.

    Its state is n and the sums of x, y, xx, yy and xy, so that it adds up. Values whose mean is 10^k times their
    spread lose 2k of float64's 16 digits.
    """

    def __init__(self, name: str = "pearson") -> None:
        super().__init__(name, 6)

    def measure(self, labels: Array, predictions: Array) -> list[float]:
        x, y = (each.reshape(-1) for each in same_shape(self.name, labels, predictions))
        return [x.size, float(x.sum()), float(y.sum()), float(x @ x), float(y @ y), float(x @ y)]

    def value(self, sums: Sums) -> float:
        n, x, y, xx, yy, xy = sums
        spread_x, spread_y = n * xx - x * x, n * yy - y * y
        if spread_x <= 0 or spread_y <= 0:
            return math.nan
        return float((n * xy - x * y) / math.sqrt(spread_x) / math.sqrt(spread_y))
