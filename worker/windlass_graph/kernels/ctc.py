"""The loss of connectionist temporal classification and its gradient: all alignments of a label sequence at once.

    loss = -log sum over paths that spell the labels of prod_t softmax(x[t])[path[t]]

A path spells labels when they are left after its repetitions and then its blanks are taken out. With the labels
interleaved with blanks, l', of length S = 2 * labels + 1:

    alpha[t, s] = log p[t, l'[s]] + logsum(alpha[t - 1, s], alpha[t - 1, s - 1], alpha[t - 1, s - 2] where it may skip)
    dx[t, k]    = softmax(x[t])[k] - sum over s with l'[s] = k of exp(alpha[t, s] + beta[t, s] - log p[t, k] + loss)

Source: Graves, Fernandez, Gomez, Schmidhuber, "Connectionist temporal classification", ICML 2006, sections 4.1 and 4.2,
in logarithms where they rescale. Labels that no path of that length can spell have an infinite loss and no gradient.

Invariant: inside everything is float64, as logarithms of long products are; steps beyond an input's length get zeros.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from windlass_graph.kernels.loops import Array, loop
from windlass_graph.threads import Threads


def ctc(
    x: Array,
    labels: Array,
    input_lengths: Array,
    label_lengths: Array,
    loss: Array,
    to_x: Array,
    blank: int,
    threads: Threads,
) -> None:
    """Write `loss` (batch) and its gradient `to_x`, as x (steps, batch, classes); the others are int32."""

    def work(begin: int, end: int) -> None:
        scores = np.empty((x.shape[0], x.shape[2]))
        alpha = np.empty((x.shape[0], 2 * labels.shape[1] + 1))
        _ctc(x, labels, input_lengths, label_lengths, loss, to_x, scores, alpha, alpha[0].copy(), blank, begin, end)

    threads.share(work, x.shape[1], 8 * x.nbytes)


def _inlined(function: Callable[..., Any]) -> Any:
    return numba.njit(forceinline=True, error_model="numpy")(function)


@_inlined
def _log_sum(one: float, other: float, third: float) -> Any:
    """log(exp(one) + exp(other) + exp(third))."""
    largest = max(one, other, third)
    if largest == -np.inf:
        return largest
    return largest + math.log(math.exp(one - largest) + math.exp(other - largest) + math.exp(third - largest))


@_inlined
def _label(spelled: Any, s: int, blank: int) -> Any:
    """l'[s]: blanks at even places, labels between."""
    return blank if s % 2 == 0 else spelled[s // 2]


@_inlined
def _may_skip(spelled: Any, s: int) -> Any:
    """Whether a path may go from s - 2 to s: over a blank between labels that differ."""
    return s > 1 and s % 2 == 1 and spelled[s // 2] != spelled[s // 2 - 1]


@_inlined
def _log_softmax(x: Any, one: int, steps: int, scores: Any) -> None:
    for t in range(steps):
        largest, total = x[t, one, 0], 0.0
        for k in range(x.shape[2]):
            largest = max(largest, x[t, one, k])
        for k in range(x.shape[2]):
            total += math.exp(x[t, one, k] - largest)
        for k in range(x.shape[2]):
            scores[t, k] = x[t, one, k] - largest - math.log(total)


@_inlined
def _fill_alpha(alpha: Any, scores: Any, spelled: Any, steps: int, states: int, blank: int) -> Any:
    """Beginnings of paths up to each step; answers with the logarithm of all whole paths' probability."""
    for t in range(steps):
        for s in range(states):
            if t == 0:
                reached = 0.0 if s < 2 else -np.inf
            else:
                second = alpha[t - 1, s - 1] if s > 0 else -np.inf
                third = alpha[t - 1, s - 2] if _may_skip(spelled, s) else -np.inf
                reached = _log_sum(alpha[t - 1, s], second, third)
            alpha[t, s] = reached + scores[t, _label(spelled, s, blank)]
    if steps == 0:
        return 0.0 if states == 1 else -np.inf
    return _log_sum(alpha[steps - 1, states - 1], alpha[steps - 1, states - 2] if states > 1 else -np.inf, -np.inf)


@_inlined
def _move_beta(beta: Any, scores: Any, spelled: Any, states: int, blank: int) -> None:
    """From the ends of paths after the step of `scores` to those that begin with it, in place.

    What a state needs lies at its own place and above, so they are taken upwards.
    """
    for s in range(states):
        second, third = -np.inf, -np.inf
        if s + 1 < states:
            second = beta[s + 1] + scores[_label(spelled, s + 1, blank)]
        if s + 2 < states and _may_skip(spelled, s + 2):
            third = beta[s + 2] + scores[_label(spelled, s + 2, blank)]
        beta[s] = _log_sum(beta[s] + scores[_label(spelled, s, blank)], second, third)


@loop("r3 i2 i1 i1 R1 R3 D2 D2 D1 n n n")
def _ctc(
    x: Array,
    labels: Array,
    input_lengths: Array,
    label_lengths: Array,
    loss: Array,
    to_x: Array,
    scores: Array,
    alpha: Array,
    beta: Array,
    blank: int,
    begin: int,
    end: int,
) -> None:
    """`scores`, `alpha` and `beta` are for logarithms of probabilities, of path beginnings and of path ends."""
    for one in range(begin, end):
        steps, spelled, states = input_lengths[one], labels[one], 2 * label_lengths[one] + 1
        _log_softmax(x, one, steps, scores)
        log_p = _fill_alpha(alpha, scores, spelled, steps, states, blank)
        loss[one] = -log_p
        for t in range(x.shape[0]):
            to_x[t, one, :] = 0
        if log_p == -np.inf:
            continue
        for t in range(steps - 1, -1, -1):
            row = to_x[t, one]
            for k in range(x.shape[2]):
                row[k] = math.exp(scores[t, k])
            if t == steps - 1:
                for s in range(states):
                    beta[s] = 0.0 if s >= states - 2 else -np.inf
            else:
                _move_beta(beta, scores[t + 1], spelled, states, blank)
            for s in range(states):
                row[_label(spelled, s, blank)] -= math.exp(alpha[t, s] + beta[s] - log_p)
