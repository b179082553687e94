"""Convolution along one to three axes of space, transposed convolution, and the gradients of both as ops.

A convolution is linear in its data and in its weight, so its two gradients are convolutions again, each the gradient of
the others, to any order. Data are `(batch, channels, *space)`, weights `(out_channels, channels // groups,
*kernel_size)`; a transposed convolution takes the weight of the one that it undoes: `(channels, out_channels // groups,
*kernel_size)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from windlass_graph import functions as F
from windlass_graph.kernels.precision import in_one_precision
from windlass_graph.kernels.windows import AXES_MAX, Window
from windlass_graph.op import FLAT, REQUIRED, Attrs, Backward, Op, Run, enter
from windlass_graph.tensor_type import ContradictionError, Shape, TensorType, as_float, promoted
from windlass_proto.errors import UsageError

_WINDOW: Final = {"kernel_size": REQUIRED, "stride": None, "padding": None, "dilation": None}
_LAYER: Final = {"channels": REQUIRED, "groups": 1, "use_bias": True}


def per_axis(attrs: Attrs, name: str, fill: int) -> tuple[int, ...]:
    """An attribute as one number for each axis of the window; one number stands for all, None for `fill`."""
    value = fill if attrs[name] is None else attrs[name]
    return (value,) * len(attrs["kernel_size"]) if not isinstance(value, tuple) else value


def check_window(attrs: Attrs) -> None:
    """Refuse windows with a wrong number of axes or numbers out of range."""
    size: Any = attrs["kernel_size"]
    if not (isinstance(size, tuple) and len(size) in range(1, AXES_MAX + 1)):
        raise UsageError(
            "kernel_size has one number for each of one to three axes of space",
            next_move="Give a tuple such as (3, 3).",
            kernel_size=size,
        )
    for name, fill, least in (("kernel_size", 1, 1), ("stride", 1, 1), ("padding", 0, 0), ("dilation", 1, 1)):
        if name not in attrs:
            continue
        numbers: tuple[Any, ...] = per_axis(attrs, name, fill)
        if len(numbers) != len(size) or not all(isinstance(n, int) and n >= least for n in numbers):
            raise UsageError(
                f"{name} needs a whole number of at least {least} for each axis",
                next_move=f"Give {len(size)} of them, or one for all.",
                kernel_size=size,
                **({} if name == "kernel_size" else {name: attrs[name]}),
            )


def out_sizes(attrs: Attrs, space: Shape) -> Shape:
    """How often the window fits along each axis; None where that is unknown.

    Raises:
        ContradictionError: it does not fit once.
    """
    return tuple(None if size is None else _out_size(attrs, axis, size) for axis, size in enumerate(space))


def _out_size(attrs: Attrs, axis: int, size: int) -> int:
    kernel: int = (attrs["kernel_size"][axis] - 1) * per_axis(attrs, "dilation", 1)[axis] + 1
    padded = size + 2 * per_axis(attrs, "padding", 0)[axis]
    if padded < kernel:
        raise ContradictionError(f"a window of {kernel} on {padded} elements, padding included, along axis {axis + 2}")
    return (padded - kernel) // per_axis(attrs, "stride", 1)[axis] + 1


def window_of(attrs: Attrs, space: Sequence[int]) -> Window:
    """The window on images of this size."""
    stride, padding = per_axis(attrs, "stride", 1), per_axis(attrs, "padding", 0)
    return Window.of(space, attrs["kernel_size"], stride, padding, per_axis(attrs, "dilation", 1))


def space_of(attrs: Attrs, type_: TensorType) -> Shape:
    """The axes of space of data.

    Raises:
        ContradictionError: the data have not as many axes as the window and two more.
    """
    axes = len(attrs["kernel_size"])
    if type_.shape is None:
        return (None,) * axes
    if len(type_.shape) != axes + 2:
        raise ContradictionError(f"data of {type_}: a window of {axes} axes needs (batch, channels, {axes} of space)")
    return type_.shape[2:]


def _axis(type_: TensorType, axis: int) -> int | None:
    return None if type_.shape is None else type_.shape[axis]


def _check_layer(attrs: Attrs) -> None:
    check_window(attrs)
    if attrs["groups"] < 1 or attrs["channels"] < 1 or attrs["channels"] % attrs["groups"]:
        raise UsageError(
            "channels come in groups of one size",
            next_move="Make channels a multiple of groups, both at least 1.",
            channels=attrs["channels"],
            groups=attrs["groups"],
        )
    if any(n >= s for n, s in zip(_output_padding(attrs), per_axis(attrs, "stride", 1), strict=True)):
        raise UsageError(
            "output_padding chooses among the sizes that one stride covers",
            next_move="Give less than the stride.",
            output_padding=attrs["output_padding"],
            stride=per_axis(attrs, "stride", 1),
        )


def _output_padding(attrs: Attrs) -> tuple[int, ...]:
    return per_axis(attrs, "output_padding", 0) if "output_padding" in attrs else (0,) * len(attrs["kernel_size"])


def _inputs(attrs: Attrs) -> tuple[str, ...]:
    return ("x", "weight", "bias") if attrs["use_bias"] else ("x", "weight")


def _dtype(ins: Sequence[TensorType]) -> str | None:
    return as_float(promoted([each.dtype for each in ins]))


def _groups_fit(attrs: Attrs, ins: Sequence[TensorType]) -> int | None:
    """The channels of the data."""
    space_of(attrs, ins[0])
    channels = _axis(ins[0], 1)
    if channels is not None and channels % attrs["groups"]:
        raise ContradictionError(f"{channels} channels in {attrs['groups']} groups")
    return channels


def _fits(found: TensorType, shape: Shape, what: str) -> None:
    if found.shape is not None and (
        len(found.shape) != len(shape)
        or any(a != b for a, b in zip(found.shape, shape, strict=True) if None not in (a, b))
    ):
        raise ContradictionError(f"a {what} of {found.shape} where {shape} is needed")


def _weight_shape(attrs: Attrs, ins: Sequence[TensorType]) -> Shape:
    channels = _groups_fit(attrs, ins)
    per_group = None if channels is None else channels // attrs["groups"]
    return (attrs["channels"], per_group, *attrs["kernel_size"])


def _types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    _fits(ins[1], _weight_shape(attrs, ins), "weight")
    shape = (_axis(ins[0], 0), attrs["channels"], *out_sizes(attrs, space_of(attrs, ins[0])))
    return (TensorType(shape, _dtype(ins)),)


def _complete(attrs: Attrs, ins: Sequence[TensorType]) -> Sequence[TensorType]:
    return _completed(attrs, ins, _weight_shape(attrs, ins))


def _completed(attrs: Attrs, ins: Sequence[TensorType], weight: Shape) -> Sequence[TensorType]:
    dtype = as_float(ins[0].dtype)
    bias = [TensorType((attrs["channels"],), each.dtype or dtype) for each in ins[2:]]
    return [ins[0], TensorType(weight, ins[1].dtype or dtype), *bias]


def _transposed_weight(attrs: Attrs, ins: Sequence[TensorType]) -> Shape:
    return (_groups_fit(attrs, ins), attrs["channels"] // attrs["groups"], *attrs["kernel_size"])


def _transposed_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    _fits(ins[1], _transposed_weight(attrs, ins), "weight")
    kernel, stride = attrs["kernel_size"], per_axis(attrs, "stride", 1)
    dilation, padding = per_axis(attrs, "dilation", 1), per_axis(attrs, "padding", 0)
    more = _output_padding(attrs)
    space = tuple(
        None if n is None else (n - 1) * stride[k] - 2 * padding[k] + dilation[k] * (kernel[k] - 1) + more[k] + 1
        for k, n in enumerate(space_of(attrs, ins[0]))
    )
    if any(n is not None and n < 1 for n in space):
        raise ContradictionError(f"padding of {padding} leaves nothing of {space}")
    return (TensorType((_axis(ins[0], 0), attrs["channels"], *space), _dtype(ins)),)


def _transposed_complete(attrs: Attrs, ins: Sequence[TensorType]) -> Sequence[TensorType]:
    return _completed(attrs, ins, _transposed_weight(attrs, ins))


def _kind(attrs: Attrs, data: Sequence[int], out_channels: int) -> Any:
    """The kernel's description, from the shape of what is convolved."""
    from windlass_graph.kernels.convolution import Convolution

    return Convolution(window_of(attrs, data[2:]), data[1], out_channels, attrs["groups"])


def _scratch(data: int, out_channels: tuple[int, int]) -> Any:
    """Bytes, where input `data` has the shape of what is convolved and axis `out_channels` tells what comes out."""

    def nbytes(attrs: Attrs, ins: Sequence[TensorType]) -> int:
        shape = ins[data].known_shape
        kind = _kind(attrs, shape, ins[out_channels[0]].known_shape[out_channels[1]])
        itemsize = 8 if any(each.dtype == "float64" for each in ins) else 4
        found: int = kind.scratch_bytes(shape[0], itemsize)
        return found

    return nbytes


def _transposed_scratch(attrs: Attrs, ins: Sequence[TensorType]) -> int:
    (out,) = _transposed_types(attrs, ins)
    return int(_scratch(0, (1, 0))(attrs, [out, *ins[1:]]))


def _forward(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_convolution
    from windlass_graph.kernels.convolution import convolve

    kind = _kind(attrs, ins[0].shape, len(ins[1]))
    bias = ins[2] if len(ins) > 2 else None
    if xp is not np:
        device_convolution.convolve(xp, ins[0], ins[1], bias, outs[0], kind.window, kind.groups)
        return
    convolve(ins[0], ins[1], bias, outs[0], kind, run.scratch, run.threads)


def _data_gradient(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_convolution
    from windlass_graph.kernels.convolution import data_gradient

    kind = _kind(attrs, outs[0].shape, len(ins[1]))
    if xp is not np:
        device_convolution.data_gradient(xp, ins[0], ins[1], outs[0], kind.window, kind.groups)
        return
    data_gradient(ins[0], ins[1], outs[0], kind, run.scratch, run.threads)


def _weight_gradient(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_convolution
    from windlass_graph.kernels.convolution import weight_gradient

    kind = _kind(attrs, ins[0].shape, ins[1].shape[1])
    if xp is not np:
        device_convolution.weight_gradient(xp, ins[0], ins[1], outs[0], kind.window, kind.groups)
        return
    weight_gradient(ins[0], ins[1], outs[0], kind, run.scratch, run.threads)


def _transposed(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    _data_gradient(xp, attrs, ins, outs, run)
    if len(ins) > 2:
        outs[0].reshape(*outs[0].shape[:2], -1)[...] += ins[2][:, None]


def _geometry(attrs: Attrs) -> dict[str, Any]:
    return {name: attrs[name] for name in (*_WINDOW, "groups")}


def _by_bias(b: Backward) -> Any:
    return F.sum(b.g, axis=(0, *range(2, len(b.attrs["kernel_size"]) + 2)))


def _rule(b: Backward, index: int) -> Any:
    if index == 0:
        return F.convolution_data_gradient(b.g, b.y, b.x, **_geometry(b.attrs))
    return F.convolution_weight_gradient(b.x, b.g, b.y, **_geometry(b.attrs)) if index == 1 else _by_bias(b)


def _transposed_rule(b: Backward, index: int) -> Any:
    if index == 0:
        return F.convolution_like(b.g, b.y, b.x, **_geometry(b.attrs))
    return F.convolution_weight_gradient(b.g, b.x, b.y, **_geometry(b.attrs)) if index == 1 else _by_bias(b)


_GROUPED: Final = {**_WINDOW, "groups": 1}


def _types_of_third(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    return (TensorType(ins[2].shape, _dtype(ins[:2])),)


enter(
    Op(
        "convolution",
        _inputs,
        _types,
        in_one_precision(_forward),
        _rule,
        attrs={**_WINDOW, **_LAYER},
        complete=_complete,
        parameters=frozenset({"weight", "bias"}),
        scratch=_scratch(0, (1, 0)),
        check=_check_layer,
        doc="the sum of each window's elements times the weight, plus the bias; along one to three axes",
    ),
    Op(
        "transposed_convolution",
        _inputs,
        _transposed_types,
        in_one_precision(_transposed),
        _transposed_rule,
        attrs={**_WINDOW, **_LAYER, "output_padding": None},
        complete=_transposed_complete,
        parameters=frozenset({"weight", "bias"}),
        scratch=_transposed_scratch,
        check=_check_layer,
        doc="the transpose of a convolution as a linear map: from the size that comes out of it to that it takes",
    ),
    Op(
        "convolution_like",
        ("x", "weight", "like"),
        _types_of_third,
        in_one_precision(lambda xp, attrs, ins, outs, run: _forward(xp, attrs, ins[:2], outs, run), indices=(2,)),
        (
            lambda b: F.convolution_data_gradient(b.g, b.y, b.x, **_geometry(b.attrs)),
            lambda b: F.convolution_weight_gradient(b.x, b.g, b.y, **_geometry(b.attrs)),
            FLAT,
        ),
        scratch=_scratch(0, (1, 0)),
        doc="a convolution without bias whose output has the shape of `like`",
        unread=(2,),
        attrs=_GROUPED,
        check=check_window,
    ),
    Op(
        "convolution_data_gradient",
        ("g", "weight", "like"),
        _types_of_third,
        in_one_precision(_data_gradient),
        (
            lambda b: F.convolution_like(b.g, b.y, b.x, **_geometry(b.attrs)),
            lambda b: F.convolution_weight_gradient(b.g, b.x, b.y, **_geometry(b.attrs)),
            FLAT,
        ),
        scratch=_scratch(2, (1, 0)),
        doc="the gradient of a convolution by its data, which have the shape of `like`",
        unread=(2,),
        attrs=_GROUPED,
        check=check_window,
    ),
    Op(
        "convolution_weight_gradient",
        ("x", "g", "like"),
        _types_of_third,
        in_one_precision(_weight_gradient),
        (
            lambda b: F.convolution_data_gradient(b.y, b.g, b.x, **_geometry(b.attrs)),
            lambda b: F.convolution_like(b.x, b.g, b.y, **_geometry(b.attrs)),
            FLAT,
        ),
        scratch=_scratch(0, (1, 1)),
        doc="the gradient of a convolution by its weight, which has the shape of `like`",
        unread=(2,),
        attrs=_GROUPED,
        check=check_window,
    ),
)
