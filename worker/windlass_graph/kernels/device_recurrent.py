"""The gates of recurrent layers on a GPU, one step at a time, as elementwise functions of CuPy's.

What is computed `recurrent` says; arguments are those of its loops, with CuPy first.
"""

from __future__ import annotations

from typing import Any


def lstm_step(xp: Any, gates: Any, hidden: Any, before: Any, c: Any, h: Any) -> None:
    gates += hidden
    i, f, g, o = _parts(gates, c.shape[1])
    for each in (i, f, o):
        each[...] = _sigmoid(xp, each)
    xp.tanh(g, out=g)
    c[...] = f * before + i * g
    h[...] = o * xp.tanh(c)


def lstm_gradient(xp: Any, gates: Any, before: Any, c: Any, by_h: Any, by_c: Any, by_gates: Any) -> None:
    i, f, g, o = _parts(gates, c.shape[1])
    by_i, by_f, by_g, by_o = _parts(by_gates, c.shape[1])
    out = xp.tanh(c)
    total = by_c + by_h * o * (1 - out * out)
    by_o[...] = by_h * out * o * (1 - o)
    by_i[...] = total * g * i * (1 - i)
    by_f[...] = total * before * f * (1 - f)
    by_g[...] = total * i * (1 - g * g)
    by_c[...] = total * f


def gru_step(xp: Any, gates: Any, hidden: Any, before: Any, kept: Any, h: Any) -> None:
    r, z, n = _parts(gates, h.shape[1])
    of_r, of_z, of_n = _parts(hidden, h.shape[1])
    r[...] = _sigmoid(xp, r + of_r)
    z[...] = _sigmoid(xp, z + of_z)
    kept[...] = of_n
    n[...] = xp.tanh(n + r * of_n)
    h[...] = n + z * (before - n)


def gru_gradient(xp: Any, gates: Any, kept: Any, before: Any, by_h: Any, by_gates: Any, by_hidden: Any) -> None:
    r, z, n = _parts(gates, kept.shape[1])
    by_r, by_z, by_n = _parts(by_gates, kept.shape[1])
    by_n[...] = by_h * (1 - z) * (1 - n * n)
    by_z[...] = by_h * (before - n) * z * (1 - z)
    by_r[...] = by_n * kept * r * (1 - r)
    by_hidden[...] = by_gates
    by_hidden[:, 2 * kept.shape[1] :] *= r
    xp.multiply(by_h, z, out=by_h)


def _parts(stacked: Any, units: int) -> list[Any]:
    """Views of the gates."""
    return [stacked[:, at : at + units] for at in range(0, stacked.shape[1], units)]


def _sigmoid(xp: Any, x: Any) -> Any:
    return 1 / (1 + xp.exp(-x))
