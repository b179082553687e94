"""Images as the columns of a matrix, and back: what turns a convolution into a product of matrices.

    columns[(channel, tap), (image, place)] = what the tap of the window at the place sees; 0 in the padding

A part of it is made at a time: images [begin, end), and of the lines along the last axis that come out (all pairs of
the first two axes) those in [line_begin, line_end). `Columns` is pure geometry and says which parts there are.

The column matrix of a batch is `taps` times its images. Made whole it goes through memory twice; made in parts of
`PART_BYTES` it stays in the last-level cache between the loop that fills it and the product that reads it.
Filling goes at the speed of memory; shared among threads it was slower, as those of BLAS wait by spinning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from windlass_graph.kernels.loops import Array, loop
from windlass_graph.kernels.runs import add_run, copy_run
from windlass_graph.kernels.windows import Window

PART_BYTES: Final = 4 << 20


class Part(NamedTuple):
    """Images [begin, end); of what comes out of each, lines [line_begin, line_end)."""

    begin: int
    end: int
    line_begin: int
    line_end: int


def parts(window: Window, channels: int, images: int, itemsize: int) -> Iterator[Part]:
    """Parts that cover all images, each within `PART_BYTES` where a line of one image is; no two overlap."""
    lines = window.out[0] * window.out[1]
    held = lines_held(window, channels, itemsize)
    if held >= lines:
        step = held // lines
        for begin in range(0, images, step):
            yield Part(begin, min(begin + step, images), 0, lines)
        return
    for image in range(images):
        for line in range(0, lines, held):
            yield Part(image, image + 1, line, min(line + held, lines))


def lines_held(window: Window, channels: int, itemsize: int) -> int:
    """How many lines the columns of a part have room for."""
    return max(1, PART_BYTES // (itemsize * channels * window.taps * window.out[2]))


def places_held(window: Window, channels: int, images: int, itemsize: int) -> int:
    """The most columns that a part has."""
    lines = window.out[0] * window.out[1]
    held = lines_held(window, channels, itemsize)
    held = min(held // lines, images) * lines if held >= lines else held
    return held * window.out[2]


def fill(images: Array, columns: Array, window: Window, part: Part) -> None:
    """Write the columns of a part: `images` is (images, channels, points), `columns` (channels * taps, columns)."""
    _fill(images.reshape(-1), columns, window.numbers, images.shape[1], *part)


def add_back(columns: Array, images: Array, window: Window, part: Part) -> None:
    """Add each column of a part to the points that it was taken from; `images` begins as zeros."""
    _add_back(images.reshape(-1), columns, window.numbers, images.shape[1], *part)


@loop("r1 R2 l1 n n n n n")
def _fill(
    images: Array,
    columns: Array,
    numbers: Array,
    channels: int,
    begin: int,
    end: int,
    line_begin: int,
    line_end: int,
) -> None:
    """`numbers` are those of the window."""
    d, h, w, kd, kh, kw, sd, sh, sw, pd, ph, pw, dd, dh, dw, _, oh, ow = numbers
    for row in range(channels * kd * kh * kw):
        channel, tap = row // (kd * kh * kw), row % (kd * kh * kw)
        at_d, at_h, at_w = tap // (kh * kw) * dd - pd, tap // kw % kh * dh - ph, tap % kw * dw - pw
        # Places at which this tap is inside the image: those with 0 <= place * stride + at < size.
        low_h, low_w = min(max((sh - 1 - at_h) // sh, 0), oh), min(max((sw - 1 - at_w) // sw, 0), ow)
        high_h, high_w = max((h + sh - 1 - at_h) // sh, low_h), max((w + sw - 1 - at_w) // sw, low_w)
        high_h, high_w = min(high_h, oh), min(high_w, ow)
        seen = high_w - low_w
        to = columns[row]
        if pd > 0 or low_h > 0 or high_h < oh or seen < ow:
            to[:] = 0
        lines = line_end - line_begin
        for image in range(begin, end):
            for z in range(line_begin // oh, (line_end + oh - 1) // oh):
                from_d = z * sd + at_d
                if from_d < 0 or from_d >= d:
                    continue
                plane = ((image * channels + channel) * d + from_d) * h
                first = (image - begin) * lines + z * oh - line_begin
                for y in range(max(low_h, line_begin - z * oh), min(high_h, line_end - z * oh)):
                    source = (plane + y * sh + at_h) * w + low_w * sw + at_w
                    target = (first + y) * ow + low_w
                    if sw == 1:
                        copy_run(to, target, images, source, seen)
                    else:
                        for x in range(seen):
                            to[target + x] = images[source + x * sw]


@loop("R1 r2 l1 n n n n n")
def _add_back(
    images: Array,
    columns: Array,
    numbers: Array,
    channels: int,
    begin: int,
    end: int,
    line_begin: int,
    line_end: int,
) -> None:
    d, h, w, kd, kh, kw, sd, sh, sw, pd, ph, pw, dd, dh, dw, _, oh, ow = numbers
    lines = line_end - line_begin
    for image in range(begin, end):
        for channel in range(channels):
            for tap in range(kd * kh * kw):
                at_d, at_h, at_w = tap // (kh * kw) * dd - pd, tap // kw % kh * dh - ph, tap % kw * dw - pw
                low_h, low_w = min(max((sh - 1 - at_h) // sh, 0), oh), min(max((sw - 1 - at_w) // sw, 0), ow)
                high_h, high_w = max((h + sh - 1 - at_h) // sh, low_h), max((w + sw - 1 - at_w) // sw, low_w)
                high_h, high_w = min(high_h, oh), min(high_w, ow)
                seen = high_w - low_w
                row = columns[channel * kd * kh * kw + tap]
                for z in range(line_begin // oh, (line_end + oh - 1) // oh):
                    to_d = z * sd + at_d
                    if to_d < 0 or to_d >= d:
                        continue
                    plane = ((image * channels + channel) * d + to_d) * h
                    first = (image - begin) * lines + z * oh - line_begin
                    for y in range(max(low_h, line_begin - z * oh), min(high_h, line_end - z * oh)):
                        target = (plane + y * sh + at_h) * w + low_w * sw + at_w
                        source = (first + y) * ow + low_w
                        if sw == 1:
                            add_run(images, target, row, source, seen)
                        else:
                            for x in range(seen):
                                images[target + x * sw] += row[source + x]
