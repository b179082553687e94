"""Convolution where each channel is a group of its own, and its gradients, as direct loops.

A product of matrices would have one row for each channel and tap, of which it uses one. Here a line of what comes out
is the sum of lines of the image, one for each tap, times a number: nothing is copied.

Invariant: a thread works on channels that no other has.
"""

from __future__ import annotations

import numpy as np

from windlass_graph.kernels.loops import Array, loop
from windlass_graph.kernels.windows import Window
from windlass_graph.threads import Threads


def convolve(x: Array, w: Array, out: Array, window: Window, threads: Threads) -> None:
    """`x` is (images, channels, points), `out` (images, channels * multiplier, places)."""
    flat = (x.reshape(-1), w.reshape(-1), out.reshape(-1), window.numbers, len(x), x.shape[1])

    def work(begin: int, end: int) -> None:
        _convolve(*flat, out.shape[1] // x.shape[1], begin, end)

    threads.share(work, x.shape[1], out.nbytes * window.taps)


def data_gradient(grad: Array, w: Array, out: Array, window: Window, threads: Threads) -> None:
    """`grad` as `out` above, `out` as `x` above."""
    flat = (grad.reshape(-1), w.reshape(-1), out.reshape(-1), window.numbers, len(grad), out.shape[1])
    out.fill(0)

    def work(begin: int, end: int) -> None:
        _data_gradient(*flat, grad.shape[1] // out.shape[1], begin, end)

    threads.share(work, out.shape[1], grad.nbytes * window.taps)


def weight_gradient(x: Array, grad: Array, out: Array, window: Window, threads: Threads) -> None:
    """Sums of a tap are taken for each column of a line, then added up: the loop works on whole vectors."""
    flat = (x.reshape(-1), grad.reshape(-1), out.reshape(-1), window.numbers, len(x), x.shape[1])

    def work(begin: int, end: int) -> None:
        sums = np.empty(window.out[2], x.dtype)
        _weight_gradient(*flat, grad.shape[1] // x.shape[1], sums, begin, end)

    threads.share(work, x.shape[1], grad.nbytes * window.taps)


@loop("r1 r1 R1 l1 n n n n n")
def _convolve(
    x: Array, w: Array, out: Array, numbers: Array, images: int, channels: int, multiplier: int, begin: int, end: int
) -> None:
    d, h, width, kd, kh, kw, sd, sh, sw, pd, ph, pw, dd, dh, dw, od, oh, ow = numbers
    for channel in range(begin * multiplier, end * multiplier):
        for image in range(images):
            plane = (image * channels + channel // multiplier) * d
            for z in range(od):
                for y in range(oh):
                    first = (((image * channels * multiplier + channel) * od + z) * oh + y) * ow
                    line = out[first : first + ow]
                    line[:] = 0
                    for tap in range(kd * kh * kw):
                        at_d, at_h = z * sd + tap // (kh * kw) * dd - pd, y * sh + tap // kw % kh * dh - ph
                        if at_d < 0 or at_d >= d or at_h < 0 or at_h >= h:
                            continue
                        at_w = tap % kw * dw - pw
                        low = min(max((sw - 1 - at_w) // sw, 0), ow)
                        high = min(max((width + sw - 1 - at_w) // sw, low), ow)
                        start = ((plane + at_d) * h + at_h) * width + low * sw + at_w
                        weight = w[channel * kd * kh * kw + tap]
                        target = line[low:high]
                        if sw == 1:
                            source = x[start : start + high - low]
                            for i in range(target.size):
                                target[i] += weight * source[i]
                        else:
                            for i in range(target.size):
                                target[i] += weight * x[start + i * sw]


@loop("r1 r1 R1 l1 n n n n n")
def _data_gradient(
    grad: Array, w: Array, out: Array, numbers: Array, images: int, channels: int, multiplier: int, begin: int, end: int
) -> None:
    d, h, width, kd, kh, kw, sd, sh, sw, pd, ph, pw, dd, dh, dw, od, oh, ow = numbers
    for channel in range(begin * multiplier, end * multiplier):
        for image in range(images):
            plane = (image * channels + channel // multiplier) * d
            for z in range(od):
                for y in range(oh):
                    first = (((image * channels * multiplier + channel) * od + z) * oh + y) * ow
                    line = grad[first : first + ow]
                    for tap in range(kd * kh * kw):
                        at_d, at_h = z * sd + tap // (kh * kw) * dd - pd, y * sh + tap // kw % kh * dh - ph
                        if at_d < 0 or at_d >= d or at_h < 0 or at_h >= h:
                            continue
                        at_w = tap % kw * dw - pw
                        low = min(max((sw - 1 - at_w) // sw, 0), ow)
                        high = min(max((width + sw - 1 - at_w) // sw, low), ow)
                        start = ((plane + at_d) * h + at_h) * width + low * sw + at_w
                        weight = w[channel * kd * kh * kw + tap]
                        source = line[low:high]
                        if sw == 1:
                            target = out[start : start + high - low]
                            for i in range(target.size):
                                target[i] += weight * source[i]
                        else:
                            for i in range(source.size):
                                out[start + i * sw] += weight * source[i]


@loop("r1 r1 R1 l1 n n n R1 n n")
def _weight_gradient(
    x: Array,
    grad: Array,
    out: Array,
    numbers: Array,
    images: int,
    channels: int,
    multiplier: int,
    sums: Array,
    begin: int,
    end: int,
) -> None:
    d, h, width, kd, kh, kw, sd, sh, sw, pd, ph, pw, dd, dh, dw, od, oh, ow = numbers
    for channel in range(begin * multiplier, end * multiplier):
        for tap in range(kd * kh * kw):
            at_w = tap % kw * dw - pw
            low = min(max((sw - 1 - at_w) // sw, 0), ow)
            high = min(max((width + sw - 1 - at_w) // sw, low), ow)
            sums[:] = 0
            of_columns = sums[low:high]
            for image in range(images):
                plane = (image * channels + channel // multiplier) * d
                for z in range(od):
                    at_d = z * sd + tap // (kh * kw) * dd - pd
                    for y in range(oh):
                        at_h = y * sh + tap // kw % kh * dh - ph
                        if at_d < 0 or at_d >= d or at_h < 0 or at_h >= h:
                            continue
                        first = (((image * channels * multiplier + channel) * od + z) * oh + y) * ow
                        line = grad[first + low : first + high]
                        start = ((plane + at_d) * h + at_h) * width + low * sw + at_w
                        if sw == 1:
                            source = x[start : start + high - low]
                            for i in range(of_columns.size):
                                of_columns[i] += line[i] * source[i]
                        else:
                            for i in range(of_columns.size):
                                of_columns[i] += line[i] * x[start + i * sw]
            total = 0.0
            for i in range(sums.size):
                total += sums[i]
            out[channel * kd * kh * kw + tap] = total
