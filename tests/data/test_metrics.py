"""Metrics against values worked out by hand, or by their definition over all pairs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import windlass as wl
from windlass_proto.errors import UsageError

metric = wl.metric
untyped: Any = metric

# labels and choices of ten rows in three classes; the table of class met (down) by class chosen:
#   0: 2 1 0    1: 1 3 0    2: 0 1 2
TRUTH = np.array([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])
CHOSEN = np.array([0, 0, 1, 0, 1, 1, 1, 1, 2, 2])
SCORES = np.eye(3, dtype=np.float32)[CHOSEN]
# one true positive of two, one false positive of three negatives
BINARY = (np.array([1, 1, 0, 0, 0]), np.array([1, 0, 1, 0, 0]))
PROBABILITIES = np.array([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]])
NUMBERS = (np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 4.0, 2.0, 4.0]))  # errors 0, -2, 1, 0

BY_HAND: list[tuple[Callable[[], Any], Any, Any, float]] = [
    (metric.Accuracy, TRUTH, CHOSEN, 0.7),
    (metric.Accuracy, TRUTH, SCORES, 0.7),
    (metric.Accuracy, TRUTH[:, None], SCORES, 0.7),
    (lambda: metric.Accuracy(ignore_label=1), TRUTH, SCORES, 4 / 6),
    (lambda: metric.Accuracy(threshold=0.5), [0, 1, 1, 0], [[0.2], [0.5], [0.4], [0.1]], 0.75),
    (lambda: metric.TopKAccuracy(1), TRUTH, SCORES, 0.7),
    # of the wrong rows, at a tie of two zeros, the smaller class is second: classes 0 (row 3) but not 2 (row 7)
    (lambda: metric.TopKAccuracy(2), TRUTH, SCORES, 0.9),
    (lambda: metric.TopKAccuracy(3), TRUTH, SCORES, 1.0),
    (metric.F1, *BINARY, 2 * 1 / (2 * 1 + 1 + 1)),
    (lambda: metric.F1("macro", classes=3), TRUTH, CHOSEN, (4 / 6 + 6 / 9 + 4 / 5) / 3),
    (lambda: metric.F1("micro", classes=3), TRUTH, CHOSEN, 0.7),
    (lambda: metric.F1("macro", classes=4), TRUTH, CHOSEN, (4 / 6 + 6 / 9 + 4 / 5) / 4),
    # (tp tn - fp fn) / sqrt((tp+fp)(tp+fn)(tn+fp)(tn+fn)) = (1*2 - 1*1) / sqrt(2*2*3*3)
    (metric.MCC, *BINARY, 1 / 6),
    # seven hits of ten; chosen 3, 5, 2 times and met 3, 4, 3 times, whose squares sum to 38 and 34
    (lambda: metric.MCC(classes=3), TRUTH, CHOSEN, 35 / math.sqrt(62 * 66)),
    (metric.MCC, [1, 0, 1], [1, 1, 1], 0.0),
    (metric.MAE, *NUMBERS, 0.75),
    (metric.MSE, *NUMBERS, 1.25),
    (metric.RMSE, *NUMBERS, math.sqrt(1.25)),
    (metric.MAE, NUMBERS[0], NUMBERS[1][:, None], 0.75),
    (metric.CrossEntropy, [0, 1], PROBABILITIES, -(math.log(0.5) + math.log(0.75)) / 2),
    (lambda: metric.CrossEntropy(from_logits=True), [0, 1], 7 + np.log(PROBABILITIES), -math.log(0.375) / 2),
    (lambda: metric.CrossEntropy(ignore_label=-1), [0, -1], PROBABILITIES, math.log(2)),
    (metric.CrossEntropy, [0], [[0.0, 1.0]], -math.log(1e-12)),
    (metric.NegativeLogLikelihood, [0, 1], np.log(PROBABILITIES), -math.log(0.375) / 2),
    (lambda: metric.Perplexity(ignore_label=0), [0, 1], PROBABILITIES, 4 / 3),
    (metric.Perplexity, [0, 2], [[0.25] * 4, [0.25] * 4], 4.0),
    (metric.PearsonCorrelation, [1.0, 2.0, 3.0], [2.0, 4.0, 6.0], 1.0),
    # deviations (-1, 0, 1) and (1, -2, 1): no correlation; (-1, 0, 1) and (-1/3, -1/3, 2/3): 1 / sqrt(2 * 2/3)
    (metric.PearsonCorrelation, [1.0, 2.0, 3.0], [3.0, 0.0, 3.0], 0.0),
    (metric.PearsonCorrelation, [1.0, 2.0, 3.0], [0.0, 0.0, 1.0], math.sqrt(3) / 2),
    # pairs (positive, negative): .8>.1, .8>.4, .8>.7, .4>.1, .4=.4, .4<.7
    (metric.AUC, [1, -1, 1, -1, -1], [0.8, 0.1, 0.4, 0.4, 0.7], 4.5 / 6),
    (metric.AUC, [1, 0], [[0.1, 0.9], [0.8, 0.2]], 1.0),
    (lambda: metric.AUC(from_logits=True), [1, 0, 0], [3.0, -5.0, 4.0], 0.5),
    (metric.Loss, [0, 0, 0], [1.0, 2.0, 6.0], 3.0),
    (lambda: metric.Custom(lambda y, p: float(abs(y - p).max())), *NUMBERS, 2.0),
    (lambda: metric.Custom(lambda y, p: (abs(y - p).sum(), 2)), *NUMBERS, 1.5),
]


@pytest.mark.parametrize(("make", "labels", "predictions", "expected"), BY_HAND)
def test_a_metric_is_what_its_formula_gives_by_hand(
    make: Callable[[], Any], labels: Any, predictions: Any, expected: float
) -> None:
    one = make()
    one.update(labels, predictions)
    assert one.get()[1] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("make", "labels", "predictions", "expected"), BY_HAND[:-2])  # but for functions
def test_states_of_parts_add_up_to_the_whole(
    make: Callable[[], Any], labels: Any, predictions: Any, expected: float
) -> None:
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    parts, whole, late = [make(), make()], make(), make()
    parts[0].update(labels[:1], predictions[:1])
    parts[1].update(labels[1:], predictions[1:])
    whole.update(labels, predictions)
    late.merge(parts[0].state() + parts[1].state())
    assert late.get()[1] == pytest.approx(expected, abs=1e-12)
    parts[0].merge(parts[1].state())
    assert np.array_equal(parts[0].state(), late.state())
    late.reset()
    assert not late.state().any()
    assert math.isnan(late.get()[1])


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 64)), min_size=2, max_size=40).filter(
        lambda rows: len({positive for positive, _ in rows}) == 2
    )
)
def test_auc_is_the_share_of_ordered_pairs_where_no_bin_holds_two_scores(rows: list[tuple[bool, int]]) -> None:
    positives = [score for positive, score in rows if positive]
    negatives = [score for positive, score in rows if not positive]
    pairs = [(p > n) + 0.5 * (p == n) for p in positives for n in negatives]
    auc = metric.AUC()
    auc.update([int(positive) for positive, _ in rows], [score / 64 for _, score in rows])
    assert auc.get()[1] == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_auc_with_few_bins_is_within_its_stated_error() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 400)
    scores = np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1)
    above, below = scores[labels == 1][:, None], scores[labels == 0]
    exact = ((above > below) + 0.5 * (above == below)).mean()
    for bins in (8, 64, 1024):
        auc = metric.AUC(bins=bins)
        auc.update(labels, scores)
        assert abs(auc.get()[1] - exact) <= auc.error_max < 0.6 / bins * 4


def test_correlation_of_values_far_from_zero_keeps_half_the_digits() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=1000)
    y = x + rng.normal(size=1000)
    near, far = metric.PearsonCorrelation(), metric.PearsonCorrelation()
    near.update(x, y)
    far.update(x + 1e4, y + 1e4)
    assert far.get()[1] == pytest.approx(near.get()[1], abs=1e-6)
    assert near.get()[1] == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-12)


def test_lists_of_arrays_are_outputs_and_lists_of_numbers_are_one_array() -> None:
    one, several = metric.Accuracy(), metric.Accuracy()
    one.update([0, 1, 1], [0, 1, 0])
    several.update([np.array([0, 1]), np.array([1])], [np.array([0, 1]), np.array([0])])
    assert one.get() == several.get() == ("accuracy", 2 / 3)
    with pytest.raises(UsageError, match="not as many"):
        one.update([np.array([0])], np.array([[0.5, 0.5]]))


def test_what_has_an_array_is_taken() -> None:
    class Wrapped:
        def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
            return CHOSEN

    accuracy = metric.Accuracy()
    accuracy.update(TRUTH, Wrapped())
    assert accuracy.get()[1] == 0.7


def test_images_have_their_classes_on_axis_one() -> None:
    labels = np.array([[[0, 1], [1, 1]]])
    scores = np.stack([labels == 0, labels == 1], 1).astype(np.float32)
    scores[0, :, 1, 1] = [1, 0]
    for one in (metric.Accuracy(), metric.TopKAccuracy(1)):
        one.update(labels, scores)
        assert one.get()[1] == 0.75
    entropy = metric.CrossEntropy()
    entropy.update(labels, np.full((1, 2, 2, 2), 0.5))
    assert entropy.get()[1] == pytest.approx(math.log(2))


def test_a_composite_gives_all_and_merges_all() -> None:
    def both() -> Any:
        return metric.Composite(metric.Accuracy(), metric.F1("micro", classes=3, name="f"))

    left, right = both(), both()
    left.update(TRUTH[:4], CHOSEN[:4])
    right.update(TRUTH[4:], CHOSEN[4:])
    right.merge(left.state())
    assert right.get() == (["accuracy", "f"], [pytest.approx(0.7), pytest.approx(0.7)])
    right.reset()
    assert all(math.isnan(value) for value in right.get()[1])
    with pytest.raises(UsageError, match="cannot merge"):
        left.merge(np.zeros(3))


def test_a_metric_of_ones_own_defines_measure_and_value() -> None:
    class Largest(metric.Metric):
        def measure(self, labels: Any, predictions: Any) -> list[float]:
            return [float((predictions > 2).sum()), len(predictions)]

        def value(self, sums: Any) -> float:
            return float(sums[0] / sums[1])

    one = Largest("largest", 2)
    one.update([0, 0], [1, 3])
    one.update([0, 0], [4, 3])
    assert one.get() == ("largest", 0.75)


@pytest.mark.parametrize(
    ("make", "labels", "predictions", "said"),
    [
        (metric.Accuracy, [0, 1], [0, 1, 1], "labels=\\(2,\\), predictions=\\(3,\\)"),
        (metric.Accuracy, [0, 1], [0.2, 0.7], "class numbers"),
        (lambda: metric.F1("macro", classes=2), [0, 2], [0, 1], "found=2, classes=2"),
        (lambda: metric.TopKAccuracy(5), [0], [[0.1, 0.9]], "k=5, classes=2"),
        (lambda: metric.TopKAccuracy(1), [2], [[0.1, 0.9]], "found=2, classes=2"),
        (metric.MSE, [1.0, 2.0], [1.0], "one shape"),
        (metric.AUC, [1, 0], [0.5, 1.5], "found=1.5.*from_logits"),
        (metric.AUC, [1, 0], [0.5, math.nan], "found=nan"),
        (metric.CrossEntropy, [0, 1], [0.5, 0.5], "score for every class"),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(
    make: Callable[[], Any], labels: Any, predictions: Any, said: str
) -> None:
    one = make()
    with pytest.raises(UsageError, match=said):
        one.update(labels, predictions)
    assert not one.state().any()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: metric.TopKAccuracy(0), "k=0"),
        (lambda: untyped.F1("marco"), "Did you mean macro"),
        (lambda: metric.F1("binary", classes=3), "two classes"),
        (lambda: metric.AUC(bins=1), "bins=1"),
        (metric.Composite, "no metric"),
    ],
)
def test_a_wrong_argument_is_refused_in_words(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make()
