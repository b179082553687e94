"""Convolution and its gradients on a GPU: columns by `device_windows`, products by CuPy's BLAS.

What is computed `convolution` says. Columns are made of as many images at a time as `COLUMNS_BYTES` hold, in memory of
CuPy's pool: a device is kept busy by large products, not by parts that lie in cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from windlass_graph.kernels import device_windows
from windlass_graph.kernels.windows import Window

COLUMNS_BYTES: Final = 256 << 20


def convolve(xp: Any, x: Any, w: Any, bias: Any, out: Any, window: Window, groups: int) -> None:
    """Write `out` (images, out_channels, *space)."""
    x3, out3, matrix = _flat(x), _flat(out), w.reshape(groups, len(w) // groups, -1)
    for part in _parts(x3, window):
        columns = _columns(xp, x3[part], window)
        sums = xp.matmul(matrix, columns.reshape(groups, -1, columns.shape[1]))
        out3[part] = _by_image(sums, out3[part])
    if bias is not None:
        out3 += bias[:, None]


def data_gradient(xp: Any, grad: Any, w: Any, out: Any, window: Window, groups: int) -> None:
    """Write `out`, the gradient by the images."""
    grad3, out3 = _flat(grad), _flat(out)
    matrix = w.reshape(groups, len(w) // groups, -1).transpose(0, 2, 1)
    for part in _parts(out3, window):
        added = xp.matmul(matrix, _by_channel(grad3[part], groups))
        columns = xp.ascontiguousarray(added.reshape(out3.shape[1] * window.taps, -1))
        device_windows.add_back(xp, columns, out3[part], window)


def weight_gradient(xp: Any, x: Any, grad: Any, out: Any, window: Window, groups: int) -> None:
    """Write `out`, the gradient by the weights."""
    x3, grad3, total = _flat(x), _flat(grad), out.reshape(groups, len(out) // groups, -1)
    total[...] = 0
    for part in _parts(x3, window):
        columns = _columns(xp, x3[part], window)
        seen = columns.reshape(groups, -1, columns.shape[1]).transpose(0, 2, 1)
        total += xp.matmul(_by_channel(grad3[part], groups), seen)


def _flat(images: Any) -> Any:
    return images.reshape(*images.shape[:2], -1)


def _parts(images: Any, window: Window) -> Iterator[slice]:
    """Images whose columns fit, one at least."""
    nbytes = images.shape[1] * window.taps * window.places * images.dtype.itemsize
    step = max(1, COLUMNS_BYTES // nbytes)
    for begin in range(0, len(images), step):
        yield slice(begin, min(begin + step, len(images)))


def _columns(xp: Any, images: Any, window: Window) -> Any:
    columns = xp.empty((images.shape[1] * window.taps, len(images) * window.places), images.dtype)
    device_windows.fill(xp, images, columns, window)
    return columns


def _by_channel(images: Any, groups: int) -> Any:
    """`(images, channels, places)` as `(groups, channels // groups, images * places)`."""
    return images.transpose(1, 0, 2).reshape(groups, images.shape[1] // groups, -1)


def _by_image(sums: Any, like: Any) -> Any:
    """The inverse of `_by_channel`, in the shape of `like`."""
    return sums.reshape(like.shape[1], len(like), -1).transpose(1, 0, 2)
