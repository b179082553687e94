"""MXNet's ops in terms of windlass's: one function an op, by MXNet's name.

Invariant: what is translated computes the same, forward and backward; anything else is refused with the node's name. A
translation gives its last node the name that MXNet's had, so outputs keep their names.

Source: MXNet 1.9.1's reference of operators, and its behaviour, to which the tests hold this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from windlass_graph import functions as F
from windlass_graph.mxnet_attributes import Attributes
from windlass_graph.symbol import Symbol

Inputs = Sequence[Symbol]
Translation = Callable[[Attributes, Inputs, dict[str, Any]], Any]
"""`translate(attributes, inputs, named)`; `named` is the name and labels of the last node."""

TRANSLATIONS: Final[dict[str, Translation]] = {}
AUXILIARY: Final = {"BatchNorm": (3, 4), "BatchNorm_v1": (3, 4)}
"""Inputs that are auxiliary states, by op."""


def _op(*names: str) -> Callable[[Translation], Translation]:
    def enter(translate: Translation) -> Translation:
        for name in names:
            TRANSLATIONS[name] = translate
        return translate

    return enter


def _same(ours: str, *names: str) -> None:
    """Ops without attributes that differ by their name alone."""
    _op(*names)(lambda _, ins, named: F.function(ours)(*ins, **named))


_ALIKE: Final = (
    "exp log sqrt square rsqrt sign floor ceil trunc sin cos tan arcsin arccos arctan sinh cosh tanh sigmoid relu "
    "softsign reciprocal negative log1p expm1 erf zeros_like ones_like where"
)
for _name in _ALIKE.split():
    _same(_name, _name)
_same("absolute", "abs")
_same("trunc", "fix")
_same("identity", "_copy", "identity")
_same("block_grad", "BlockGrad", "stop_gradient")
_same("make_loss", "make_loss")
_same("flatten", "Flatten", "flatten")
for _ours, _theirs in (
    ("add", "elemwise_add broadcast_add broadcast_plus _plus _Plus _add _grad_add"),
    ("subtract", "elemwise_sub broadcast_sub broadcast_minus _minus _Minus _sub"),
    ("multiply", "elemwise_mul broadcast_mul _mul _Mul"),
    ("divide", "elemwise_div broadcast_div _div _Div"),
    ("power", "broadcast_power _power _Power _pow"),
    ("maximum", "broadcast_maximum _maximum _Maximum"),
    ("minimum", "broadcast_minimum _minimum _Minimum"),
    ("mod", "broadcast_mod _mod"),
    ("hypot", "broadcast_hypot _hypot"),
):
    _same(_ours, *_theirs.split())


def _compared(ours: str) -> Translation:
    """MXNet's comparisons answer in the dtype of their operands."""

    def translate(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
        other = ins[1] if len(ins) > 1 else attrs.number("scalar")
        return F.cast_like(F.function(ours)(ins[0], other), ins[0], **named)

    return translate


for _ours in ("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"):
    _short = _ours.replace("less", "lesser")
    _op(f"broadcast_{_short}", f"_{_ours}", f"_{_short}", f"_{_short}_scalar")(_compared(_ours))


def _with_scalar(ours: str, reflected: bool) -> Translation:
    def translate(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
        scalar = attrs.number("scalar")
        attrs.flag("is_int", True)
        operands = (scalar, ins[0]) if reflected else (ins[0], scalar)
        return F.function(ours)(*operands, **named)

    return translate


for _ours, _theirs, _old in (
    ("add", "plus", "Plus"), ("subtract", "minus", "Minus"), ("multiply", "mul", "Mul"), ("divide", "div", "Div"),
    ("power", "power", "Power"), ("mod", "mod", "Mod"), ("maximum", "maximum", "Maximum"),
    ("minimum", "minimum", "Minimum"), ("hypot", "hypot", "Hypot"),
):  # fmt: skip
    _op(f"_{_theirs}_scalar", f"_{_old}Scalar")(_with_scalar(_ours, False))
    _op(f"_r{_theirs}_scalar", f"_R{_old}Scalar")(_with_scalar(_ours, True))


@_op("FullyConnected")
def _dense(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    units, flatten = attrs.integer("num_hidden"), attrs.flag("flatten", True)
    return F.fully_connected(*ins, units=units, use_bias=not attrs.flag("no_bias"), flatten=flatten, **named)


@_op("Activation")
def _activation(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    names = {"relu": "relu", "sigmoid": "sigmoid", "softrelu": "softplus", "softsign": "softsign", "tanh": "tanh"}
    kind = attrs.text("act_type", "")
    if kind not in names:
        raise attrs.refused("its act_type is unknown", act_type=kind)
    return F.function(names[kind])(*ins, **named)


@_op("LeakyReLU")
def _leaky(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    kind, slope = attrs.text("act_type", "leaky"), attrs.number("slope", 0.25)
    attrs.number("lower_bound", 0)
    attrs.number("upper_bound", 0)
    if kind == "leaky":
        return F.leaky_relu(ins[0], slope=slope, **named)
    if kind == "elu":
        return F.elu(ins[0], alpha=slope, **named)
    if kind in ("gelu", "selu"):
        return F.function(kind)(ins[0], **named)
    raise attrs.refused("its act_type is none of leaky, elu, selu, gelu", act_type=kind)


def _windows(attrs: Attributes) -> dict[str, Any]:
    attrs.only("layout", "None", "NCW", "NCHW", "NCDHW")
    return {"kernel_size": attrs.window("kernel"), "stride": attrs.window("stride"), "padding": attrs.window("pad")}


def _channels(attrs: Attributes, no_bias: bool) -> dict[str, Any]:
    return {
        "dilation": attrs.window("dilate"),
        "channels": attrs.integer("num_filter"),
        "groups": attrs.integer("num_group", 1),
        "use_bias": not attrs.flag("no_bias", no_bias),
    }


@_op("Convolution", "Convolution_v1")
def _convolution(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    return F.convolution(*ins, **_windows(attrs), **_channels(attrs, False), **named)


@_op("Deconvolution")
def _deconvolution(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    if attrs.window("target_shape") is not None:
        raise attrs.refused("it has a target_shape")
    padding = {"output_padding": attrs.window("adj")}
    return F.transposed_convolution(*ins, **_windows(attrs), **_channels(attrs, True), **padding, **named)


@_op("Pooling", "Pooling_v1")
def _pooling(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    kind, convention = attrs.text("pool_type", "max"), attrs.text("pooling_convention", "valid")
    include, window = attrs.text("count_include_pad", "None"), _windows(attrs)
    if attrs.flag("global_pool"):
        window = {"global_pool": True}
    else:
        kernel = window["kernel_size"] or ()
        window["stride"] = window["stride"] or (1,) * len(kernel)
        _refuse_inexact(attrs, convention, window, ins[0])
    if kind == "max":
        return F.max_pool(ins[0], **window, **named)
    if kind == "avg":
        return F.mean_pool(ins[0], **window, count_include_pad=include in ("None", "True", "1"), **named)
    if kind == "sum" and "kernel_size" in window:
        return F.multiply(F.mean_pool(ins[0], **window), float(math.prod(window["kernel_size"])), **named)
    raise attrs.refused("its pool_type is none of max, avg, sum over a window", pool_type=kind)


def _refuse_inexact(attrs: Attributes, convention: str, window: dict[str, Any], x: Symbol) -> None:
    """MXNet's "full" makes a last, partial window where they do not come out even; windlass has whole windows."""
    if convention == "valid" or (all(step == 1 for step in window["stride"]) and convention == "full"):
        return
    if convention != "full":
        raise attrs.refused("its pooling_convention is neither valid nor full", pooling_convention=convention)
    kernel = window["kernel_size"]
    pads = window["padding"] or (0,) * len(kernel)
    space = (None,) * len(kernel) if x.shape is None else x.shape[2:]
    for size, k, step, pad in zip(space, kernel, window["stride"], pads, strict=True):
        if size is None:
            raise attrs.refused("whether pooling_convention full comes out even cannot be told; give shapes=")
        if (size + 2 * pad - k) % step:
            raise attrs.refused(
                "its last window is partial (pooling_convention full)", size=size, kernel=k, stride=step
            )


@_op("BatchNorm", "BatchNorm_v1")
def _batch_norm(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    x, gamma, *rest = ins
    attrs.off("output_mean_var")
    attrs.only("axis", "1")
    epsilon, momentum = attrs.number("eps", 1e-3), attrs.number("momentum", 0.9)
    if attrs.flag("fix_gamma", True):
        gamma = F.ones_like(gamma)  # whatever is in it; no gradient reaches it
    mode = {"training": False} if attrs.flag("use_global_stats") else {}
    return F.batch_norm(x, gamma, *rest, epsilon=epsilon, momentum=momentum, **mode, **named)


@_op("LayerNorm")
def _layer_norm(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    attrs.off("output_mean_var")
    attrs.only("axis", "-1")
    return F.layer_norm(*ins, epsilon=attrs.number("eps", 1e-5), **named)


@_op("LRN")
def _local_response(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    """x / (knorm + alpha / nsize * sum of squares over nsize channels) ** beta."""
    size = attrs.integer("nsize")
    if size % 2 == 0:
        raise attrs.refused("its nsize is even", nsize=size)
    squares = F.expand_dims(F.square(ins[0]), axis=1)  # channels become an axis of space
    means = F.mean_pool(squares, kernel_size=(size, 1, 1), stride=(1, 1, 1), padding=(size // 2, 0, 0))
    scale = F.squeeze(means, axis=1) * attrs.number("alpha", 1e-4) + attrs.number("knorm", 2.0)
    return F.multiply(ins[0], F.power(scale, -attrs.number("beta", 0.75)), **named)


@_op("Dropout")
def _dropout(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    if attrs.window("axes") is not None:
        raise attrs.refused("it drops along axes")
    mode = {"training": True} if attrs.text("mode", "training") == "always" else {}
    return F.dropout(ins[0], p=attrs.number("p", 0.5), **mode, **named)


@_op("SoftmaxOutput", "Softmax")
def _softmax_output(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    attrs.off("multi_output", "use_ignore", "preserve_shape", "out_grad")
    attrs.number("ignore_label", -1)
    if attrs.number("smooth_alpha", 0):
        raise attrs.refused("it smooths labels")
    normalization = attrs.text("normalization", "null").replace("valid", "batch")  # all are valid without use_ignore
    return F.softmax_output(*ins, grad_scale=attrs.number("grad_scale", 1), normalization=normalization, **named)


@_op("softmax", "log_softmax")
def _softmax(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    attrs.off("use_length")
    attrs.only("dtype", "None")
    attrs.only("temperature", "None", "1.0", "1")
    return F.function(attrs.op)(ins[0], axis=attrs.integer("axis", -1), **named)


@_op("SoftmaxActivation")
def _softmax_activation(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    if attrs.text("mode", "instance") == "channel":
        return F.softmax(ins[0], axis=1, **named)
    if _rank(attrs, ins[0]) != 2:
        raise attrs.refused("beyond matrices MXNet's own backends disagree about it", shape=ins[0].shape)
    return F.softmax(ins[0], **named)


@_op("MakeLoss")
def _make_loss(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    attrs.only("normalization", "null")
    attrs.number("valid_thresh", 0)
    return F.make_loss(ins[0], grad_scale=attrs.number("grad_scale", 1), **named)


@_op("sum", "mean", "max", "min", "prod", "sum_axis", "max_axis", "min_axis")
def _reduced(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    axis, keep = attrs.axes(), attrs.flag("keepdims")
    if attrs.flag("exclude"):
        rank, given = _rank(attrs, ins[0]), (axis,) if isinstance(axis, int) else axis or ()
        axis = tuple(i for i in range(rank) if i not in {each % rank for each in given})
    return _one_number(F.function(attrs.op.removesuffix("_axis")), ins[0], axis, keep, named)


def _one_number(reduce: Callable[..., Any], x: Symbol, axis: Any, keep: bool, named: dict[str, Any]) -> Any:
    """A reduction; where all axes go MXNet leaves one of length 1."""
    if axis is not None or keep:
        return reduce(x, axis=axis, keepdims=keep, **named)
    return F.expand_dims(reduce(x), axis=0, **named)


@_op("norm")
def _norm(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    attrs.only("out_dtype", "None")
    axis, keep, order = attrs.axes(), attrs.flag("keepdims"), attrs.integer("ord", 2)
    if order == 1:
        return _one_number(F.sum, F.absolute(ins[0]), axis, keep, named)
    if order == 2:
        return F.sqrt(_one_number(F.sum, F.square(ins[0]), axis, keep, {}), **named)
    raise attrs.refused("its order is neither 1 nor 2", ord=order)


@_op("argmax", "argmin")
def _arg(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    found = F.function(attrs.op)(ins[0], axis=attrs.integer("axis"), keepdims=attrs.flag("keepdims"))
    return F.cast(found, dtype="float32", **named)


@_op("transpose")
def _transpose(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    return F.transpose(ins[0], axes=attrs.window("axes"), **named)


@_op("SwapAxis", "swapaxes")
def _swapped(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    order = list(range(_rank(attrs, ins[0])))
    one, other = attrs.integer("dim1", 0), attrs.integer("dim2", 0)
    order[one], order[other] = order[other], order[one]
    return F.transpose(ins[0], axes=tuple(order), **named)


@_op("Reshape", "reshape")
def _reshape(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    codes = attrs.integers("shape", ()) or ()
    attrs.off("reverse", "keep_highest")
    if not codes or (attrs.window("target_shape") or (0,))[0]:
        raise attrs.refused("it has no shape")
    wanted = codes if min(codes) >= -1 else _coded(attrs, codes, ins[0])
    return F.reshape(ins[0], shape=wanted, **named)


def _coded(attrs: Attributes, codes: Sequence[int], x: Symbol) -> tuple[int, ...]:
    """A shape with the codes -2 (all that is left), -3 (two axes as one) and -4 (one as two) resolved."""
    _rank(attrs, x)
    left, axes, at = list(x.shape), [], 0
    while at < len(codes):
        code = codes[at]
        if code == -2:
            axes += left
            left = []
        elif code == -3 and len(left) >= 2:
            one, other, *left = left
            axes.append(None if one is None or other is None else one * other)
        elif code == -4 and left and at + 2 < len(codes):
            whole, *left = left
            one, other = codes[at + 1], codes[at + 2]
            known = one if other == -1 else other
            rest = None if whole is None else whole // known
            axes += [rest if one == -1 else one, rest if other == -1 else other]
            at += 2
        elif code == 0 and left:
            axes.append(left.pop(0))
        else:
            left = left[1:]
            axes.append(None if code == -1 else code)
        at += 1
    if axes.count(None) > 1:
        raise attrs.refused("its codes cannot be resolved without shapes; give shapes=", shape=tuple(codes))
    return tuple(-1 if axis is None else axis for axis in axes)


def _rank(attrs: Attributes, x: Symbol) -> int:
    if x.shape is None:
        raise attrs.refused("it depends on its input's shape, which cannot be told; give shapes=")
    return len(x.shape)


@_op("Concat", "concat")
def _concat(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    return F.concat(*ins, axis=attrs.integer("dim", 1), **named)


@_op("stack")
def _stack(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    axis = attrs.integer("axis", 0)
    return F.concat(*(F.expand_dims(each, axis=axis) for each in ins), axis=axis, **named)


@_op("add_n", "ElementWiseSum")
def _total(_: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    total = ins[0]
    for each in ins[1:-1]:
        total = total + each
    return F.add(total, ins[-1], **named) if len(ins) > 1 else F.identity(total, **named)


@_op("SliceChannel", "split")
def _split(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    count, axis = attrs.integer("num_outputs"), attrs.integer("axis", 1)
    rank = _rank(attrs, ins[0])
    size, squeezed = ins[0].shape[axis], attrs.flag("squeeze_axis")
    if size is None or not -rank <= axis < rank or size % count:
        raise attrs.refused("its parts cannot be told; give shapes=", axis=axis, size=size, num_outputs=count)
    step, parts = size // count, []
    for i in range(count):
        own = {**named, "name": f"{named['name']}_{i}"}
        bounds = {"axis": axis, "begin": i * step, "end": (i + 1) * step}
        parts.append(
            F.squeeze(F.slice_axis(ins[0], **bounds), axis=axis, **own)
            if squeezed
            else F.slice_axis(ins[0], **bounds, **own)
        )
    return tuple(parts)


@_op("slice_axis")
def _slice_axis(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    end = attrs.integers("end")
    bounds = {"axis": attrs.integer("axis"), "begin": attrs.integer("begin"), "end": end[0] if end else None}
    return F.slice_axis(ins[0], **bounds, **named)


@_op("expand_dims")
def _expand_dims(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    return F.expand_dims(ins[0], axis=attrs.integer("axis"), **named)


@_op("squeeze")
def _squeeze(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    return F.squeeze(ins[0], axis=attrs.axes(), **named)


@_op("broadcast_like")
def _broadcast_like(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    attrs.only("lhs_axes", "None")
    attrs.only("rhs_axes", "None")
    return F.broadcast_like(*ins, **named)


@_op("dot", "batch_dot")
def _product(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    flags = {"transpose_x": attrs.flag("transpose_a"), "transpose_y": attrs.flag("transpose_b")}
    if attrs.op == "dot" and any(each.shape is not None and len(each.shape) != 2 for each in ins):
        raise attrs.refused("its operands are not both matrices", shapes=[each.shape for each in ins])
    return F.matmul(*ins, **flags, **named)


@_op("Embedding")
def _embedding(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    attrs.only("dtype", "float32", "float16", "float64")
    sizes = {"input_size": attrs.integer("input_dim"), "output_size": attrs.integer("output_dim")}
    return F.embedding(*ins, **sizes, **named)


@_op("take")
def _take(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    attrs.only("mode", "clip", "raise")
    return F.take(*ins, axis=attrs.integer("axis", 0), **named)


@_op("pick")
def _pick(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    attrs.only("axis", "-1")
    attrs.only("mode", "clip")
    attrs.off("keepdims")
    return F.pick(*ins, **named)


@_op("one_hot")
def _one_hot(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    if (attrs.number("on_value", 1), attrs.number("off_value", 0)) != (1, 0):
        raise attrs.refused("its values are not 1 and 0")
    return F.one_hot(ins[0], depth=attrs.integer("depth"), dtype=attrs.text("dtype", "float32"), **named)


@_op("clip")
def _clip(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    return F.clip(ins[0], low=attrs.number("a_min"), high=attrs.number("a_max"), **named)


@_op("Cast", "cast")
def _cast(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    dtype = attrs.text("dtype", "")
    if dtype not in ("bool", "float16", "float32", "float64", "int32", "int64", "int8", "uint8"):
        raise attrs.refused("its dtype is unknown", dtype=dtype)
    return F.cast(ins[0], dtype=dtype, **named)


@_op("hard_sigmoid")
def _hard_sigmoid(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    return F.hard_sigmoid(ins[0], slope=attrs.number("alpha", 0.2), offset=attrs.number("beta", 0.5), **named)


@_op("smooth_l1")
def _smooth_l1(attrs: Attributes, ins: Inputs, named: dict[str, Any]) -> Any:
    """0.5 (s x)^2 where |x| < 1 / s^2, else |x| - 0.5 / s^2."""
    squared = attrs.number("scalar", 1) ** 2
    size = F.absolute(ins[0])
    return F.where(size < 1 / squared, F.square(ins[0]) * (0.5 * squared), size - 0.5 / squared, **named)
