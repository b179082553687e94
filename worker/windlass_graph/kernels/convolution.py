"""Convolution along one to three axes of space and its two gradients; with their roles changed, the transposed one.

    out[n, o, place] = bias[o] + sum over c, tap of w[o, c, tap] * x[n, g * C / G + c, place * stride + tap - padding]

where g is the group of o and w is `(out_channels, channels // groups, *kernel_size)`. As everywhere in this field it is
a correlation. Products are those of BLAS, over columns (`columns`); a window of one element needs none, and where each
group has one channel (depthwise) a direct loop is faster (`depthwise`). Prior art: K. Chellapilla, S. Puri, P. Simard,
"High performance convolutional neural networks for document processing", 2006, section 4.

A transposed convolution is `data_gradient` with its input as the gradient; its gradients are `convolve` and
`weight_gradient` with x and the gradient exchanged.

Invariant: `scratch` is at least `scratch_bytes` of float-aligned memory, and its contents mean nothing between calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from windlass_graph.kernels import columns, depthwise
from windlass_graph.kernels.loops import Array, loop
from windlass_graph.kernels.runs import copy_run
from windlass_graph.kernels.windows import Window
from windlass_graph.threads import Threads


@dataclass(frozen=True, slots=True)
class Convolution:
    """Which convolution: `channels` of the images, `out_channels` of what comes out, both multiples of `groups`."""

    window: Window
    channels: int
    out_channels: int
    groups: int = 1

    @property
    def is_depthwise(self) -> bool:
        return self.groups == self.channels > 1

    def scratch_bytes(self, images: int, itemsize: int) -> int:
        """What each of the three functions needs beside its arrays."""
        if self.is_depthwise:
            return 0
        if self.window.is_point:
            return self.out_channels * self.channels // self.groups * itemsize
        places = columns.places_held(self.window, self.channels, images, itemsize)
        weights = self.out_channels * self.channels // self.groups * self.window.taps
        return (places * (self.channels * self.window.taps + self.out_channels) + weights) * itemsize


def convolve(
    x: Array, w: Array, bias: Array | None, out: Array, kind: Convolution, scratch: Array, threads: Threads
) -> None:
    """Write `out` `(images, out_channels, *window.out)`. `scratch` is bytes."""
    images, window, groups = len(x), kind.window, kind.groups
    x3, out3 = x.reshape(images, kind.channels, -1), out.reshape(images, kind.out_channels, -1)
    matrix = w.reshape(groups, kind.out_channels // groups, -1)
    if kind.is_depthwise:
        depthwise.convolve(x3, w, out3, window, threads)
    elif window.is_point:
        np.matmul(matrix, _grouped(x3, groups), out=_grouped(out3, groups))
    else:
        for part in columns.parts(window, kind.channels, images, x.itemsize):
            filled, sums, _ = _matrices(kind, part, x.dtype, scratch)
            columns.fill(x3, filled, window, part)
            np.matmul(matrix, filled.reshape(groups, -1, filled.shape[1]), out=_grouped(sums, groups))
            _move(out3, sums, part, window, into_images=True)
    if bias is not None:
        out3 += bias[:, None]


def data_gradient(grad: Array, w: Array, out: Array, kind: Convolution, scratch: Array, threads: Threads) -> None:
    """Write `out`, the gradient to the images, from that to what came out."""
    images, window, groups = len(grad), kind.window, kind.groups
    grad3, out3 = grad.reshape(images, kind.out_channels, -1), out.reshape(images, kind.channels, -1)
    matrix = w.reshape(groups, kind.out_channels // groups, -1).transpose(0, 2, 1)
    if kind.is_depthwise:
        depthwise.data_gradient(grad3, w, out3, window, threads)
    elif window.is_point:
        np.matmul(matrix, _grouped(grad3, groups), out=_grouped(out3, groups))
    else:
        out3.fill(0)
        for part in columns.parts(window, kind.channels, images, grad.itemsize):
            added, grads, _ = _matrices(kind, part, grad.dtype, scratch)
            _move(grad3, grads, part, window, into_images=False)
            np.matmul(matrix, _grouped(grads, groups), out=added.reshape(groups, -1, added.shape[1]))
            columns.add_back(added, out3, window, part)


def weight_gradient(x: Array, grad: Array, out: Array, kind: Convolution, scratch: Array, threads: Threads) -> None:
    """Write `out`, the gradient to the weights, from the images and the gradient to what came out."""
    images, window, groups = len(x), kind.window, kind.groups
    x3, grad3 = x.reshape(images, kind.channels, -1), grad.reshape(images, kind.out_channels, -1)
    total = out.reshape(groups, kind.out_channels // groups, -1)
    if kind.is_depthwise:
        depthwise.weight_gradient(x3, grad3, out, window, threads)
        return
    total.fill(0)
    if window.is_point:
        one = scratch[: out.nbytes].view(x.dtype).reshape(total.shape)
        for image in range(images):
            np.matmul(_grouped(grad3[image], groups), _grouped(x3[image], groups).transpose(0, 2, 1), out=one)
            total += one
        return
    for part in columns.parts(window, kind.channels, images, x.itemsize):
        filled, grads, one = _matrices(kind, part, x.dtype, scratch)
        columns.fill(x3, filled, window, part)
        _move(grad3, grads, part, window, into_images=False)
        per_group = filled.reshape(groups, -1, filled.shape[1]).transpose(0, 2, 1)
        np.matmul(_grouped(grads, groups), per_group, out=one.reshape(total.shape))
        total += one.reshape(total.shape)


def bias_gradient(grad: Array, out: Array) -> None:
    """Write `out` `(out_channels)`, the sum of `grad` over images and places."""
    np.sum(grad.reshape(*grad.shape[:2], -1).sum(axis=2), axis=0, out=out)


def _grouped(channels_first: Array, groups: int) -> Array:
    """`(..., channels, columns)` as `(..., groups, channels // groups, columns)`."""
    *before, channels, last = channels_first.shape
    return channels_first.reshape(*before, groups, channels // groups, last)


def _matrices(kind: Convolution, part: columns.Part, dtype: Any, scratch: Array) -> tuple[Array, Array, Array]:
    """In `scratch`: the columns of a part, what comes out of it by channel, and one matrix of weights."""
    places = (part.end - part.begin) * (part.line_end - part.line_begin) * kind.window.out[2]
    rows = kind.channels * kind.window.taps
    elements = scratch.view(dtype)
    first, second = rows * places, (rows + kind.out_channels) * places
    weights = elements[second : second + kind.out_channels * rows // kind.groups]
    return elements[:first].reshape(rows, places), elements[first:second].reshape(-1, places), weights


def _move(images: Array, matrix: Array, part: columns.Part, window: Window, *, into_images: bool) -> None:
    """Copy a part of `images` (images, channels, places) into `matrix` (channels, places of all images), or back."""
    first, count = part.line_begin * window.out[2], (part.line_end - part.line_begin) * window.out[2]
    loop_of = _into_images if into_images else _into_matrix
    loop_of(images.reshape(-1), matrix.reshape(-1), *images.shape[1:], first, count, part.begin, part.end)


@loop("R1 r1 n n n n n n")
def _into_images(
    images: Array,
    matrix: Array,
    channels: int,
    stride: int,
    first: int,
    count: int,
    begin: int,
    end: int,
) -> None:
    for channel in range(channels):
        for image in range(begin, end):
            target = (image * channels + channel) * stride + first
            copy_run(images, target, matrix, (channel * (end - begin) + image - begin) * count, count)


@loop("r1 R1 n n n n n n")
def _into_matrix(
    images: Array,
    matrix: Array,
    channels: int,
    stride: int,
    first: int,
    count: int,
    begin: int,
    end: int,
) -> None:
    for channel in range(channels):
        for image in range(begin, end):
            source = (image * channels + channel) * stride + first
            copy_run(matrix, (channel * (end - begin) + image - begin) * count, images, source, count)
