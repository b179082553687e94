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
    classes = x.shape[2]
    for one in range(begin, end):
        steps, spelled, states = input_lengths[one], labels[one], 2 * label_lengths[one] + 1
        for t in range(steps):
            largest, total = x[t, one, 0], 0.0
            for k in range(classes):
                largest = max(largest, x[t, one, k])
            for k in range(classes):
                total += math.exp(x[t, one, k] - largest)
            for k in range(classes):
                scores[t, k] = x[t, one, k] - largest - math.log(total)
        for t in range(steps):
            for s in range(states):
                label = blank if s % 2 == 0 else spelled[s // 2]
                if t == 0:
                    reached = 0.0 if s < 2 else -np.inf
                else:
                    top, second, third = alpha[t - 1, s], -np.inf, -np.inf
                    if s > 0:
                        second = alpha[t - 1, s - 1]
                    if s > 1 and s % 2 == 1 and spelled[s // 2] != spelled[s // 2 - 1]:
                        third = alpha[t - 1, s - 2]
                    top = max(top, second, third)
                    reached = top
                    if top > -np.inf:
                        reached += math.log(
                            math.exp(alpha[t - 1, s] - top) + math.exp(second - top) + math.exp(third - top)
                        )
                alpha[t, s] = reached + scores[t, label]
        log_p = -np.inf if states > 1 or steps > 0 else 0.0
        if steps > 0:
            top = alpha[steps - 1, states - 1]
            other = alpha[steps - 1, states - 2] if states > 1 else -np.inf
            largest_end = max(top, other)
            if largest_end > -np.inf:
                log_p = largest_end + math.log(math.exp(top - largest_end) + math.exp(other - largest_end))
        loss[one] = -log_p
        for t in range(x.shape[0]):
            to_x[t, one, :] = 0
        if log_p == -np.inf:
            continue
        for t in range(steps - 1, -1, -1):
            row = to_x[t, one]
            for k in range(classes):
                row[k] = math.exp(scores[t, k])
            # beta[s] becomes that of step t in place: what it needs of step t + 1 lies at s and above, so s goes up.
            for s in range(states):
                if t == steps - 1:
                    beta[s] = 0.0 if s >= states - 2 else -np.inf
                else:
                    first = beta[s] + scores[t + 1, blank if s % 2 == 0 else spelled[s // 2]]
                    second, third = -np.inf, -np.inf
                    if s + 1 < states:
                        second = beta[s + 1] + scores[t + 1, blank if s % 2 == 1 else spelled[s // 2]]
                    if s + 2 < states and s % 2 == 1 and spelled[s // 2] != spelled[s // 2 + 1]:
                        third = beta[s + 2] + scores[t + 1, spelled[s // 2 + 1]]
                    top = max(first, second, third)
                    beta[s] = top
                    if top > -np.inf:
                        beta[s] += math.log(math.exp(first - top) + math.exp(second - top) + math.exp(third - top))
                label = blank if s % 2 == 0 else spelled[s // 2]
                row[label] -= math.exp(alpha[t, s] + beta[s] - log_p)
