"""Max and mean pooling along one to three axes of space, global or by a window, and their gradients as ops.

Both are linear once it is known which elements were largest, so their gradients have gradients: `max_pool_gradient`
brings back what `max_pool_gather` takes, and the mean's is the transpose of the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from windlass_graph import functions as F
from windlass_graph.kernels.precision import in_one_precision
from windlass_graph.kernels.windows import AXES_MAX, Window
from windlass_graph.op import FLAT, Attrs, Op, Run, enter
from windlass_graph.ops.convolution import check_window, out_sizes, per_axis, space_of, window_of
from windlass_graph.tensor_type import ContradictionError, Shape, TensorType, as_float
from windlass_proto.errors import UsageError

_WINDOW: Final = {"kernel_size": None, "stride": None, "padding": None, "global_pool": False}
_MEAN: Final = {**_WINDOW, "count_include_pad": True}


def _check(attrs: Attrs) -> None:
    if attrs["global_pool"] != (attrs["kernel_size"] is None):
        raise UsageError(
            "pooling is by a window or global",
            next_move="Give kernel_size, or global_pool=True without it.",
            kernel_size=attrs["kernel_size"],
            global_pool=attrs["global_pool"],
        )
    if attrs["global_pool"]:
        return
    check_window(attrs)
    for kernel, pad in zip(attrs["kernel_size"], per_axis(attrs, "padding", 0), strict=True):
        if 2 * pad > kernel:
            raise UsageError(
                "a window may lie in the padding by half at most",
                next_move="Pad less, so that each window sees an element.",
                kernel_size=attrs["kernel_size"],
                padding=attrs["padding"],
            )


def _full(attrs: Attrs) -> dict[str, Any]:
    """Attributes as `ops.convolution` knows them. Windows are as far apart as they are large, where nothing is said."""
    stride = attrs["kernel_size"] if attrs["stride"] is None else attrs["stride"]
    return {**attrs, "stride": stride, "dilation": None}


def _window(attrs: Attrs, space: Sequence[int]) -> Window:
    if attrs["global_pool"]:
        return Window.of(space, space)
    return window_of(_full(attrs), space)


def _pooled(attrs: Attrs, x: TensorType) -> Shape | None:
    if not attrs["global_pool"]:
        batch = (None, None) if x.shape is None else x.shape[:2]
        return (*batch, *out_sizes(_full(attrs), space_of(attrs, x)))
    if x.shape is None:
        return None
    if not 3 <= len(x.shape) <= AXES_MAX + 2:
        raise ContradictionError(f"data of {x}: pooling needs (batch, channels, one to three axes of space)")
    return (*x.shape[:2], *(1,) * (len(x.shape) - 2))


def _max_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    shape = _pooled(attrs, ins[0])
    return (TensorType(shape, as_float(ins[0].dtype)), TensorType(shape, "int32"))


def _mean_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(_pooled(attrs, ins[0]), as_float(ins[0].dtype)),)


def _like(index: int) -> Any:
    """In the shape of an input."""

    def types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
        return (TensorType(ins[index].shape, as_float(ins[0].dtype)),)

    return types


def _by_channel(array: Any) -> Any:
    """`(batch * channels, points)`: a view."""
    return array.reshape(array.shape[0] * array.shape[1], -1)


def _check_places(at: Any, points: Any) -> None:
    """Compiled loops write where they are told."""
    if at.size and (at.max() >= points.shape[1] or len(at) != len(points) or at.dtype != "int32"):
        raise UsageError(
            "places of largest elements are int32 within the points of a channel",
            next_move="Take them from max_pool.",
            largest=int(at.max()),
            points=points.shape[1],
        )


def _largest(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_windows, pooling

    window = _window(attrs, ins[0].shape[2:])
    x, out, at = map(_by_channel, (*ins, *outs))
    if xp is np:
        pooling.largest(x, out, at, window, run.threads)
    else:
        device_windows.largest(xp, x, out, at, window)


def _spread(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_windows, pooling

    g, at, out = map(_by_channel, (*ins[:2], *outs))
    if xp is np:
        _check_places(at, out)
        pooling.spread(g, at, out, run.threads)
    else:
        device_windows.spread(xp, g, at, out, _window(attrs, outs[0].shape[2:]))


def _gather(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import pooling

    x, at, out = map(_by_channel, (*ins, *outs))
    if xp is np:
        _check_places(at, x)
        pooling.gather(x, at, out, run.threads)
    else:
        out[...] = xp.where(at < 0, 0, xp.take_along_axis(x, xp.maximum(at, 0), axis=1))


def _mean(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_windows, pooling

    window, counts = _window(attrs, ins[0].shape[2:]), attrs["count_include_pad"]
    x, out = _by_channel(ins[0]), _by_channel(outs[0])
    if xp is np:
        pooling.mean(x, out, window, count_padding=counts, threads=run.threads)
    else:
        device_windows.mean(xp, x, out, window, count_padding=counts)


def _mean_gradient(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_windows, pooling

    window, counts = _window(attrs, outs[0].shape[2:]), attrs["count_include_pad"]
    g, out = _by_channel(ins[0]), _by_channel(outs[0])
    if xp is np:
        pooling.mean_gradient(g, out, window, count_padding=counts, threads=run.threads)
    else:
        device_windows.mean_gradient(xp, g, out, window, count_padding=counts)


enter(
    Op(
        "max_pool",
        ("x",),
        _max_types,
        in_one_precision(_largest),
        (lambda b: F.max_pool_gradient(b.g, b.outs[1], b.x, **b.attrs),),
        attrs=_WINDOW,
        check=_check,
        doc="the largest element of each window, or of each channel",
    ),
    Op(
        "max_pool_gradient",
        ("g", "at", "like"),
        _like(2),
        in_one_precision(_spread, indices=(1, 2)),
        (lambda b: F.max_pool_gather(b.g, b.y, **b.attrs), FLAT, FLAT),
        unread=(2,),
        attrs=_WINDOW,
        check=_check,
        doc="zeros like the data, to which g is added where the largest elements were",
    ),
    Op(
        "max_pool_gather",
        ("x", "at"),
        _like(1),
        in_one_precision(_gather, indices=(1,)),
        (lambda b: F.max_pool_gradient(b.g, b.y, b.x, **b.attrs), FLAT),
        attrs=_WINDOW,
        check=_check,
        doc="of each channel the elements at given places",
    ),
    Op(
        "mean_pool",
        ("x",),
        _mean_types,
        in_one_precision(_mean),
        (lambda b: F.mean_pool_gradient(b.g, b.x, **b.attrs),),
        attrs=_MEAN,
        check=_check,
        doc="the mean of each window, or of each channel; the padding counts as zeros or not at all",
    ),
    Op(
        "mean_pool_gradient",
        ("g", "like"),
        _like(1),
        in_one_precision(_mean_gradient, indices=(1,)),
        (lambda b: F.mean_pool(b.g, **b.attrs), FLAT),
        attrs=_MEAN,
        check=_check,
        unread=(1,),
        doc="the transpose of mean_pool as a linear map",
    ),
)
