"""Batch, layer and group normalisation as ops; that of instances is that of groups of one channel.

Their gradients are computed in one piece each.

In training `batch_norm` normalises by its batch and moves its averages by

    average = momentum * average + (1 - momentum) * (mean or variance of the batch)

with the batch's variance over n, as MXNet does; otherwise it normalises by the averages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from windlass_graph import functions as F
from windlass_graph.kernels.precision import in_one_precision
from windlass_graph.op import FLAT, REQUIRED, Attrs, Backward, Missing, Op, Rule, Run, enter
from windlass_graph.tensor_type import ContradictionError, TensorType, as_float
from windlass_proto.errors import UsageError

_ONCE: Final = Missing("a normalisation is differentiated once; written with mean, rsqrt and products it has any order")
_EPSILON: Final = {"epsilon": 1e-5}
_AFFINE: Final = frozenset({"gamma", "beta"})


def _check_epsilon(attrs: Attrs) -> None:
    if not attrs["epsilon"] > 0:
        raise UsageError("epsilon keeps a division from 0", next_move="Give more than 0.", epsilon=attrs["epsilon"])


def _check_batch(attrs: Attrs) -> None:
    _check_epsilon(attrs)
    if not 0 <= attrs["momentum"] <= 1:
        raise UsageError("momentum is a share", next_move="Give 0 <= momentum <= 1.", momentum=attrs["momentum"])


def _check_groups(attrs: Attrs) -> None:
    _check_epsilon(attrs)
    if attrs["groups"] < 1:
        raise UsageError("channels are normalised in groups", next_move="Give at least 1.", groups=attrs["groups"])


def _features(x: TensorType, axis: int, axes_min: int) -> int | None:
    if x.shape is None:
        return None
    if len(x.shape) < axes_min:
        raise ContradictionError(f"data of {x} need at least {axes_min} axes")
    return x.shape[axis]


def _completed(axis: int, axes_min: int) -> Callable[[Attrs, Sequence[TensorType]], Sequence[TensorType]]:
    """Every other input has one element for each of the data's along `axis`."""

    def complete(attrs: Attrs, ins: Sequence[TensorType]) -> Sequence[TensorType]:
        size, dtype = _features(ins[0], axis, axes_min), as_float(ins[0].dtype)
        return [ins[0], *(TensorType((size,), each.dtype or dtype) for each in ins[1:])]

    return complete


def _data(axis: int, axes_min: int, attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, int | None]:
    """The output's type, and the length of the axis."""
    size = _features(ins[0], axis, axes_min)
    for each in ins[1:]:
        if each.shape is not None and (
            len(each.shape) != 1 or (size is not None and each.shape[0] not in (size, None))
        ):
            raise ContradictionError(f"parameters of {each.shape} where {size} elements are normalised")
    return TensorType(ins[0].shape, as_float(ins[0].dtype)), size


def _batch_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    out, size = _data(1, 2, attrs, ins)
    statistic = TensorType((size,), out.dtype)
    return (out, statistic, statistic, statistic)


def _layer_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    out, _ = _data(-1, 1, attrs, ins)
    statistic = TensorType(None if out.shape is None else out.shape[:-1], out.dtype)
    return (out, statistic, statistic)


def _group_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    out, size = _data(1, 2, attrs, ins)
    if size is not None and size % attrs["groups"]:
        raise ContradictionError(f"{size} channels in {attrs['groups']} groups")
    statistic = TensorType((None if out.shape is None else out.shape[0], attrs["groups"]), out.dtype)
    return (out, statistic, statistic)


def _gradient_types(attrs: Attrs, ins: Sequence[TensorType]) -> tuple[TensorType, ...]:
    dtype = as_float(ins[0].dtype)
    return tuple(TensorType(each.shape, dtype) for each in (ins[1], ins[2], ins[2]))


def _images(array: Any) -> Any:
    """`(images, channels, points)`: a view."""
    return array.reshape(*array.shape[:2], -1)


def _batch(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_normalisation, normalisation

    x, gamma, beta, moving_mean, moving_variance = ins
    out, mean, variance, inverse = outs
    if attrs["training"]:
        if xp is np:
            normalisation.batch_statistics(_images(x), mean, variance, run.threads)
        else:
            device_normalisation.batch_statistics(xp, _images(x), mean, variance)
    else:
        mean[...], variance[...] = moving_mean, moving_variance
    xp.sqrt(variance + variance.dtype.type(attrs["epsilon"]), out=inverse)
    xp.divide(1, inverse, out=inverse)
    scale = gamma * inverse
    shift = beta - mean * scale
    if xp is np:
        normalisation.scale_channels(_images(x), scale, shift, _images(out), run.threads)
    else:
        device_normalisation.scale_channels(xp, _images(x), scale, shift, _images(out))


def _batch_gradient(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_normalisation, normalisation

    g, x, gamma, mean, inverse = ins
    if attrs["training"]:
        to_x, to_gamma, to_beta = _images(outs[0]), outs[1], outs[2]
        g, x = _images(g), _images(x)
        if xp is np:
            normalisation.batch_gradient(g, x, gamma, mean, inverse, to_x, to_gamma, to_beta, run.threads)
        else:
            device_normalisation.batch_gradient(g, x, gamma, mean, inverse, to_x, to_gamma, to_beta)
        return
    axes = (0, *range(2, g.ndim))
    wide = (1, -1, *(1,) * (g.ndim - 2))
    xp.sum(g, axis=axes, out=outs[2])
    xp.sum(g * (x - mean.reshape(wide)), axis=axes, out=outs[1])
    outs[1][...] *= inverse
    xp.multiply(g, (gamma * inverse).reshape(wide), out=outs[0])


def _layer(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_normalisation, normalisation

    x, gamma, beta = ins
    rows = (-1, x.shape[-1])
    x, out, mean, inverse = x.reshape(rows), outs[0].reshape(rows), outs[1].reshape(-1), outs[2].reshape(-1)
    if xp is np:
        normalisation.layer(x, gamma, beta, out, mean, inverse, attrs["epsilon"], run.threads)
    else:
        device_normalisation.layer(xp, x, gamma, beta, out, mean, inverse, attrs["epsilon"])


def _layer_gradient(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_normalisation, normalisation

    g, x, gamma, mean, inverse = ins
    rows = (-1, x.shape[-1])
    to_x, to_gamma, to_beta = outs[0].reshape(rows), outs[1], outs[2]
    g, x, mean, inverse = g.reshape(rows), x.reshape(rows), mean.reshape(-1), inverse.reshape(-1)
    if xp is np:
        normalisation.layer_gradient(g, x, gamma, mean, inverse, to_x, to_gamma, to_beta, run.threads)
    else:
        device_normalisation.layer_gradient(g, x, gamma, mean, inverse, to_x, to_gamma, to_beta)


def _group(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_normalisation, normalisation

    x, gamma, beta = ins
    out, mean, inverse = _images(outs[0]), outs[1], outs[2]
    if xp is np:
        normalisation.group(_images(x), gamma, beta, out, mean, inverse, attrs["epsilon"], run.threads)
    else:
        device_normalisation.group(xp, _images(x), gamma, beta, out, mean, inverse, attrs["epsilon"])


def _group_gradient(xp: Any, attrs: Attrs, ins: Sequence[Any], outs: Sequence[Any], run: Run) -> None:
    from windlass_graph.kernels import device_normalisation, normalisation

    g, x, gamma, mean, inverse = ins
    to_x, to_gamma, to_beta = _images(outs[0]), outs[1], outs[2]
    g, x = _images(g), _images(x)
    if xp is np:
        normalisation.group_gradient(g, x, gamma, mean, inverse, to_x, to_gamma, to_beta, run.threads)
    else:
        device_normalisation.group_gradient(g, x, gamma, mean, inverse, to_x, to_gamma, to_beta)


def _rules(name: str, inverse: int, *attrs: str) -> tuple[Rule, Rule, Rule]:
    """The gradients by data, gamma and beta: outputs of the op `name`, computed once."""

    def all_three(b: Backward) -> Any:
        given = {each: b.attrs[each] for each in attrs}
        return F.function(name)(b.g, b.ins[0], b.ins[1], b.outs[1], b.outs[inverse], **given)

    def rule(index: int) -> Rule:
        return lambda b: b.shared(all_three)[index]

    return rule(0), rule(1), rule(2)


def _moved(b: Backward) -> dict[int, Any]:
    """The averages after this batch."""
    kept = b.attrs["momentum"]
    return {3: b.ins[3] * kept + b.outs[1] * (1 - kept), 4: b.ins[4] * kept + b.outs[2] * (1 - kept)}


_GRADIENT_INPUTS: Final = ("g", "x", "gamma", "mean", "inverse")

enter(
    Op(
        "batch_norm",
        ("x", "gamma", "beta", "moving_mean", "moving_variance"),
        _batch_types,
        in_one_precision(_batch),
        (*_rules("batch_norm_gradient", 3, "training"), FLAT, FLAT),
        attrs={**_EPSILON, "momentum": 0.9, "training": None},
        complete=_completed(1, 2),
        parameters=_AFFINE | {"moving_mean", "moving_variance"},
        auxiliary=frozenset({"moving_mean", "moving_variance"}),
        updates=_moved,
        check=_check_batch,
        doc="each channel less its mean over its deviation, times gamma plus beta; of the batch in training",
    ),
    Op(
        "batch_norm_gradient",
        _GRADIENT_INPUTS,
        _gradient_types,
        in_one_precision(_batch_gradient),
        _ONCE,
        attrs={"training": None},
        visible=3,
        doc="the gradients of batch_norm by data, gamma and beta",
    ),
    Op(
        "layer_norm",
        ("x", "gamma", "beta"),
        _layer_types,
        in_one_precision(_layer),
        _rules("layer_norm_gradient", 2),
        attrs=_EPSILON,
        complete=_completed(-1, 1),
        parameters=_AFFINE,
        check=_check_epsilon,
        doc="each row of the last axis less its mean over its deviation, times gamma plus beta",
    ),
    Op(
        "layer_norm_gradient",
        _GRADIENT_INPUTS,
        _gradient_types,
        in_one_precision(_layer_gradient),
        _ONCE,
        visible=3,
        doc="the gradients of layer_norm by data, gamma and beta",
    ),
    Op(
        "group_norm",
        ("x", "gamma", "beta"),
        _group_types,
        in_one_precision(_group),
        _rules("group_norm_gradient", 2),
        attrs={"groups": REQUIRED, **_EPSILON},
        complete=_completed(1, 2),
        parameters=_AFFINE,
        check=_check_groups,
        doc="each image's groups of channels less their mean over their deviation, times gamma plus beta by channel",
    ),
    Op(
        "group_norm_gradient",
        _GRADIENT_INPUTS,
        _gradient_types,
        in_one_precision(_group_gradient),
        _ONCE,
        visible=3,
        doc="the gradients of group_norm by data, gamma and beta",
    ),
)
