"""Tensor shapes of ResNet-50 v1, computed from the architecture (He et al., 2015, table 1, 50 layers).

161 tensors, 25,557,032 parameters: 53 convolutions without bias, a scale and a shift per batch normalisation,
one dense layer. Running means and variances are not gradients and are left out.
"""

from __future__ import annotations

STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))  # (bottleneck blocks, inner channels)
EXPANSION = 4
CLASSES = 1000


def resnet50_shapes() -> tuple[tuple[int, ...], ...]:
    """The shapes in the order of the forward pass."""
    shapes: list[tuple[int, ...]] = [*_convolution(3, 64, 7)]
    channels = 64
    for blocks, inner in STAGES:
        for block in range(blocks):
            outer = inner * EXPANSION
            shapes += [*_convolution(channels, inner, 1), *_convolution(inner, inner, 3)]
            shapes += _convolution(inner, outer, 1)
            if block == 0:
                shapes += _convolution(channels, outer, 1)  # the projection on the shortcut
            channels = outer
    return (*shapes, (CLASSES, channels), (CLASSES,))


def _convolution(channels_in: int, channels_out: int, size: int) -> list[tuple[int, ...]]:
    return [(channels_out, channels_in, size, size), (channels_out,), (channels_out,)]
