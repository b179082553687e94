"""Record what MXNet's ops compute, for `test_mxnet_symbols`.

`python -m tests.graph.record_mxnet`, in an environment with mxnet==1.9.1 and numpy==1.23.5.

Each case is a symbol in MXNet's JSON, its inputs, its outputs and the gradients of their weighed sum. The LeNet of
`lenet-symbol.json` and `lenet-0000.params` is a checkpoint as MXNet writes it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
Case = tuple[Any, dict[str, tuple[int, ...]]]


def cases(sym: Any) -> Iterator[Case]:
    yield from layers(sym)
    yield from structure(sym)
    yield from arithmetic(sym)


def layers(sym: Any) -> Iterator[Case]:
    x = sym.Variable("x")
    yield sym.FullyConnected(x, num_hidden=3, flatten=False, name="op"), {"x": (2, 2, 4)}
    for kind in ("relu", "sigmoid", "softrelu", "softsign", "tanh"):
        yield sym.Activation(x, act_type=kind, name="op"), {"x": (2, 3)}
    for kind in ("leaky", "elu", "gelu"):
        yield sym.LeakyReLU(x, act_type=kind, slope=0.3, name="op"), {"x": (2, 3)}
    yield sym.BlockGrad(sym.LeakyReLU(x, act_type="selu")), {"x": (2, 3)}  # its gradient there is not the derivative
    yield (
        sym.Convolution(
            x, kernel=(3, 2), stride=(2, 1), pad=(1, 0), dilate=(1, 2), num_filter=4, num_group=2, name="op"
        ),
        {"x": (2, 2, 5, 6)},
    )
    yield sym.Convolution(x, kernel=(3,), num_filter=2, no_bias=True, name="op"), {"x": (1, 2, 5)}
    yield (
        sym.Deconvolution(x, kernel=(3, 3), stride=(2, 2), pad=(1, 1), adj=(1, 0), num_filter=2, name="op"),
        {"x": (1, 3, 3, 2)},
    )
    for kind in ("max", "avg", "sum"):
        yield sym.Pooling(x, pool_type=kind, kernel=(2, 3), pad=(1, 1), name="op"), {"x": (1, 2, 4, 5)}
    yield (
        sym.Pooling(x, pool_type="avg", kernel=(2, 2), pad=(1, 1), count_include_pad=False, name="op"),
        {"x": (1, 1, 4, 4)},
    )
    yield sym.Pooling(x, pool_type="max", kernel=(2, 2), stride=(2, 2), pooling_convention="full"), {"x": (1, 1, 4, 4)}
    for kind in ("max", "avg"):
        yield sym.Pooling(x, pool_type=kind, global_pool=True, kernel=(1, 1), name="op"), {"x": (2, 2, 3, 3)}
    yield sym.BatchNorm(x, name="op"), {"x": (3, 2, 2, 2)}
    yield sym.BatchNorm(x, fix_gamma=False, eps=1e-2, use_global_stats=True, name="op"), {"x": (3, 2, 2, 2)}
    yield sym.LayerNorm(x, eps=1e-3, name="op"), {"x": (2, 5)}
    yield sym.LRN(x, nsize=3, alpha=0.2, beta=0.6, knorm=1.5, name="op"), {"x": (2, 5, 2, 2)}
    yield sym.SoftmaxOutput(x, grad_scale=0.5, normalization="batch", name="softmax"), {"x": (3, 4)}
    yield sym.SoftmaxOutput(x, normalization="valid", name="softmax"), {"x": (3, 4)}
    yield sym.softmax(x, axis=1, name="op"), {"x": (2, 3, 2)}
    yield sym.log_softmax(x, name="op"), {"x": (2, 3)}
    yield sym.SoftmaxActivation(x, mode="channel", name="op"), {"x": (2, 3, 2)}
    yield sym.SoftmaxActivation(x, name="op"), {"x": (2, 3)}
    yield sym.MakeLoss(x * x, grad_scale=2, name="op"), {"x": (2, 3)}


def structure(sym: Any) -> Iterator[Case]:
    x, y = sym.Variable("x"), sym.Variable("y")
    for kind in ("sum", "mean", "max", "min", "prod"):
        yield getattr(sym, kind)(x, axis=(0, 2), name="op"), {"x": (2, 3, 2)}
        yield getattr(sym, kind)(x, axis=1, keepdims=True, exclude=True, name="op"), {"x": (2, 3, 2)}
    yield sym.sum(x, name="op"), {"x": (2, 3)}
    yield sym.norm(x, name="op"), {"x": (2, 3)}
    yield sym.norm(x, axis=1, name="op"), {"x": (2, 3)}
    yield sym.norm(x, ord=1, axis=0, name="op"), {"x": (2, 3)}
    yield sym.argmax(x, axis=1, name="op"), {"x": (2, 3)}
    yield sym.transpose(x, axes=(1, 2, 0), name="op"), {"x": (2, 3, 4)}
    yield sym.transpose(x, name="op"), {"x": (2, 3, 4)}
    yield sym.SwapAxis(x, dim1=0, dim2=2, name="op"), {"x": (2, 3, 4)}
    for shape in ((0, -1), (-2, 1, 1), (-3, 0), (0, -4, 1, 3, -2), (-4, -1, 2, -2), (4, -2)):
        yield sym.Reshape(x, shape=shape, name="op"), {"x": (4, 3, 4)}
    yield sym.Concat(x, y, dim=-1, name="op"), {"x": (2, 3), "y": (2, 1)}
    yield sym.stack(x, y, axis=1, name="op"), {"x": (2, 3), "y": (2, 3)}
    yield sym.add_n(x, y, x, name="op"), {"x": (2, 3), "y": (2, 3)}
    yield sym.Group(list(sym.SliceChannel(x, num_outputs=3, squeeze_axis=True, name="op"))), {"x": (2, 3)}
    yield sym.slice_axis(x, axis=1, begin=1, end=None, name="op"), {"x": (2, 3)}
    yield sym.expand_dims(x, axis=1, name="op"), {"x": (2, 3)}
    yield sym.squeeze(x, axis=1, name="op"), {"x": (2, 1, 3)}
    yield sym.dot(x, y, transpose_b=True, name="op"), {"x": (2, 3), "y": (4, 3)}
    yield sym.batch_dot(x, y, transpose_a=True, name="op"), {"x": (2, 3, 2), "y": (2, 3, 1)}


def arithmetic(sym: Any) -> Iterator[Case]:
    x, y, w, b = (sym.Variable(name) for name in "xywb")
    yield sym.clip(x, a_min=-0.5, a_max=0.4, name="op"), {"x": (2, 3)}
    yield sym.Embedding(sym.argmax(x, axis=1), input_dim=3, output_dim=2, name="op"), {"x": (4, 3)}
    yield sym.take(x, sym.argmax(y, axis=1), name="op"), {"x": (3, 2), "y": (2, 3)}
    yield sym.pick(x, sym.argmax(y, axis=1), name="op"), {"x": (2, 3), "y": (2, 3)}
    yield sym.one_hot(sym.argmax(x, axis=1), depth=3, name="op"), {"x": (2, 3)}
    yield sym.where(x > 0, y, w, name="op"), {"x": (2, 3), "y": (2, 3), "w": (2, 3)}
    yield sym.hard_sigmoid(x, alpha=0.3, name="op"), {"x": (2, 3)}
    yield sym.smooth_l1(x, scalar=2, name="op"), {"x": (2, 3)}
    yield sym.BlockGrad(x, name="op") + y, {"x": (2, 3), "y": (2, 3)}
    yield sym.Dropout(sym.Flatten(x), p=0.0, name="op"), {"x": (2, 3, 2)}
    broadcast = (sym.broadcast_add, sym.broadcast_sub, sym.broadcast_mul, sym.broadcast_div, sym.broadcast_maximum)
    for op in (*broadcast, sym.broadcast_minimum, sym.broadcast_greater, sym.broadcast_lesser_equal):
        yield op(x, y, name="op"), {"x": (2, 3), "y": (1, 3)}
    yield (x + y) * (w - b) / (x * x + 1), dict.fromkeys("xywb", (2, 3))
    yield (2 - x) + (1 / (x * x + 2)) + (x * x + 1) ** 1.5 - 3 + x / 4, {"x": (2, 3)}
    yield (sym.abs(x) ** y) + (2**x) + (x < 0.25) * 2 + (x != y), {"x": (2, 3), "y": (2, 3)}
    for kind in ("exp", "square", "sign", "floor", "ceil", "sin", "arctan", "sinh", "tanh", "expm1", "erf", "negative"):
        yield getattr(sym, kind)(x, name="op"), {"x": (2, 3)}
    for kind in ("log", "sqrt", "rsqrt", "reciprocal", "log1p"):
        yield getattr(sym, kind)(sym.abs(x), name="op"), {"x": (2, 3)}


def recorded(mx: Any, symbol: Any, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    random = np.random.RandomState(len(symbol.tojson()))
    exe = symbol.simple_bind(mx.cpu(), grad_req="write", **shapes)
    for name, array in sorted(exe.arg_dict.items()):
        array[:] = random.normal(size=array.shape)
        if name.endswith("label"):
            array[:] = random.randint(0, 3, array.shape)
    for _, array in sorted(exe.aux_dict.items()):
        array[:] = random.uniform(0.5, 1.5, array.shape)
    inputs = {name: listed(array) for name, array in [*exe.arg_dict.items(), *exe.aux_dict.items()]}
    outputs = exe.forward(is_train=True)
    weights = [mx.nd.array(random.normal(size=out.shape)) for out in outputs]
    exe.backward(weights)
    return {
        "symbol": json.loads(symbol.tojson()),
        "inputs": inputs,
        "weights": [listed(each) for each in weights],
        "outputs": [listed(each) for each in outputs],
        "gradients": {name: listed(array) for name, array in exe.grad_dict.items() if array is not None},
        "auxiliaries": {name: listed(array) for name, array in exe.aux_dict.items()},
    }


def listed(array: Any) -> dict[str, Any]:
    values = array.asnumpy()
    return {"shape": list(values.shape), "values": [float(f"{value:.7g}") for value in values.reshape(-1).tolist()]}


def lenet(mx: Any) -> None:
    """A checkpoint as `mx.model.save_checkpoint` writes it, and what the net answers."""
    sym, random = mx.sym, np.random.RandomState(1)
    x = sym.Convolution(sym.Variable("data"), kernel=(5, 5), num_filter=4, name="conv1")
    x = sym.Activation(sym.BatchNorm(x, name="bn1"), act_type="tanh", name="tanh1")
    x = sym.Pooling(x, pool_type="max", kernel=(2, 2), stride=(2, 2), name="pool1")
    x = sym.Convolution(x, kernel=(3, 3), num_filter=6, pad=(1, 1), no_bias=True, name="conv2")
    x = sym.Pooling(sym.Activation(x, act_type="relu"), pool_type="avg", kernel=(2, 2), stride=(2, 2), name="pool2")
    x = sym.FullyConnected(sym.Flatten(x), num_hidden=10, name="fc1")
    x = sym.FullyConnected(sym.LeakyReLU(sym.Dropout(x, p=0.3), slope=0.1), num_hidden=5, name="fc2")
    net = sym.SoftmaxOutput(x, name="softmax")
    exe = net.simple_bind(mx.cpu(), data=(2, 1, 16, 16), grad_req="null")
    given = {name: array for name, array in sorted(exe.arg_dict.items()) if name not in ("data", "softmax_label")}
    for array in given.values():
        array[:] = random.normal(size=array.shape, scale=0.3)
    for _, array in sorted(exe.aux_dict.items()):
        array[:] = random.uniform(0.5, 1.5, array.shape)
    data = mx.nd.array(random.normal(size=(2, 1, 16, 16)))
    [out] = exe.forward(is_train=False, data=data)
    mx.model.save_checkpoint(str(GOLDEN / "lenet"), 0, net, given, exe.aux_dict)
    answer = {"data": listed(data), "output": listed(out)}
    (GOLDEN / "lenet-answer.json").write_text(json.dumps(answer) + "\n", encoding="utf-8")


def main() -> None:
    mx: Any = importlib.import_module("mxnet")
    rows = [json.dumps(recorded(mx, symbol, shapes)) for symbol, shapes in cases(mx.sym)]
    (GOLDEN / "mxnet_ops.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    lenet(mx)


if __name__ == "__main__":
    main()
