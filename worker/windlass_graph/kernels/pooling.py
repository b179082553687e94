"""Pooling along one to three axes of space: the largest element or the mean of what a window sees, and gradients.

    max:   out[place] = x[at[place]], at[place] = the first point of the window with the largest element
    mean:  out[place] = sum over the window's points inside the image / count
           count: all taps of the window (`count_padding`), or those inside the image

Padding is never the largest element. `at` are int32 places in a channel's points; where a window sees none
but -infinity -1, or its first point. A NaN in a window comes out.

Channels of all images are alike, so arrays here are `(images * channels, points)` and `(images * channels, places)`.
A channel of what comes out is made tap by tap: lines of the image, at the window's stride, are compared or added to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from windlass_graph.kernels.bits import load, select, store
from windlass_graph.kernels.loops import Array, loop
from windlass_graph.kernels.windows import Window
from windlass_graph.threads import Threads


def largest(x: Array, out: Array, at: Array, window: Window, threads: Threads) -> None:
    """Write `out` and int32 `at`."""
    if _is_whole(window):
        np.argmax(x, axis=1, out=(places := np.empty(len(x), np.intp)))
        at[:, 0] = places
        out[:, 0] = x[np.arange(len(x)), places]
        return
    flat = (x.reshape(-1), out.reshape(-1), at.reshape(-1), window.numbers)
    loop_of = _largest_of_four if _is_of_four(window) else _largest
    threads.share(lambda begin, end: loop_of(*flat, begin, end), len(x), x.nbytes + out.nbytes)


def spread(grad: Array, at: Array, out: Array, threads: Threads) -> None:
    """Write `out`, as x above: the sum of the gradients of the places whose element came from there."""
    threads.share(lambda begin, end: _spread(grad, at, out, begin, end), len(out), out.nbytes + 2 * grad.nbytes)


def gather(x: Array, at: Array, out: Array, threads: Threads) -> None:
    """Write out[place] = x[at[place]]: what `spread` is the transpose of."""
    threads.share(lambda begin, end: _gather(x, at, out, begin, end), len(x), x.nbytes + 2 * out.nbytes)


def mean(x: Array, out: Array, window: Window, *, count_padding: bool, threads: Threads) -> None:
    """Write `out`."""
    if _is_whole(window):
        np.mean(x, axis=1, out=out[:, 0])
        return
    flat = (x.reshape(-1), out.reshape(-1), window.numbers, _shares(window, count_padding, x.dtype))
    threads.share(lambda begin, end: _mean(*flat, begin, end), len(x), x.nbytes + out.nbytes)


def mean_gradient(grad: Array, out: Array, window: Window, *, count_padding: bool, threads: Threads) -> None:
    """Write `out`, as x above."""
    flat = (grad.reshape(-1), out.reshape(-1), window.numbers, _shares(window, count_padding, grad.dtype))
    threads.share(lambda begin, end: _mean_gradient(*flat, begin, end), len(grad), out.nbytes + grad.nbytes)


def _is_whole(window: Window) -> bool:
    """Whether one place sees the whole image: global pooling."""
    return window.places == 1 and window.taps == window.points and window.padding == (0, 0, 0)


def _is_of_four(window: Window) -> bool:
    """Whether it is the window of most networks: two by two at stride two, nothing seen twice and no padding."""
    kind = (window.kernel_size, window.stride, window.padding, window.dilation)
    return kind == ((1, 2, 2), (1, 2, 2), (0, 0, 0), (1, 1, 1)) and window.size[0] == 1


def _shares(window: Window, count_padding: bool, dtype: Any) -> Array:
    """1 / count along the places of each axis, one axis after the other; a place's count is the product of three."""
    shares = []
    for axis in range(3):
        places = np.arange(window.out[axis])[:, None] * window.stride[axis]
        points = places + np.arange(window.kernel_size[axis]) * window.dilation[axis] - window.padding[axis]
        inside = np.count_nonzero((points >= 0) & (points < window.size[axis]), axis=1)
        count = np.full(len(inside), window.kernel_size[axis]) if count_padding else np.maximum(inside, 1)
        shares.append(1 / count)
    return np.concatenate(shares).astype(dtype)


@loop("r1 R1 I1 l1 n n")
def _largest(x: Array, out: Array, at: Array, numbers: Array, begin: int, end: int) -> None:
    d, h, width, kd, kh, kw, sd, sh, sw, pd, ph, pw, dd, dh, dw, od, oh, ow = numbers
    out[begin * od * oh * ow : end * od * oh * ow] = -np.inf
    at[begin * od * oh * ow : end * od * oh * ow] = -1
    for channel in range(begin, end):
        for tap in range(kd * kh * kw):
            at_d, at_h, at_w = tap // (kh * kw) * dd - pd, tap // kw % kh * dh - ph, tap % kw * dw - pw
            low_h, low = min(max((sh - 1 - at_h) // sh, 0), oh), min(max((sw - 1 - at_w) // sw, 0), ow)
            high_h, high = max((h + sh - 1 - at_h) // sh, low_h), max((width + sw - 1 - at_w) // sw, low)
            high_h, count = min(high_h, oh), min(high, ow) - low
            for z in range(od):
                from_d = z * sd + at_d
                if from_d < 0 or from_d >= d:
                    continue
                for y in range(low_h, high_h):
                    point = (from_d * h + y * sh + at_h) * width + low * sw + at_w
                    source, target = channel * d * h * width + point, ((channel * od + z) * oh + y) * ow + low
                    line, line_at = out[target : target + count], at[target : target + count]
                    if sw == 2:  # a stride that the compiler knows is a shuffle of vectors
                        for i in range(line.size):
                            value, best = load(x, source + 2 * i), load(line, i)
                            better = (value > best) | (value != value)
                            store(line, i, select(better, value, best))
                            store(line_at, i, select(better, np.int32(point + 2 * i), load(line_at, i)))
                    else:
                        for i in range(line.size):
                            value, best = load(x, source + sw * i), load(line, i)
                            better = (value > best) | (value != value)
                            store(line, i, select(better, value, best))
                            store(line_at, i, select(better, np.int32(point + sw * i), load(line_at, i)))


@loop("r1 R1 I1 l1 n n")
def _largest_of_four(x: Array, out: Array, at: Array, numbers: Array, begin: int, end: int) -> None:
    """`_largest` of windows of two by two at stride two without padding, in one pass."""
    h, width, oh, ow = numbers[1], numbers[2], numbers[16], numbers[17]
    for channel in range(begin, end):
        for y in range(oh):
            source, target = (channel * h + 2 * y) * width, (channel * oh + y) * ow
            point = 2 * y * width
            above, below = x[source : source + 2 * ow], x[source + width : source + width + 2 * ow]
            line, line_at = out[target : target + ow], at[target : target + ow]
            for i in range(line.size):
                best, best_at = load(above, 2 * i), np.int32(point + 2 * i)
                value = load(above, 2 * i + 1)
                better = (value > best) | (value != value)
                best, best_at = select(better, value, best), select(better, np.int32(point + 2 * i + 1), best_at)
                value = load(below, 2 * i)
                better = (value > best) | (value != value)
                best, best_at = select(better, value, best), select(better, np.int32(point + width + 2 * i), best_at)
                value = load(below, 2 * i + 1)
                better = (value > best) | (value != value)
                store(line, i, select(better, value, best))
                store(line_at, i, select(better, np.int32(point + width + 2 * i + 1), best_at))


@loop("r2 i2 R2 n n")
def _spread(grad: Array, at: Array, out: Array, begin: int, end: int) -> None:
    for channel in range(begin, end):
        to, from_grad, places = out[channel], grad[channel], at[channel]
        to[:] = 0
        for i in range(places.size):
            if places[i] >= 0:
                to[places[i]] += from_grad[i]


@loop("r2 i2 R2 n n")
def _gather(x: Array, at: Array, out: Array, begin: int, end: int) -> None:
    for channel in range(begin, end):
        source, places, to = x[channel], at[channel], out[channel]
        for i in range(places.size):
            to[i] = source[places[i]] if places[i] >= 0 else 0


@loop("r1 R1 l1 r1 n n")
def _mean(x: Array, out: Array, numbers: Array, shares: Array, begin: int, end: int) -> None:
    d, h, width, kd, kh, kw, sd, sh, sw, pd, ph, pw, dd, dh, dw, od, oh, ow = numbers
    out[begin * od * oh * ow : end * od * oh * ow] = 0
    for channel in range(begin, end):
        for tap in range(kd * kh * kw):
            at_d, at_h, at_w = tap // (kh * kw) * dd - pd, tap // kw % kh * dh - ph, tap % kw * dw - pw
            low_h, low = min(max((sh - 1 - at_h) // sh, 0), oh), min(max((sw - 1 - at_w) // sw, 0), ow)
            high_h, high = max((h + sh - 1 - at_h) // sh, low_h), max((width + sw - 1 - at_w) // sw, low)
            high_h, count = min(high_h, oh), min(high, ow) - low
            for z in range(od):
                from_d = z * sd + at_d
                if from_d < 0 or from_d >= d:
                    continue
                for y in range(low_h, high_h):
                    source = ((channel * d + from_d) * h + y * sh + at_h) * width + low * sw + at_w
                    target = ((channel * od + z) * oh + y) * ow + low
                    if sw == 2:
                        for i in range(count):
                            store(out, target + i, load(out, target + i) + load(x, source + 2 * i))
                    else:
                        for i in range(count):
                            store(out, target + i, load(out, target + i) + load(x, source + sw * i))
        for line in range(od * oh):
            share, target = shares[line // oh] * shares[od + line % oh], (channel * od * oh + line) * ow
            for i in range(ow):
                store(out, target + i, load(out, target + i) * (share * load(shares, od + oh + i)))


@loop("r1 R1 l1 r1 n n")
def _mean_gradient(grad: Array, out: Array, numbers: Array, shares: Array, begin: int, end: int) -> None:
    d, h, width, kd, kh, kw, sd, sh, sw, pd, ph, pw, dd, dh, dw, od, oh, ow = numbers
    out[begin * d * h * width : end * d * h * width] = 0
    for channel in range(begin, end):
        for tap in range(kd * kh * kw):
            at_d, at_h, at_w = tap // (kh * kw) * dd - pd, tap // kw % kh * dh - ph, tap % kw * dw - pw
            low_h, low = min(max((sh - 1 - at_h) // sh, 0), oh), min(max((sw - 1 - at_w) // sw, 0), ow)
            high_h, high = max((h + sh - 1 - at_h) // sh, low_h), max((width + sw - 1 - at_w) // sw, low)
            high_h, count = min(high_h, oh), min(high, ow) - low
            for z in range(od):
                to_d = z * sd + at_d
                if to_d < 0 or to_d >= d:
                    continue
                for y in range(low_h, high_h):
                    target = ((channel * d + to_d) * h + y * sh + at_h) * width + low * sw + at_w
                    source, share = ((channel * od + z) * oh + y) * ow + low, shares[z] * shares[od + y]
                    for i in range(count):
                        part = load(grad, source + i) * (share * load(shares, od + oh + low + i))
                        store(out, target + sw * i, load(out, target + sw * i) + part)
