"""Edges of the loss of connectionist temporal classification."""

from __future__ import annotations

import numpy as np
import pytest

from windlass_graph import autograd, nd
from windlass_graph.array import array_of
from windlass_graph.kernels.ctc import ctc
from windlass_graph.threads import Threads
from windlass_proto.errors import UsageError


def test_labels_that_no_path_can_spell_have_an_infinite_loss_and_no_gradient() -> None:
    x = array_of(np.random.default_rng(0).standard_normal((2, 2, 3)))
    x.attach_grad()
    with autograd.record():
        loss = nd.ctc_loss(x, array_of([[1, 1], [1, 2]]), array_of([2, 2]), array_of([2, 2]))
    loss.backward()
    assert x.grad is not None
    assert np.isinf(np.asarray(loss)).tolist() == [True, False]  # a repeated label needs a blank between
    gradient = np.asarray(x.grad)
    assert not gradient[:, 0].any()
    assert gradient[:, 1].any()


def test_a_long_sequence_neither_underflows_nor_loses_its_gradient() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 1, 20)).astype("float32")
    labels = rng.integers(1, 20, (1, 100)).astype("int32")
    loss, to_x = np.empty(1, "float32"), np.empty_like(x)
    lengths = (np.array([400], "int32"), np.array([100], "int32"))
    ctc(x, labels, *lengths, loss, to_x, 0, Threads(1))
    assert 500 < loss[0] < 2000
    np.testing.assert_allclose(to_x.sum(axis=2), 0, atol=1e-5)  # probabilities less posteriors, both of which sum to 1
    assert np.abs(to_x).max() > 0.1


def test_sequences_shared_among_threads_give_the_bits_of_one() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((60, 32, 100)).astype("float32")
    labels = rng.integers(1, 100, (32, 20)).astype("int32")
    lengths = (rng.integers(40, 61, 32).astype("int32"), rng.integers(0, 21, 32).astype("int32"))
    threads, found = Threads(2), []
    for number in (threads, Threads(1)):
        loss, to_x = np.empty(32, "float32"), np.empty_like(x)
        ctc(x, labels, *lengths, loss, to_x, 0, number)
        found.append((loss, to_x))
    threads.stop()
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("labels", "input_length", "label_length", "blank", "words"),
    [
        ([[3, 1]], 4, 2, 0, "no class, or is the blank"),
        ([[0, 1]], 4, 2, 0, "no class, or is the blank"),
        ([[1, 2]], 5, 2, 0, "input_lengths lie outside"),
        ([[1, 2]], 4, 3, 0, "label_lengths lie outside"),
        ([[1, 2]], 4, 2, 3, "the blank is a class"),
    ],
)
def test_labels_and_lengths_out_of_range_are_refused(
    labels: list[list[int]], input_length: int, label_length: int, blank: int, words: str
) -> None:
    x = array_of(np.zeros((4, 1, 3)))
    with pytest.raises(UsageError, match=words):
        nd.ctc_loss(x, array_of(labels), array_of([input_length]), array_of([label_length]), blank=blank)


def test_what_is_padded_behind_the_labels_is_not_looked_at() -> None:
    x = array_of(np.random.default_rng(0).standard_normal((4, 1, 3)))
    found = [
        np.asarray(nd.ctc_loss(x, array_of([[1, padding]]), array_of([4]), array_of([1]))) for padding in (-1, 0, 2, 99)
    ]
    assert len({float(one[0]) for one in found}) == 1
