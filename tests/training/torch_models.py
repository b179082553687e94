"""Whole models, written twice: with our ops, at once or traced, and with PyTorch's; of the same weights and data.

Each is a function of parameters by name, so that both train the same arrays. Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from windlass_graph import functions as F  # noqa: N812 - as it is called in the field
from windlass_graph.attention import multi_head_attention

Values = npt.NDArray[Any]
Parameters = Mapping[str, Any]
BATCH, STEPS, WORDS, CLASSES, UNITS, HEADS = 8, 6, 11, 5, 8, 2


@dataclass(frozen=True, slots=True)
class Model:
    """Shapes of the parameters, a batch, and scores: `ours(p, x)` by our ops, `theirs(torch, p, x)` by torch's."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    batch: Callable[[np.random.Generator], tuple[Values, Values]]
    ours: Callable[[Parameters, Any], Any]
    theirs: Callable[[Any, Parameters, Any], Any]

    def weights(self, dtype: str) -> dict[str, Values]:
        random = np.random.default_rng(3)
        return {
            name: (np.ones(shape) if "gamma" in name else random.normal(0, 0.3, shape)).astype(dtype)
            for name, shape in self.shapes.items()
        }


def _dense(p: Parameters, name: str, x: Any) -> Any:
    units = p[f"{name}.bias"].shape[0]
    return F.fully_connected(x, p[f"{name}.weight"], p[f"{name}.bias"], units=units, flatten=False)


def _linear(t: Any, p: Parameters, name: str, x: Any) -> Any:
    return t.nn.functional.linear(x, p[f"{name}.weight"], p[f"{name}.bias"])


def _layer(name: str, *weight: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def _classified(*shape: int) -> Callable[[np.random.Generator], tuple[Values, Values]]:
    return lambda random: (random.normal(size=shape), random.integers(0, CLASSES, shape[0]))


def _mlp(p: Parameters, x: Any) -> Any:
    return _dense(p, "out", F.tanh(_dense(p, "second", F.relu(_dense(p, "first", x)))))


def _torch_mlp(t: Any, p: Parameters, x: Any) -> Any:
    return _linear(t, p, "out", t.tanh(_linear(t, p, "second", t.relu(_linear(t, p, "first", x)))))


def _lenet(p: Parameters, x: Any) -> Any:
    x = F.convolution(x, p["c1.weight"], p["c1.bias"], channels=4, kernel_size=(5, 5), padding=2)
    x = F.max_pool(F.relu(x), kernel_size=(2, 2))
    x = F.convolution(x, p["c2.weight"], p["c2.bias"], channels=6, kernel_size=(3, 3))
    x = F.mean_pool(F.tanh(x), kernel_size=(2, 2))
    return _dense(p, "out", F.relu(_dense(p, "hidden", F.flatten(x))))


def _torch_lenet(t: Any, p: Parameters, x: Any) -> Any:
    call = t.nn.functional
    x = call.max_pool2d(t.relu(call.conv2d(x, p["c1.weight"], p["c1.bias"], padding=2)), 2)
    x = call.avg_pool2d(t.tanh(call.conv2d(x, p["c2.weight"], p["c2.bias"])), 2)
    return _linear(t, p, "out", t.relu(_linear(t, p, "hidden", x.flatten(1))))


_GATES = ("lstm.i2h_weight", "lstm.h2h_weight", "lstm.i2h_bias", "lstm.h2h_bias")


def _lstm(p: Parameters, x: Any) -> Any:
    embedded = F.embedding(x, p["words"], input_size=WORDS, output_size=UNITS)
    out, _ = F.lstm(embedded, *(p[name] for name in _GATES), units=UNITS)
    return _dense(p, "out", F.squeeze(F.slice_axis(out, axis=0, begin=-1), axis=0))


def _torch_lstm(t: Any, p: Parameters, x: Any) -> Any:
    embedded = t.nn.functional.embedding(x, p["words"])
    zeros = t.zeros((1, BATCH, UNITS), dtype=embedded.dtype)
    weights = [p[name] for name in _GATES]
    out, _, _ = t.lstm(embedded, (zeros, zeros), weights, True, 1, 0.0, False, False, False)
    return _linear(t, p, "out", out[-1])


_PROJECTIONS = ("queries", "keys", "values", "joined")


def _transformer(p: Parameters, x: Any) -> Any:
    """A block of a decoder; normalisation comes first."""
    x = F.embedding(x, p["words"], input_size=WORDS, output_size=UNITS) + p["places"]
    normal = F.layer_norm(x, p["first.gamma"], p["first.beta"])
    projections = [p[f"{name}.{part}"] for name in _PROJECTIONS for part in ("weight", "bias")]
    x = x + multi_head_attention(normal, normal, normal, projections, heads=HEADS, causal=True)
    normal = F.layer_norm(x, p["second.gamma"], p["second.beta"])
    return _dense(p, "out", x + _dense(p, "narrow", F.gelu(_dense(p, "wide", normal))))


def _torch_transformer(t: Any, p: Parameters, x: Any) -> Any:
    call = t.nn.functional
    x = call.embedding(x, p["words"]) + p["places"]
    normal = call.layer_norm(x, (UNITS,), p["first.gamma"], p["first.beta"])
    q, k, v = (_linear(t, p, name, normal).unflatten(-1, (HEADS, -1)).transpose(1, 2) for name in _PROJECTIONS[:3])
    heads = call.scaled_dot_product_attention(q, k, v, is_causal=True)
    x = x + _linear(t, p, "joined", heads.transpose(1, 2).flatten(2))
    normal = call.layer_norm(x, (UNITS,), p["second.gamma"], p["second.beta"])
    return _linear(t, p, "out", x + _linear(t, p, "narrow", call.gelu(_linear(t, p, "wide", normal))))


MODELS = (
    Model(
        "mlp",
        {**_layer("first", 16, 10), **_layer("second", 12, 16), **_layer("out", CLASSES, 12)},
        _classified(BATCH, 10),
        _mlp,
        _torch_mlp,
    ),
    Model(
        "lenet",
        {
            **_layer("c1", 4, 1, 5, 5),
            **_layer("c2", 6, 4, 3, 3),
            **_layer("hidden", 12, 24),
            **_layer("out", CLASSES, 12),
        },
        _classified(BATCH, 1, 12, 12),
        _lenet,
        _torch_lenet,
    ),
    Model(
        "lstm",
        {
            "words": (WORDS, UNITS),
            _GATES[0]: (4 * UNITS, UNITS),
            _GATES[1]: (4 * UNITS, UNITS),
            _GATES[2]: (4 * UNITS,),
            _GATES[3]: (4 * UNITS,),
            **_layer("out", CLASSES, UNITS),
        },
        lambda random: (random.integers(0, WORDS, (STEPS, BATCH)), random.integers(0, CLASSES, BATCH)),
        _lstm,
        _torch_lstm,
    ),
    Model(
        "transformer",
        {
            "words": (WORDS, UNITS),
            "places": (STEPS, UNITS),
            **{f"{name}.{part}": (UNITS,) for name in ("first", "second") for part in ("gamma", "beta")},
            **{key: shape for name in _PROJECTIONS for key, shape in _layer(name, UNITS, UNITS).items()},
            **_layer("wide", 2 * UNITS, UNITS),
            **_layer("narrow", UNITS, 2 * UNITS),
            **_layer("out", WORDS, UNITS),
        },
        lambda random: (random.integers(0, WORDS, (BATCH, STEPS)), random.integers(0, WORDS, (BATCH, STEPS))),
        _transformer,
        _torch_transformer,
    ),
)
