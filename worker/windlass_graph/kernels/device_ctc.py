"""The loss of connectionist temporal classification on a GPU: `ctc` as CUDA C, a thread for each sequence.

The steps of a sequence hang on each other, so a thread walks them alone; sequences of a batch go at once. It needs
`scratch` for each: the logarithms of probabilities (steps * classes), beginnings of paths (steps * states) and ends of
paths (states), with states = 2 * labels + 1.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import numpy as np

from windlass_graph.kernels.device_windows import OPTIONS, REALS, THREADS

NAME: Final = "ctc"

_SOURCE: Final = """\
typedef long long i64;
typedef {real} real;
#ifndef INFINITY
#define INFINITY __int_as_float(0x7f800000)
#endif

static __device__ inline double log_sum(double one, double other, double third)
{{
    const double larger = one > other ? one : other, largest = larger > third ? larger : third;
    if (largest == -INFINITY)
        return largest;
    return largest + log(exp(one - largest) + exp(other - largest) + exp(third - largest));
}}

static __device__ inline i64 label_of(const int *spelled, i64 s, i64 blank)
{{
    return s % 2 == 0 ? blank : spelled[s / 2];
}}

static __device__ inline bool may_skip(const int *spelled, i64 s)
{{
    return s > 1 && s % 2 == 1 && spelled[s / 2] != spelled[s / 2 - 1];
}}

extern "C" __global__ void ctc(const real *x, const int *labels, const int *input_lengths, const int *label_lengths,
    real *loss, real *to_x, double *scratch, i64 steps_max, i64 batch, i64 classes, i64 labels_max, i64 blank)
{{
    const i64 one = blockIdx.x * (i64)blockDim.x + threadIdx.x;
    if (one >= batch)
        return;
    const int *spelled = labels + one * labels_max;
    const i64 states_max = 2 * labels_max + 1, steps = input_lengths[one], states = 2 * (i64)label_lengths[one] + 1;
    double *scores = scratch + one * (steps_max * (classes + states_max) + states_max);
    double *alpha = scores + steps_max * classes, *beta = alpha + steps_max * states_max;
    for (i64 t = 0; t < steps; ++t) {{
        const real *row = x + (t * batch + one) * classes;
        double largest = row[0], total = 0;
        for (i64 k = 1; k < classes; ++k)
            largest = row[k] > largest ? row[k] : largest;
        for (i64 k = 0; k < classes; ++k)
            total += exp(row[k] - largest);
        for (i64 k = 0; k < classes; ++k)
            scores[t * classes + k] = row[k] - largest - log(total);
    }}
    for (i64 t = 0; t < steps; ++t) {{
        const double *before = alpha + (t - 1) * states_max;
        for (i64 s = 0; s < states; ++s) {{
            double reached = s < 2 ? 0.0 : -INFINITY;
            if (t > 0)
                reached = log_sum(before[s], s > 0 ? before[s - 1] : -INFINITY,
                    may_skip(spelled, s) ? before[s - 2] : -INFINITY);
            alpha[t * states_max + s] = reached + scores[t * classes + label_of(spelled, s, blank)];
        }}
    }}
    double log_p = states == 1 ? 0.0 : -INFINITY;
    if (steps > 0) {{
        const double *last = alpha + (steps - 1) * states_max;
        log_p = log_sum(last[states - 1], states > 1 ? last[states - 2] : -INFINITY, -INFINITY);
    }}
    loss[one] = (real)-log_p;
    for (i64 t = 0; t < steps_max; ++t)
        for (i64 k = 0; k < classes; ++k)
            to_x[(t * batch + one) * classes + k] = 0;
    if (log_p == -INFINITY)
        return;
    for (i64 t = steps - 1; t >= 0; --t) {{
        real *row = to_x + (t * batch + one) * classes;
        const double *later = scores + (t + 1) * classes;
        for (i64 k = 0; k < classes; ++k)
            row[k] = (real)exp(scores[t * classes + k]);
        for (i64 s = 0; s < states; ++s) {{
            if (t == steps - 1) {{
                beta[s] = s >= states - 2 ? 0.0 : -INFINITY;
                continue;
            }}
            double second = -INFINITY, third = -INFINITY;
            if (s + 1 < states)
                second = beta[s + 1] + later[label_of(spelled, s + 1, blank)];
            if (s + 2 < states && may_skip(spelled, s + 2))
                third = beta[s + 2] + later[label_of(spelled, s + 2, blank)];
            beta[s] = log_sum(beta[s] + later[label_of(spelled, s, blank)], second, third);
        }}
        for (i64 s = 0; s < states; ++s) {{
            const i64 k = label_of(spelled, s, blank);
            row[k] = (real)(row[k] - exp(alpha[t * states_max + s] + beta[s] - log_p));
        }}
    }}
}}
"""


def program(dtype: str) -> str:
    """The CUDA C for a dtype."""
    return _SOURCE.format(real=REALS[dtype])


@functools.cache
def _compiled(xp: Any, dtype: str) -> Any:
    return xp.RawKernel(program(dtype), NAME, options=OPTIONS)


def ctc(xp: Any, x: Any, labels: Any, input_lengths: Any, label_lengths: Any, loss: Any, to_x: Any, blank: int) -> None:
    """As `ctc.ctc`; labels and lengths are int32, and were checked."""
    steps, batch, classes = x.shape
    if batch == 0:
        return
    states = 2 * labels.shape[1] + 1
    scratch = xp.empty(batch * (steps * (classes + states) + states), "float64")
    sizes = [np.int64(number) for number in (steps, batch, classes, labels.shape[1], blank)]
    arguments = (x, labels, input_lengths, label_lengths, loss, to_x, scratch, *sizes)
    _compiled(xp, x.dtype.name)((-(-batch // THREADS),), (THREADS,), arguments)
