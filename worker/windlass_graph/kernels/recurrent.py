"""One layer of a recurrent network over all its steps, in one direction, and its gradients.

    rnn     h[t] = tanh(a[t]), or relu                                      a[t] = W x[t] + b + U h[t-1] + d
    lstm    c[t] = f * c[t-1] + i * g,   h[t] = o * tanh(c[t])              i, f, g, o of a[t]: sigmoid, g by tanh
    gru     h[t] = (1 - z) * n + z * h[t-1]                                 r, z of a[t] by sigmoid
            n = tanh(W_n x[t] + b_n + r * (U_n h[t-1] + d_n))

Sources: Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers et al., 2000; Cho et
al., "Learning phrase representations", 2014, with the reset gate behind the product with U, as cuDNN and PyTorch have
it, so that one product serves a step. Gates are stacked along the rows of W and U in the order above.

W x + b is one product for all steps; U h[t-1] is one for each, then a loop computes the gates. `gates` (steps, batch,
stacked) keeps them for the gradients; `cells` (steps, batch, units) keeps c, or of a gru U_n h + d_n.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from windlass_graph.kernels import device_recurrent
from windlass_graph.kernels.loops import Array, Loop, loop
from windlass_graph.kernels.real_functions import sigmoid, tanh


@dataclass(frozen=True, slots=True)
class Layer:
    """Which layer: its kind, the weights W (stacked, features) and U (stacked, units), the direction."""

    kind: str
    w: Array
    u: Array
    reverse: bool
    activation: str = "tanh"
    xp: Any = np
    """NumPy, or CuPy where the arrays are a GPU's."""

    def steps(self, count: int) -> range:
        """In the order in which they are taken."""
        return range(count - 1, -1, -1) if self.reverse else range(count)

    def gates(self, loop_here: Loop, twin: Callable[..., None]) -> Callable[..., None]:
        """The loop of the host, or its twin on a GPU."""
        return loop_here if self.xp is np else functools.partial(twin, self.xp)


def run(
    layer: Layer, x: Array, w_bias: Array, u_bias: Array, h: Array, c: Array, out: Array, gates: Array, cells: Array
) -> None:
    """Write `out` (steps, batch, units), `gates` and `cells`, from the states `h` and `c` (batch, units) before."""
    xp, (steps, batch, _) = layer.xp, x.shape
    lstm_step = layer.gates(_lstm_step, device_recurrent.lstm_step)
    gru_step = layer.gates(_gru_step, device_recurrent.gru_step)
    flat = gates.reshape(steps * batch, -1)
    xp.matmul(x.reshape(steps * batch, -1), layer.w.T, out=flat)
    flat += w_bias if layer.kind == "gru" else w_bias + u_bias
    hidden = xp.empty(gates.shape[1:], x.dtype)
    for t in layer.steps(steps):
        xp.matmul(h, layer.u.T, out=hidden)
        if layer.kind == "lstm":
            lstm_step(gates[t], hidden, c, cells[t], out[t])
            c = cells[t]
        elif layer.kind == "gru":
            hidden += u_bias
            gru_step(gates[t], hidden, h, cells[t], out[t])
        else:
            xp.add(gates[t], hidden, out=out[t])
            xp.tanh(out[t], out=out[t]) if layer.activation == "tanh" else xp.maximum(out[t], 0, out=out[t])
        h = out[t]


@dataclass(frozen=True, slots=True)
class Gradients:
    """Where gradients are written; the two biases' are the same but for a gru."""

    x: Array
    w: Array
    u: Array
    w_bias: Array
    u_bias: Array
    h: Array
    c: Array


def gradient(
    layer: Layer,
    to_out: Array,
    to_c: Array | int,
    x: Array,
    h: Array,
    c: Array,
    out: Array,
    gates: Array,
    cells: Array,
    to: Gradients,
) -> None:
    """Write `to` from the gradients by `out` and by the last c, with what `run` took and wrote."""
    xp, steps = layer.xp, len(x)
    lstm_gradient = layer.gates(_lstm_gradient, device_recurrent.lstm_gradient)
    gru_gradient = layer.gates(_gru_gradient, device_recurrent.gru_gradient)
    by_gates, by_hidden = xp.empty(gates.shape, x.dtype), xp.empty(gates.shape if layer.kind == "gru" else 0, x.dtype)
    order = layer.steps(steps)
    to.h[...], to.c[...] = 0, to_c
    total = xp.empty(h.shape, x.dtype)
    for at in range(steps - 1, -1, -1):
        t = order[at]
        h_before, c_before = (out[order[at - 1]], cells[order[at - 1]] if layer.kind == "lstm" else c) if at else (h, c)
        xp.add(to_out[t], to.h, out=total)
        into = by_gates[t]
        if layer.kind == "lstm":
            lstm_gradient(gates[t], c_before, cells[t], total, to.c, into)
        elif layer.kind == "gru":
            into = by_hidden[t]
            gru_gradient(gates[t], cells[t], h_before, total, by_gates[t], into)
        elif layer.activation == "tanh":
            xp.multiply(total, 1 - out[t] * out[t], out=into)
        else:
            xp.multiply(total, out[t] > 0, out=into)
        xp.matmul(into, layer.u, out=to.h)
        if layer.kind == "gru":
            xp.add(to.h, total, out=to.h)
    _weights(layer, by_gates, by_hidden if layer.kind == "gru" else by_gates, x, h, out, to)


def _weights(layer: Layer, by_gates: Array, by_hidden: Array, x: Array, h: Array, out: Array, to: Gradients) -> None:
    """What all steps have in common: one product for each weight."""
    xp, (steps, batch, stacked) = layer.xp, by_gates.shape
    flat, features = by_gates.reshape(-1, stacked), x.reshape(steps * batch, -1)
    xp.matmul(flat, layer.w, out=to.x.reshape(steps * batch, -1))
    xp.matmul(flat.T, features, out=to.w)
    xp.sum(flat, axis=0, out=to.w_bias)
    xp.sum(by_hidden.reshape(-1, stacked), axis=0, out=to.u_bias)
    first = steps - 1 if layer.reverse else 0
    xp.matmul(by_hidden[first].T, h, out=to.u)
    later, before = (by_hidden[:-1], out[1:]) if layer.reverse else (by_hidden[1:], out[:-1])
    xp.add(to.u, later.reshape(-1, stacked).T @ before.reshape(-1, out.shape[2]), out=to.u)


@loop("R2 r2 r2 R2 R2")
def _lstm_step(gates: Array, hidden: Array, before: Array, c: Array, h: Array) -> None:
    batch, units = c.shape
    for row in range(batch):
        for gate in range(4):
            a, b = gates[row, gate * units : (gate + 1) * units], hidden[row, gate * units : (gate + 1) * units]
            if gate == 2:
                for j in range(units):
                    a[j] = tanh(a[j] + b[j])
            else:
                for j in range(units):
                    a[j] = sigmoid(a[j] + b[j])
        i, f = gates[row, :units], gates[row, units : 2 * units]
        g, o = gates[row, 2 * units : 3 * units], gates[row, 3 * units :]
        old, new, to = before[row], c[row], h[row]
        for j in range(units):
            new[j] = f[j] * old[j] + i[j] * g[j]
            to[j] = o[j] * tanh(new[j])


@loop("r2 r2 r2 r2 R2 R2")
def _lstm_gradient(gates: Array, before: Array, c: Array, by_h: Array, by_c: Array, by_gates: Array) -> None:
    """`by_c` comes in as the gradient by this step's c, and becomes that by the one before."""
    batch, units = c.shape
    for row in range(batch):
        i, f = gates[row, :units], gates[row, units : 2 * units]
        g, o = gates[row, 2 * units : 3 * units], gates[row, 3 * units :]
        by_i, by_f = by_gates[row, :units], by_gates[row, units : 2 * units]
        by_g, by_o = by_gates[row, 2 * units : 3 * units], by_gates[row, 3 * units :]
        old, new, d, dc = before[row], c[row], by_h[row], by_c[row]
        for j in range(units):
            out = tanh(new[j])
            total = dc[j] + d[j] * o[j] * (1 - out * out)
            by_o[j] = d[j] * out * o[j] * (1 - o[j])
            by_i[j] = total * g[j] * i[j] * (1 - i[j])
            by_f[j] = total * old[j] * f[j] * (1 - f[j])
            by_g[j] = total * i[j] * (1 - g[j] * g[j])
            dc[j] = total * f[j]


@loop("R2 r2 r2 R2 R2")
def _gru_step(gates: Array, hidden: Array, before: Array, kept: Array, h: Array) -> None:
    batch, units = h.shape
    for row in range(batch):
        both, other = gates[row, : 2 * units], hidden[row, : 2 * units]
        for j in range(2 * units):
            both[j] = sigmoid(both[j] + other[j])
        r, z, n = gates[row, :units], gates[row, units : 2 * units], gates[row, 2 * units :]
        u, k, old, to = hidden[row, 2 * units :], kept[row], before[row], h[row]
        for j in range(units):
            k[j] = u[j]
            n[j] = tanh(n[j] + r[j] * u[j])
            to[j] = n[j] + z[j] * (old[j] - n[j])


@loop("r2 r2 r2 R2 R2 R2")
def _gru_gradient(gates: Array, kept: Array, before: Array, by_h: Array, by_gates: Array, by_hidden: Array) -> None:
    """`by_h` comes in as the gradient by this step's h, and becomes what of it goes straight to the one before.

    By the gates' two sums, W x + b and U h + d, the gradients differ for n alone.
    """
    batch, units = kept.shape
    for row in range(batch):
        r, z, n = gates[row, :units], gates[row, units : 2 * units], gates[row, 2 * units :]
        by_r, by_z = by_gates[row, :units], by_gates[row, units : 2 * units]
        by_n, by_u = by_gates[row, 2 * units :], by_hidden[row, 2 * units :]
        k, old, d = kept[row], before[row], by_h[row]
        for j in range(units):
            by_n[j] = d[j] * (1 - z[j]) * (1 - n[j] * n[j])
            by_z[j] = d[j] * (old[j] - n[j]) * z[j] * (1 - z[j])
            by_r[j] = by_n[j] * k[j] * r[j] * (1 - r[j])
            by_u[j] = by_n[j] * r[j]
            d[j] = d[j] * z[j]
        same, copy = by_gates[row, : 2 * units], by_hidden[row, : 2 * units]
        for j in range(2 * units):
            copy[j] = same[j]
