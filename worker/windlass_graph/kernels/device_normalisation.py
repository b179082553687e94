"""Normalisations and their gradients on a GPU, as reductions and elementwise products of CuPy's.

What is computed `normalisation` says, and arguments are as there. Variances are taken about the mean here too; sums
are in the arrays' own dtype, added pairwise by CuPy's reductions.
"""

from __future__ import annotations

from typing import Any


def batch_statistics(xp: Any, x: Any, mean: Any, variance: Any) -> None:
    """Write each channel's."""
    mean[...] = x.mean(axis=(0, 2))
    variance[...] = xp.square(x - mean[:, None]).mean(axis=(0, 2))


def scale_channels(xp: Any, x: Any, scale: Any, shift: Any, out: Any) -> None:
    """Write out = x * scale + shift, which have an element a channel."""
    xp.multiply(x, scale[:, None], out=out)
    out += shift[:, None]


def batch_gradient(g: Any, x: Any, gamma: Any, mean: Any, inverse: Any, to_x: Any, to_gamma: Any, to_beta: Any) -> None:
    """Write the three gradients."""
    hat = (x - mean[:, None]) * inverse[:, None]
    to_gamma[...] = (g * hat).sum(axis=(0, 2))
    to_beta[...] = g.sum(axis=(0, 2))
    to_x[...] = _by_data(g, hat, gamma[:, None], inverse[:, None], (0, 2))


def layer(xp: Any, x: Any, gamma: Any, beta: Any, out: Any, mean: Any, inverse: Any, epsilon: float) -> None:
    """Write `out`, and each row's `mean` and `inverse`; `x` is (rows, features)."""
    out[...] = _normalised(xp, x, mean, inverse, epsilon) * gamma + beta


def layer_gradient(g: Any, x: Any, gamma: Any, mean: Any, inverse: Any, to_x: Any, to_gamma: Any, to_beta: Any) -> None:
    """Write the three gradients."""
    hat = (x - mean[:, None]) * inverse[:, None]
    to_gamma[...] = (g * hat).sum(axis=0)
    to_beta[...] = g.sum(axis=0)
    to_x[...] = _by_data(g, hat, gamma, inverse[:, None], (1,))


def group(xp: Any, x: Any, gamma: Any, beta: Any, out: Any, mean: Any, inverse: Any, epsilon: float) -> None:
    """Write `out`, and `mean` and `inverse`, which are (images, groups)."""
    rows = x.reshape(mean.size, -1)
    hat = _normalised(xp, rows, mean.reshape(-1), inverse.reshape(-1), epsilon)
    out[...] = hat.reshape(x.shape) * gamma[:, None] + beta[:, None]


def group_gradient(g: Any, x: Any, gamma: Any, mean: Any, inverse: Any, to_x: Any, to_gamma: Any, to_beta: Any) -> None:
    """Write the three gradients."""
    rows, scale = (mean.size, -1), inverse.reshape(-1, 1)
    hat = (x.reshape(rows) - mean.reshape(-1, 1)) * scale
    to_gamma[...] = (g * hat.reshape(x.shape)).sum(axis=(0, 2))
    to_beta[...] = g.sum(axis=(0, 2))
    to_x[...] = _by_data((g * gamma[:, None]).reshape(rows), hat, 1, scale, (1,)).reshape(x.shape)


def _normalised(xp: Any, x: Any, mean: Any, inverse: Any, epsilon: float) -> Any:
    mean[...] = x.mean(axis=1)
    away = x - mean[:, None]
    inverse[...] = 1 / xp.sqrt(xp.square(away).mean(axis=1) + epsilon)
    return away * inverse[:, None]


def _by_data(g: Any, hat: Any, gamma: Any, inverse: Any, axes: tuple[int, ...]) -> Any:
    """The gradient by x, where `axes` were normalised together."""
    by_hat = g * gamma
    through_mean = by_hat.mean(axis=axes, keepdims=True)
    through_scale = hat * (by_hat * hat).mean(axis=axes, keepdims=True)
    return inverse * (by_hat - through_mean - through_scale)
