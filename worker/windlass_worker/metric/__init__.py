"""Metrics: figures of merit over a data set, batch by batch, that workers can add up.

    accuracy = wl.metric.Accuracy()
    for x, y in loader:
        accuracy.update(y, model(x))
    name, value = accuracy.get()

Every metric is a vector of sums and a formula over it (`Metric`), so the metric of several workers is the formula over
the sum of their vectors: `state()` is such a vector, `merge` adds one.
"""

from __future__ import annotations

from windlass_worker.metric.classes import F1, MCC, Accuracy, TopKAccuracy
from windlass_worker.metric.distances import MAE, MSE, RMSE, PearsonCorrelation
from windlass_worker.metric.likelihoods import CrossEntropy, NegativeLogLikelihood, Perplexity
from windlass_worker.metric.ranking import AUC
from windlass_worker.metric.sums import Composite, Custom, Loss, Metric, figures_of

__all__ = [
    "AUC",
    "F1",
    "MAE",
    "MCC",
    "MSE",
    "RMSE",
    "Accuracy",
    "Composite",
    "CrossEntropy",
    "Custom",
    "Loss",
    "Metric",
    "NegativeLogLikelihood",
    "PearsonCorrelation",
    "Perplexity",
    "TopKAccuracy",
    "figures_of",
]
