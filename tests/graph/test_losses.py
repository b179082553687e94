"""Losses by hand in NumPy, their weights and reductions, on arrays and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_proto.errors import UsageError

RANDOM = np.random.default_rng(0)
P = RANDOM.normal(size=(4, 3)).astype(np.float32)
Y = RANDOM.normal(size=(4, 3)).astype(np.float32)
SIGNS = np.where(Y > 0, 1, -1).astype(np.float32)
BITS = (Y > 0).astype(np.float32)
CLASSES = np.array([0, 2, 1, 2])
LOG_P = P - np.log(np.exp(P).sum(axis=1, keepdims=True))
SHARES = np.exp(Y) / np.exp(Y).sum(axis=1, keepdims=True)
COUNTS = np.array([[0, 1, 2], [3, 0, 1], [5, 2, 2], [1, 1, 7]], np.float32)
SIGMOID = 1 / (1 + np.exp(-P))


def stirling(counts: Any) -> Any:
    above = np.maximum(counts, 1)
    return np.where(counts > 1, above * np.log(above) - above + 0.5 * np.log(2 * np.pi * above), 0)


def huber(rho: float) -> Any:
    d = np.abs(P - Y)
    return np.where(d > rho, d - rho / 2, d * d / 2 / rho).mean(axis=1)


L = wl.loss
CASES: list[tuple[Any, tuple[Any, ...], Any]] = [
    (L.L1(), (P, Y), np.abs(P - Y).mean(axis=1)),
    (L.L2(), (P, Y), np.square(P - Y).mean(axis=1) / 2),
    (L.L2(weight=3.0), (P, Y), np.square(P - Y).mean(axis=1) * 1.5),
    (L.L2(batch_axis=1), (P, Y), np.square(P - Y).mean(axis=0) / 2),
    (L.SoftmaxCrossEntropy(), (P, CLASSES), -LOG_P[range(4), CLASSES]),
    (L.SoftmaxCrossEntropy(), (P, CLASSES[:, None]), -LOG_P[range(4), CLASSES]),
    (L.SoftmaxCrossEntropy(from_logits=True), (LOG_P, CLASSES), -LOG_P[range(4), CLASSES]),
    (L.SoftmaxCrossEntropy(sparse_label=False), (P, SHARES), -(LOG_P * SHARES).sum(axis=1)),
    (L.SigmoidBinaryCrossEntropy(), (P, BITS), -np.where(BITS, np.log(SIGMOID), np.log(1 - SIGMOID)).mean(axis=1)),
    (
        L.SigmoidBinaryCrossEntropy(from_sigmoid=True),
        (SIGMOID, BITS),
        -np.where(BITS, np.log(SIGMOID), np.log(1 - SIGMOID)).mean(axis=1),
    ),
    (L.KLDiv(), (LOG_P, SHARES), (SHARES * (np.log(SHARES) - LOG_P)).mean(axis=1)),
    (L.KLDiv(from_logits=False), (P, SHARES), (SHARES * (np.log(SHARES) - LOG_P)).mean(axis=1)),
    (L.Huber(), (P, Y), huber(1)),
    (L.Huber(0.3), (P, Y), huber(0.3)),
    (L.Hinge(), (P, SIGNS), np.maximum(0, 1 - P * SIGNS).mean(axis=1)),
    (L.SquaredHinge(2.0), (P, SIGNS), np.square(np.maximum(0, 2 - P * SIGNS)).mean(axis=1)),
    (L.Logistic(), (P, SIGNS), np.log1p(np.exp(-P * SIGNS)).mean(axis=1)),
    (L.Logistic("binary"), (P, BITS), np.log1p(np.exp(-P * SIGNS)).mean(axis=1)),
    (
        L.Triplet(0.5),
        (P, Y, SIGNS),
        np.maximum(0, (np.square(P - Y) - np.square(P - SIGNS)).sum(axis=1) + 0.5),
    ),
    (L.PoissonNLL(), (P, COUNTS), (np.exp(P) - COUNTS * P).mean(axis=1)),
    (
        L.PoissonNLL(from_logits=False, compute_full=True),
        (np.exp(P), COUNTS),
        (np.exp(P) - COUNTS * P + stirling(COUNTS)).mean(axis=1),
    ),
]


@pytest.mark.parametrize(("loss", "inputs", "expected"), CASES, ids=[type(case[0]).__name__ for case in CASES])
def test_a_loss_is_one_number_a_sample(loss: Any, inputs: tuple[Any, ...], expected: Any) -> None:
    for hybrid in (False, True):
        loss.hybridize(hybrid)
        found = loss(*inputs).numpy()
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
        assert found.shape == expected.shape


def test_cosines_are_compared_by_label() -> None:
    label = np.array([1, -1, 1, -1])
    cosine = (P * Y).sum(axis=1) / np.linalg.norm(P, axis=1) / np.linalg.norm(Y, axis=1)
    found = L.CosineEmbedding(0.1)(P, Y, label).numpy()
    np.testing.assert_allclose(found, np.where(label > 0, 1 - cosine, np.maximum(0, cosine - 0.1)), rtol=1e-5)


def test_classes_may_lie_along_another_axis() -> None:
    scores = RANDOM.normal(size=(2, 3, 4)).astype(np.float32)
    labels = RANDOM.integers(0, 3, size=(2, 4))
    log_p = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    expected = -np.take_along_axis(log_p, labels[:, None], axis=1)[:, 0].mean(axis=1)
    found = L.SoftmaxCrossEntropy(axis=1)(scores, labels).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3)])
def test_sample_weights_multiply_before_the_mean(shape: tuple[int, ...]) -> None:
    weights = np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    spread = weights.reshape(4, -1)
    found = L.L1()(P, Y, weights).numpy()
    np.testing.assert_allclose(found, (np.abs(P - Y) * spread).mean(axis=1), rtol=1e-5)


def test_positive_labels_can_weigh_more() -> None:
    weights = np.array([1, 2, 3], np.float32)
    expected = -np.where(BITS, weights * np.log(SIGMOID), np.log(1 - SIGMOID)).mean(axis=1)
    loss = L.SigmoidBinaryCrossEntropy()
    np.testing.assert_allclose(loss(P, BITS, None, weights).numpy(), expected, rtol=1e-5)
    again = L.SigmoidBinaryCrossEntropy(from_sigmoid=True)
    np.testing.assert_allclose(again(SIGMOID, BITS, None, weights).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("loss", [L.SigmoidBinaryCrossEntropy(), L.Logistic("binary")])
def test_no_score_is_too_large(loss: Any) -> None:
    found = loss(np.array([[500.0], [-500.0], [500.0]], np.float32), np.array([1, 1, 0], np.float32)).numpy()
    np.testing.assert_allclose(found, [0, 500, 500])


def test_labels_of_a_vector_do_not_broadcast_against_scores_of_a_column() -> None:
    found = L.L2()(np.zeros((3, 1), np.float32), np.array([1, 2, 3], np.float32)).numpy()
    np.testing.assert_allclose(found, [0.5, 2, 4.5])
    with pytest.raises(UsageError, match="reshape_like"):
        L.L2()(np.zeros((3, 1), np.float32), np.zeros(4, np.float32))


SMOOTH = [case for case in CASES if not type(case[0]).__name__.startswith(("L1", "Hinge"))]


@pytest.mark.parametrize(("loss", "inputs", "expected"), SMOOTH, ids=[type(case[0]).__name__ for case in SMOOTH])
def test_gradients_of_losses_are_those_of_finite_differences(loss: Any, inputs: tuple[Any, ...], expected: Any) -> None:
    loss.hybridize(False)
    prediction = wl.nd.array(inputs[0].astype(np.float64))
    rest = [each.astype(np.float64) if each.dtype.kind == "f" else each for each in inputs[1:]]
    prediction.attach_grad()
    with wl.autograd.record():
        total = loss(prediction, *rest).sum()
    total.backward()
    found = prediction.grad.numpy()  # type: ignore[union-attr]
    for at in np.ndindex(*inputs[0].shape):
        sums = []
        for step in (1e-6, -1e-6):
            moved = inputs[0].astype(np.float64)
            moved[at] += step
            sums.append(float(loss(wl.nd.array(moved), *rest).sum()))
        assert found[at] == pytest.approx((sums[0] - sums[1]) / 2e-6, rel=1e-4, abs=1e-6)


def test_a_loss_of_ones_own_is_reduced_like_the_others() -> None:
    class Cubic(L.Paired):
        def elements(self, prediction: Any, label: Any) -> Any:
            return abs(prediction - label) ** 3

    np.testing.assert_allclose(Cubic(weight=2.0)(P, Y).numpy(), 2 * (np.abs(P - Y) ** 3).mean(axis=1), rtol=1e-5)
    with pytest.raises(UsageError, match="Did you mean"):
        L.Logistic("binry")
    with pytest.raises(UsageError, match="Did you mean SoftmaxCrossEntropy"):
        L.SoftmaxCrossEntropyLoss  # type: ignore[attr-defined]  # noqa: B018
