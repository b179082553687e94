"""What PyTorch calls each of our ops, as functions from its tensors and our attributes to the same results.

`TWINS[op](torch, attrs, *tensors)` takes all attributes, defaults filled in. `WITHOUT_TWIN` says of every other op why
it has none; an op whose name ends in `_gradient` needs no reason: it is compared as part of the gradient of its op.
Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

Attrs = Mapping[str, Any]
Twin = Callable[..., Any]


def _all(a: Attrs, x: Any) -> Any:
    """The axes of a reduction."""
    return tuple(range(x.ndim)) if a["axis"] is None else a["axis"]


def _by_axes(name: str) -> Twin:
    return lambda t, a, x: getattr(t, name)(x, dim=_all(a, x), keepdim=a["keepdims"])


def _product(t: Any, a: Attrs, x: Any) -> Any:
    """Torch's takes one axis."""
    axes = _all(a, x)
    for axis in sorted((each % x.ndim for each in (axes if isinstance(axes, tuple) else (axes,))), reverse=True):
        x = x.prod(dim=axis, keepdim=a["keepdims"])
    return x


def _matmul(t: Any, a: Attrs, x: Any, y: Any) -> Any:
    return (x.mT if a["transpose_x"] else x) @ (y.mT if a["transpose_y"] else y)


def _dense(t: Any, a: Attrs, x: Any, weight: Any, *bias: Any) -> Any:
    return t.nn.functional.linear(x.flatten(1) if a["flatten"] else x, weight, *bias)


def _reshape(t: Any, a: Attrs, x: Any) -> Any:
    return x.reshape([x.shape[i] if size == 0 else size for i, size in enumerate(a["shape"])])


def _squeeze(t: Any, a: Attrs, x: Any) -> Any:
    return x.squeeze() if a["axis"] is None else x.squeeze(a["axis"])


def _transpose(t: Any, a: Attrs, x: Any) -> Any:
    return x.permute(*(reversed(range(x.ndim)) if a["axes"] is None else a["axes"]))


def _slice_axis(t: Any, a: Attrs, x: Any) -> Any:
    begin, end, _ = slice(a["begin"], a["end"]).indices(x.shape[a["axis"]])
    return x.narrow(a["axis"], begin, end - begin)


def _take(t: Any, a: Attrs, x: Any, indices: Any) -> Any:
    axis = a["axis"] % x.ndim
    found = x.index_select(axis, indices.reshape(-1))
    return found.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _one_hot(t: Any, a: Attrs, indices: Any) -> Any:
    return t.nn.functional.one_hot(indices, a["depth"]).to(getattr(t, a["dtype"]))


def _cross_entropy(t: Any, a: Attrs, scores: Any, labels: Any) -> Any:
    rows = t.nn.functional.cross_entropy(scores.flatten(0, -2), labels.flatten(), reduction="none")
    return rows.reshape(labels.shape)


def _spatial(a: Attrs) -> str:
    """Torch's suffix of functions over so many axes of space."""
    return f"{len(a['kernel_size'])}d"


def _or(value: Any, fill: Any) -> Any:
    return fill if value is None else value


def _convolution(t: Any, a: Attrs, x: Any, weight: Any, bias: Any = None) -> Any:
    geometry = (_or(a["stride"], 1), _or(a["padding"], 0), _or(a["dilation"], 1), a["groups"])
    return getattr(t.nn.functional, f"conv{_spatial(a)}")(x, weight, bias, *geometry)


def _transposed_convolution(t: Any, a: Attrs, x: Any, weight: Any, bias: Any = None) -> Any:
    function = getattr(t.nn.functional, f"conv_transpose{_spatial(a)}")
    geometry = (_or(a["stride"], 1), _or(a["padding"], 0), _or(a["output_padding"], 0), a["groups"])
    return function(x, weight, bias, *geometry, _or(a["dilation"], 1))


def _max_pool(t: Any, a: Attrs, x: Any) -> Any:
    if a["global_pool"]:
        return x.amax(tuple(range(2, x.ndim)), keepdim=True)
    function = getattr(t.nn.functional, f"max_pool{_spatial(a)}")
    return function(x, a["kernel_size"], _or(a["stride"], a["kernel_size"]), _or(a["padding"], 0))


def _mean_pool(t: Any, a: Attrs, x: Any) -> Any:
    if a["global_pool"]:
        return x.mean(tuple(range(2, x.ndim)), keepdim=True)
    function = getattr(t.nn.functional, f"avg_pool{_spatial(a)}")
    window = (x, a["kernel_size"], _or(a["stride"], a["kernel_size"]), _or(a["padding"], 0))
    return function(*window, count_include_pad=a["count_include_pad"])


def _batch_norm(t: Any, a: Attrs, x: Any, gamma: Any, beta: Any, mean: Any, variance: Any) -> Any:
    averages = (mean.clone(), variance.clone())  # which training changes in place
    return t.nn.functional.batch_norm(x, *averages, gamma, beta, a["training"], 0.1, a["epsilon"])


def _layer_norm(t: Any, a: Attrs, x: Any, gamma: Any, beta: Any) -> Any:
    return t.nn.functional.layer_norm(x, x.shape[-1:], gamma, beta, a["epsilon"])


def _ctc(t: Any, a: Attrs, x: Any, labels: Any, input_lengths: Any, label_lengths: Any) -> Any:
    given = (x.log_softmax(-1), labels, input_lengths, label_lengths)
    return t.nn.functional.ctc_loss(*given, blank=a["blank"], reduction="none")


def _recurrent(kind: str) -> Twin:
    """Torch's function over one layer; the other direction is that of the steps reversed."""

    def twin(t: Any, a: Attrs, x: Any, *ins: Any) -> Any:
        name = f"rnn_{a['activation']}" if kind == "rnn" else kind
        steps = x.flip(0) if a["reverse"] else x
        zeros = t.zeros(x.shape[1], a["units"], dtype=x.dtype)
        states = [each.unsqueeze(0) for each in (ins[4:] or (zeros, zeros))]
        before = tuple(states) if kind == "lstm" else states[0]
        out, *last = getattr(t, name)(steps, before, list(ins[:4]), True, 1, 0.0, False, False, False)
        out = out.flip(0) if a["reverse"] else out
        return (out, last[1][0]) if kind == "lstm" else out

    return twin


def _attention(t: Any, a: Attrs, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
    function = t.nn.functional.scaled_dot_product_attention
    return function(q, k, v, None if mask is None else mask.bool(), is_causal=a["causal"], scale=a["scale"])


_SAME_NAME: Final = (
    "add", "subtract", "multiply", "divide", "floor_divide", "maximum", "minimum", "hypot", "arctan2", "negative",
    "absolute", "square", "sqrt", "exp", "exp2", "log", "log2", "log10", "log1p", "expm1", "sin", "cos", "tan",
    "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "arcsinh", "arccosh", "arctanh", "erf", "sign", "floor",
    "ceil", "round", "trunc", "reciprocal", "rsqrt", "sigmoid", "relu", "logical_and", "logical_or", "logical_xor",
    "logical_not", "isnan", "isinf", "isfinite", "not_equal", "less", "less_equal", "greater", "greater_equal",
    "zeros_like", "ones_like",
)  # fmt: skip
"""Called alike in torch, with tensors alone."""

TWINS: Final[dict[str, Twin]] = {
    **{name: lambda t, a, *ins, name=name: getattr(t, name)(*ins) for name in _SAME_NAME},
    "power": lambda t, a, x, y: t.pow(x, y),
    "mod": lambda t, a, x, y: t.remainder(x, y),
    "equal": lambda t, a, x, y: t.eq(x, y),
    "leaky_relu": lambda t, a, x: t.nn.functional.leaky_relu(x, a["slope"]),
    "gelu": lambda t, a, x: t.nn.functional.gelu(x),
    "gelu_tanh": lambda t, a, x: t.nn.functional.gelu(x, approximate="tanh"),
    "silu": lambda t, a, x: t.nn.functional.silu(x),
    "mish": lambda t, a, x: t.nn.functional.mish(x),
    "softsign": lambda t, a, x: t.nn.functional.softsign(x),
    "elu": lambda t, a, x: t.nn.functional.elu(x, a["alpha"]),
    "selu": lambda t, a, x: t.nn.functional.selu(x),
    "hard_sigmoid": lambda t, a, x: (x * a["slope"] + a["offset"]).clamp(0, 1),
    "softplus": lambda t, a, x: t.nn.functional.softplus(x),
    "clip": lambda t, a, x: t.clamp(x, a["low"], a["high"]),
    "where": lambda t, a, condition, x, y: t.where(condition.bool(), x, y),
    "cast": lambda t, a, x: x.to(getattr(t, a["dtype"])),
    "cast_like": lambda t, a, x, like: x.to(like.dtype),
    "block_grad": lambda t, a, x: x.detach(),
    "identity": lambda t, a, x: x.clone(),
    "sum": _by_axes("sum"),
    "mean": _by_axes("mean"),
    "max": _by_axes("amax"),
    "min": _by_axes("amin"),
    "prod": _product,
    "argmax": lambda t, a, x: t.argmax(x, dim=a["axis"], keepdim=a["keepdims"]),
    "argmin": lambda t, a, x: t.argmin(x, dim=a["axis"], keepdim=a["keepdims"]),
    "broadcast_like": lambda t, a, x, like: x.expand(like.shape),
    "broadcast_to": lambda t, a, x: x.expand(a["shape"]),
    "sum_to_like": lambda t, a, x, like: x.sum_to_size(like.shape),
    "reshape": _reshape,
    "reshape_like": lambda t, a, x, like: x.reshape(like.shape),
    "pad": lambda t, a, x: t.nn.functional.pad(
        x, [each for pair in reversed(a["widths"]) for each in pair], value=a["value"]
    ),
    "crop": lambda t, a, x: t.nn.functional.pad(x, [-each for pair in reversed(a["widths"]) for each in pair]),
    "tile": lambda t, a, x: t.cat([x] * a["repeats"], a["axis"]),
    "repeat": lambda t, a, x: x.repeat_interleave(a["repeats"], a["axis"]),
    "flip": lambda t, a, x: x.flip(a["axis"]),
    "cumsum": lambda t, a, x: x.cumsum(a["axis"]),
    "argsort": lambda t, a, x: x.argsort(a["axis"], descending=a["descending"]),
    "sort": lambda t, a, x: x.sort(a["axis"], descending=a["descending"]).values,
    "take_along": lambda t, a, x, indices: x.gather(a["axis"], indices),
    "scatter_add": lambda t, a, x, indices, updates: x.index_add(a["axis"], indices, updates),
    "flatten": lambda t, a, x: x.flatten(1),
    "rows_of": lambda t, a, x: x.flatten(0, -2),
    "expand_dims": lambda t, a, x: x.unsqueeze(a["axis"]),
    "squeeze": _squeeze,
    "transpose": _transpose,
    "concat": lambda t, a, *parts: t.cat(parts, a["axis"]),
    "slice_axis": _slice_axis,
    "matmul": _matmul,
    "dot": lambda t, a, x, y: t.dot(x, y),
    "fully_connected": _dense,
    "take": _take,
    "embedding": lambda t, a, indices, weight: t.nn.functional.embedding(indices, weight),
    "pick": lambda t, a, x, indices: x.gather(-1, indices.unsqueeze(-1)).squeeze(-1),
    "one_hot": _one_hot,
    "one_hot_like": lambda t, a, labels, like: t.nn.functional.one_hot(labels, like.shape[-1]).to(like.dtype),
    "dropout": lambda t, a, x: t.nn.functional.dropout(x, a["p"], a["training"]),
    "softmax": lambda t, a, x: t.softmax(x, a["axis"]),
    "log_softmax": lambda t, a, x: t.log_softmax(x, a["axis"]),
    "softmax_cross_entropy": _cross_entropy,
    "softmax_output": lambda t, a, scores, label: t.softmax(scores, -1),
    "convolution": _convolution,
    "transposed_convolution": _transposed_convolution,
    "max_pool": _max_pool,
    "mean_pool": _mean_pool,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": lambda t, a, x, gamma, beta: t.nn.functional.group_norm(x, a["groups"], gamma, beta, a["epsilon"]),
    "ctc_loss": _ctc,
    "rnn": _recurrent("rnn"),
    "lstm": _recurrent("lstm"),
    "gru": _recurrent("gru"),
    "attention": _attention,
}

_OURS: Final = "part of the gradients of other ops, where it is compared"
WITHOUT_TWIN: Final[dict[str, str]] = {
    "variable": "where graphs begin",
    "constant": "where graphs begin",
    "random_uniform": "draws random numbers",
    "random_normal": "draws random numbers",
    "make_loss": "x itself, with a gradient that is not its derivative by design",
    "keep_axes": _OURS,
    "count_like": _OURS,
    "part_like": _OURS,
    "convolution_like": _OURS,
    "max_pool_gather": "part of gradients of gradients",
}
