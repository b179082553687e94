"""Batch, layer and group normalisation and their gradients, each in as few passes over its arrays as it can.

    x_hat = (x - mean) * inverse                  inverse = 1 / sqrt(variance + epsilon)
    out   = x_hat * gamma + beta
    dx    = gamma * inverse * (g - mean(g) - x_hat * mean(g * x_hat))        means over what was normalised together

    batch   over images and points, for each channel         Ioffe and Szegedy, "Batch normalization", 2015, algorithm 1
    layer   over the last axis, for each row                 Ba, Kiros, Hinton, "Layer normalization", 2016
    group   over a group's channels and points, by image     Wu and He, "Group normalization", 2018

Variances are those of the population (over n), taken about the mean in a pass of its own: from sums of squares they
lose all digits where the mean is large. Sums are float64 (`sums`), the statistics handed out the arrays' own dtype.
Instance normalisation is that of groups of one channel. Images are `(images, channels, points)`.
"""

from __future__ import annotations

import math

import numpy as np

from windlass_graph.kernels.bits import load, store
from windlass_graph.kernels.loops import Array, loop
from windlass_graph.kernels.sums import LANES, add_up, add_up_products, add_up_squares, folded
from windlass_graph.threads import Threads


def batch_statistics(x: Array, mean: Array, variance: Array, threads: Threads) -> None:
    """Write each channel's."""
    threads.share(lambda begin, end: _batch_statistics(x, mean, variance, begin, end), x.shape[1], x.nbytes)


def scale_channels(x: Array, scale: Array, shift: Array, out: Array, threads: Threads) -> None:
    """Write out = x * scale + shift, which have an element a channel."""
    threads.share(lambda begin, end: _scale_channels(x, scale, shift, out, begin, end), len(x), 2 * x.nbytes)


def batch_gradient(
    grad: Array,
    x: Array,
    gamma: Array,
    mean: Array,
    inverse: Array,
    to_x: Array,
    to_gamma: Array,
    to_beta: Array,
    threads: Threads,
) -> None:
    """Write the three gradients, where `mean` and `inverse` are of this batch."""

    def work(begin: int, end: int) -> None:
        _batch_gradient(grad, x, gamma, mean, inverse, to_x, to_gamma, to_beta, begin, end)

    threads.share(work, x.shape[1], 3 * x.nbytes)


def layer(
    x: Array, gamma: Array, beta: Array, out: Array, mean: Array, inverse: Array, epsilon: float, threads: Threads
) -> None:
    """Write `out` and each row's `mean` and `inverse`; `x` is (rows, features)."""

    def work(begin: int, end: int) -> None:
        _layer(x, gamma, beta, out, mean, inverse, epsilon, begin, end)

    threads.share(work, len(x), 2 * x.nbytes)


def layer_gradient(
    grad: Array,
    x: Array,
    gamma: Array,
    mean: Array,
    inverse: Array,
    to_x: Array,
    to_gamma: Array,
    to_beta: Array,
    threads: Threads,
) -> None:
    """Write the three gradients."""
    sums: list[Array] = []

    def work(begin: int, end: int) -> None:
        part = np.zeros((2, x.shape[1]))
        _layer_gradient(grad, x, gamma, mean, inverse, to_x, part[0], part[1], begin, end)
        sums.append(part)

    threads.share(work, len(x), 3 * x.nbytes)
    to_gamma[...], to_beta[...] = np.sum(sums, axis=0)


def group(
    x: Array,
    gamma: Array,
    beta: Array,
    out: Array,
    mean: Array,
    inverse: Array,
    epsilon: float,
    threads: Threads,
) -> None:
    """Write `out` and `mean` and `inverse`, which are (images, groups)."""

    def work(begin: int, end: int) -> None:
        _group(x, gamma, beta, out, mean, inverse, epsilon, begin, end)

    threads.share(work, len(x), 2 * x.nbytes)


def group_gradient(
    grad: Array,
    x: Array,
    gamma: Array,
    mean: Array,
    inverse: Array,
    to_x: Array,
    to_gamma: Array,
    to_beta: Array,
    threads: Threads,
) -> None:
    """Write the three gradients."""
    products, plain = np.empty((2, *x.shape[:2]))

    def work(begin: int, end: int) -> None:
        _group_gradient(grad, x, gamma, mean, inverse, to_x, products, plain, begin, end)

    threads.share(work, len(x), 3 * x.nbytes)
    np.sum(products, axis=0, out=products[0])
    np.sum(plain, axis=0, out=plain[0])
    to_gamma[...], to_beta[...] = products[0], plain[0]


@loop("r3 R1 R1 n n")
def _batch_statistics(x: Array, mean: Array, variance: Array, begin: int, end: int) -> None:
    images, channels, points = x.shape
    flat, lanes, count = x.reshape(-1), np.zeros(LANES), images * points
    for channel in range(begin, end):
        for image in range(images):
            add_up(lanes, flat, (image * channels + channel) * points, points)
        middle = folded(lanes) / count
        for image in range(images):
            add_up_squares(lanes, flat, (image * channels + channel) * points, points, middle)
        mean[channel] = middle
        variance[channel] = folded(lanes) / count


@loop("r3 r1 r1 R3 n n")
def _scale_channels(x: Array, scale: Array, shift: Array, out: Array, begin: int, end: int) -> None:
    _, channels, points = x.shape
    for image in range(begin, end):
        for channel in range(channels):
            source, target, factor, moved = x[image, channel], out[image, channel], scale[channel], shift[channel]
            for i in range(points):
                target[i] = source[i] * factor + moved


@loop("r3 r3 r1 r1 r1 R3 R1 R1 n n")
def _batch_gradient(
    grad: Array,
    x: Array,
    gamma: Array,
    mean: Array,
    inverse: Array,
    to_x: Array,
    to_gamma: Array,
    to_beta: Array,
    begin: int,
    end: int,
) -> None:
    images, channels, points = x.shape
    g, flat, out, lanes = grad.reshape(-1), x.reshape(-1), to_x.reshape(-1), np.zeros(LANES)
    for channel in range(begin, end):
        middle, scale = mean[channel], np.float64(inverse[channel])
        for image in range(images):
            add_up(lanes, g, (image * channels + channel) * points, points)
        plain = folded(lanes)
        for image in range(images):
            at = (image * channels + channel) * points
            add_up_products(lanes, g, at, points, flat, at, middle)
        product = folded(lanes) * scale
        to_gamma[channel] = product
        to_beta[channel] = plain
        # What comes back to x is a times g, b times x, and c.
        a = gamma[channel] * scale
        b = -a * scale * product / (images * points)
        c = -a * plain / (images * points) - b * middle
        by_g, by_x, moved = mean.dtype.type(a), mean.dtype.type(b), mean.dtype.type(c)
        for image in range(images):
            at = (image * channels + channel) * points
            target, one, other = out[at : at + points], g[at : at + points], flat[at : at + points]
            for i in range(target.size):
                target[i] = by_g * one[i] + (by_x * other[i] + moved)


@loop("r2 r1 r1 R2 R1 R1 y n n")
def _layer(
    x: Array,
    gamma: Array,
    beta: Array,
    out: Array,
    mean: Array,
    inverse: Array,
    epsilon: float,
    begin: int,
    end: int,
) -> None:
    features, flat, lanes = x.shape[1], x.reshape(-1), np.zeros(LANES)
    for row in range(begin, end):
        add_up(lanes, flat, row * features, features)
        middle = folded(lanes) / features
        add_up_squares(lanes, flat, row * features, features, middle)
        scale = 1.0 / math.sqrt(folded(lanes) / features + epsilon)
        mean[row] = middle
        inverse[row] = scale
        centre, factor, source, target = mean[row], inverse[row], x[row], out[row]
        for i in range(features):
            target[i] = (source[i] - centre) * factor * gamma[i] + beta[i]


@loop("r2 r2 r1 r1 r1 R2 D1 D1 n n")
def _layer_gradient(
    grad: Array,
    x: Array,
    gamma: Array,
    mean: Array,
    inverse: Array,
    to_x: Array,
    products: Array,
    plain: Array,
    begin: int,
    end: int,
) -> None:
    features, lanes = x.shape[1], np.zeros(2 * LANES)
    for row in range(begin, end):
        g, source, target, middle, scale = grad[row], x[row], to_x[row], mean[row], inverse[row]
        first, second = lanes[:LANES], lanes[LANES:]
        whole = features // LANES * LANES
        for at in range(0, whole, LANES):
            for k in range(LANES):
                of_hat = load(g, at + k) * load(gamma, at + k)
                store(first, k, load(first, k) + of_hat)
                store(second, k, load(second, k) + of_hat * (load(source, at + k) - middle))
        for i in range(whole, features):
            first[0] += g[i] * gamma[i]
            second[0] += g[i] * gamma[i] * (source[i] - middle)
        a = np.float64(scale)
        b = -a * a * a * folded(second) / features
        c = -a * folded(first) / features - b * middle
        by_x, moved = mean.dtype.type(b), mean.dtype.type(c)
        for i in range(features):
            target[i] = scale * (g[i] * gamma[i]) + (by_x * source[i] + moved)
        for i in range(features):
            products[i] += g[i] * ((source[i] - middle) * scale)
            plain[i] += g[i]


@loop("r3 r1 r1 R3 R2 R2 y n n")
def _group(
    x: Array,
    gamma: Array,
    beta: Array,
    out: Array,
    mean: Array,
    inverse: Array,
    epsilon: float,
    begin: int,
    end: int,
) -> None:
    _, channels, points = x.shape
    flat, lanes, held = x.reshape(-1), np.zeros(LANES), channels // mean.shape[1]
    for image in range(begin, end):
        for one in range(mean.shape[1]):
            at = (image * channels + one * held) * points
            add_up(lanes, flat, at, held * points)
            middle = folded(lanes) / (held * points)
            add_up_squares(lanes, flat, at, held * points, middle)
            scale = 1.0 / math.sqrt(folded(lanes) / (held * points) + epsilon)
            mean[image, one] = middle
            inverse[image, one] = scale
            for channel in range(one * held, (one + 1) * held):
                source, target, centre = x[image, channel], out[image, channel], mean[image, one]
                factor, moved = inverse[image, one] * gamma[channel], beta[channel]
                for i in range(points):
                    target[i] = (source[i] - centre) * factor + moved


@loop("r3 r3 r1 r2 r2 R3 D2 D2 n n")
def _group_gradient(
    grad: Array,
    x: Array,
    gamma: Array,
    mean: Array,
    inverse: Array,
    to_x: Array,
    products: Array,
    plain: Array,
    begin: int,
    end: int,
) -> None:
    """`products` and `plain` get the sums of g * x_hat and of g over each channel's points."""
    _, channels, points = x.shape
    g, flat, lanes, held = grad.reshape(-1), x.reshape(-1), np.zeros(LANES), channels // mean.shape[1]
    for image in range(begin, end):
        for one in range(mean.shape[1]):
            middle, scale = mean[image, one], np.float64(inverse[image, one])
            of_products, of_grads = 0.0, 0.0
            for channel in range(one * held, (one + 1) * held):
                at = (image * channels + channel) * points
                add_up(lanes, g, at, points)
                plain[image, channel] = folded(lanes)
                add_up_products(lanes, g, at, points, flat, at, middle)
                products[image, channel] = folded(lanes) * scale
                of_grads += plain[image, channel] * gamma[channel]
                of_products += products[image, channel] * gamma[channel]
            b = -scale * scale * of_products / (held * points)
            c = -scale * of_grads / (held * points) - b * middle
            by_x, moved = mean.dtype.type(b), mean.dtype.type(c)
            for channel in range(one * held, (one + 1) * held):
                by_g, source, target = mean.dtype.type(scale * gamma[channel]), x[image, channel], to_x[image, channel]
                arrived = grad[image, channel]
                for i in range(points):
                    target[i] = by_g * arrived[i] + (by_x * source[i] + moved)
