"""Recurrent layers, against their equations one step and one sample at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.graph.op_case import OpCase, Values, drawn

STEPS, BATCH, FEATURES, UNITS = 3, 2, 3, 2
GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def _sigmoid(x: Values) -> Values:
    found: Values = 1 / (1 + np.exp(-x))
    return found


def stepwise(kind: str, *ins: Values, reverse: bool = False, activation: str = "tanh", **_: Any) -> Any:
    x, w, u, b, d, *states = ins
    units = u.shape[1]
    out, cell = np.zeros((len(x), x.shape[1], units)), np.zeros((x.shape[1], units))
    for sample in range(x.shape[1]):
        h = states[0][sample] if states else np.zeros(units)
        c = states[1][sample] if len(states) > 1 else np.zeros(units)
        for t in range(len(x))[:: -1 if reverse else 1]:
            a, k = w @ x[t, sample] + b, u @ h + d
            if kind == "rnn":
                h = np.tanh(a + k) if activation == "tanh" else np.maximum(a + k, 0)
            elif kind == "lstm":
                i, f, g, o = np.split(a + k, 4)
                c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
                h = _sigmoid(o) * np.tanh(c)
            else:
                r, z = np.split(_sigmoid(a + k)[: 2 * units], 2)
                n = np.tanh(a[2 * units :] + r * k[2 * units :])
                h = (1 - z) * n + z * h
            out[t, sample] = h
        cell[sample] = c
    return (out, cell) if kind == "lstm" else out


def inputs(kind: str, *, states: bool) -> tuple[Values, ...]:
    rows = GATES[kind] * UNITS
    given = [drawn(STEPS, BATCH, FEATURES), drawn(rows, FEATURES, seed=1), drawn(rows, UNITS, seed=2),
             drawn(rows, seed=3), drawn(rows, seed=4)]  # fmt: skip
    if states:
        given += [drawn(BATCH, UNITS, seed=5 + k) for k in range(2 if kind == "lstm" else 1)]
    return tuple(given)


def _case(kind: str, *, states: bool, **attrs: Any) -> OpCase:
    given = inputs(kind, states=states)
    attrs |= {"units": UNITS, "use_state": states}
    by = tuple(range(len(given)))
    return OpCase(kind, given, lambda *ins, **given: stepwise(kind, *ins, **given), attrs, by=by, second=False)


def _of_one_step(kind: str) -> OpCase:
    """The gradient op by itself, where it is short enough to write down: an rnn of one step, all else in test_ops."""
    x, w, u, *_ = inputs(kind, states=False)
    out, by_out = drawn(1, BATCH, UNITS, seed=8), drawn(1, BATCH, UNITS, seed=9)

    def expected(by_out: Values, by_c: Values, x: Values, w: Values, u: Values, out: Values, *_: Any, **__: Any) -> Any:
        g = (by_out * (1 - out**2))[0]
        zeros = np.zeros((BATCH, UNITS))
        return (g @ w)[None], g.T @ x[0], np.zeros(u.shape), g.sum(axis=0), g.sum(axis=0), g @ u, zeros

    given = (by_out, by_out, x[:1], w, u, out, drawn(1, BATCH, UNITS), np.zeros((0, BATCH, UNITS)))
    return OpCase("rnn_gradient", given, expected, {"units": UNITS})


def _gradient_of(kind: str) -> OpCase:
    """That it runs on both fronts alike; that it is right, the cases of the layer say."""
    x, w, u, *_ = inputs(kind, states=False)
    out, gates = drawn(STEPS, BATCH, UNITS), drawn(STEPS, BATCH, GATES[kind] * UNITS)
    given = (out, drawn(BATCH, UNITS) if kind == "lstm" else out, x, w, u, out, gates, out)
    return OpCase(f"{kind}_gradient", given, None, {"units": UNITS})


CASES = [
    *(
        _case(kind, states=states, reverse=reverse)
        for kind in GATES
        for states, reverse in ((True, False), (False, True))
    ),
    _case("rnn", states=True, activation="relu"),
    _of_one_step("rnn"),
    _gradient_of("lstm"),
    _gradient_of("gru"),
]
