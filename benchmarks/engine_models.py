"""Models that are trained to measure the engine: an MLP, LeNet, an LSTM, a Transformer block, a factorisation machine.

Sizes, first values and data for everybody; the losses for windlass, written once with ops that work on arrays and on
symbols (`F` is `windlass_graph.functions`). The peers build the same layers in `peers.torch_models` and
`peers.mxnet_models`, and import this module for its numbers: NumPy only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

LEARNING_RATE = 0.01
CLASSES = 10
STEPS, UNITS, WORDS = 32, 128, 1_000  # the LSTM's: length, hidden units, vocabulary
LENGTH, FEATURES, HEADS, INNER = 64, 128, 4, 512  # the Transformer block's
FIELDS, FACTORS, IDS = 10, 16, 10_000  # the factorisation machine's

Drawn = tuple[NDArray[Any], ...]


@dataclass(frozen=True, slots=True)
class Model:
    """What is trained. `drawn` gives inputs and target of one batch; `losses` one loss for each of `targets`."""

    name: str
    batch: int
    shapes: Mapping[str, tuple[int, ...]]
    drawn: Callable[[np.random.Generator], Drawn]
    losses: Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]
    targets: int
    """By what the losses' sum is divided."""


def values_of(model: Model) -> dict[str, NDArray[np.float32]]:
    """First values: normal, by the number of inputs; vectors (biases) zero, but for the scales of norms."""
    random = np.random.default_rng(0)

    def value(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if len(shape) == 1:
            return np.full(shape, float(name.endswith("_scale")), np.float32)
        spread = 0.01 if name.endswith("_table") else 1 / math.sqrt(math.prod(shape[1:]))
        return random.normal(0.0, spread, shape).astype(np.float32)

    return {name: value(name, shape) for name, shape in model.shapes.items()}


def batch_of(model: Model) -> Drawn:
    """The one batch that every step takes."""
    return model.drawn(np.random.default_rng(1))


def _mlp(F: Any, data: Sequence[Any], p: Mapping[str, Any]) -> Any:
    h = F.relu(F.fully_connected(data[0], p["w1"], p["b1"], units=128))
    h = F.relu(F.fully_connected(h, p["w2"], p["b2"], units=64))
    return F.softmax_cross_entropy(F.fully_connected(h, p["w3"], p["b3"], units=CLASSES), data[1])


def _lenet(F: Any, data: Sequence[Any], p: Mapping[str, Any]) -> Any:
    h = F.convolution(data[0], p["k1"], p["c1"], channels=20, kernel_size=(5, 5))
    h = F.max_pool(F.relu(h), kernel_size=(2, 2), stride=(2, 2))
    h = F.convolution(h, p["k2"], p["c2"], channels=50, kernel_size=(5, 5))
    h = F.max_pool(F.relu(h), kernel_size=(2, 2), stride=(2, 2))
    h = F.relu(F.fully_connected(h, p["w1"], p["b1"], units=500))
    return F.softmax_cross_entropy(F.fully_connected(h, p["w2"], p["b2"], units=CLASSES), data[1])


def _lstm(F: Any, data: Sequence[Any], p: Mapping[str, Any]) -> Any:
    x = F.embedding(data[0], p["word_table"], input_size=WORDS, output_size=UNITS)
    h, _ = F.lstm(x, p["i2h"], p["h2h"], p["i2h_bias"], p["h2h_bias"], units=UNITS)
    scores = F.fully_connected(h, p["w"], p["b"], units=WORDS, flatten=False)
    return F.softmax_cross_entropy(scores, data[1])


def _transformer(F: Any, data: Sequence[Any], p: Mapping[str, Any]) -> Any:
    def heads(x: Any) -> Any:
        return F.transpose(F.reshape(x, shape=(0, 0, HEADS, -1)), axes=(0, 2, 1, 3))

    def dense(x: Any, name: str, units: int) -> Any:
        return F.fully_connected(x, p[f"{name}_w"], p[f"{name}_b"], units=units, flatten=False)

    x, target = data
    attended = F.attention(*(heads(dense(x, name, FEATURES)) for name in ("query", "key", "value")))
    joined = F.reshape(F.transpose(attended, axes=(0, 2, 1, 3)), shape=(0, 0, -1))
    x = F.layer_norm(x + dense(joined, "out", FEATURES), p["first_scale"], p["first_shift"])
    inner = dense(F.relu(dense(x, "wide", INNER)), "narrow", FEATURES)
    x = F.layer_norm(x + inner, p["second_scale"], p["second_shift"])
    return F.square(x - target)


def _factors(F: Any, data: Sequence[Any], p: Mapping[str, Any]) -> Any:
    """Rendle, "Factorization machines", ICDM 2010, lemma 3.1: all pairs from the square of the sum."""
    ids, clicked = data
    linear = F.sum(F.embedding(ids, p["linear_table"], input_size=IDS, output_size=1), axis=(1, 2))
    v = F.embedding(ids, p["factor_table"], input_size=IDS, output_size=FACTORS)
    pairs = F.square(F.sum(v, axis=1)) - F.sum(F.square(v), axis=1)
    score = linear + 0.5 * F.sum(pairs, axis=1) + p["b"]
    return F.softplus(score) - clicked * score


def _images(*shape: int) -> Callable[[np.random.Generator], Drawn]:
    def drawn(random: np.random.Generator) -> Drawn:
        return random.normal(size=shape).astype(np.float32), random.integers(0, CLASSES, shape[0])

    return drawn


def _sentences(random: np.random.Generator) -> Drawn:
    return random.integers(0, WORDS, (STEPS, 32)), random.integers(0, WORDS, (STEPS, 32))


def _sequences(random: np.random.Generator) -> Drawn:
    x, target = random.normal(size=(2, 16, LENGTH, FEATURES)).astype(np.float32)
    return np.ascontiguousarray(x), np.ascontiguousarray(target)


def _clicks(random: np.random.Generator) -> Drawn:
    clicked = (random.random(1024) < 0.3).astype(np.float32)
    return random.integers(0, IDS, (1024, FIELDS)), clicked


_BLOCK = {
    **{f"{name}_w": (FEATURES, FEATURES) for name in ("query", "key", "value", "out")},
    **{f"{name}_b": (FEATURES,) for name in ("query", "key", "value", "out")},
    "wide_w": (INNER, FEATURES),
    "wide_b": (INNER,),
    "narrow_w": (FEATURES, INNER),
    "narrow_b": (FEATURES,),
    **{f"{which}_{what}": (FEATURES,) for which in ("first", "second") for what in ("scale", "shift")},
}
_LAYERS = {"w1": (128, 784), "b1": (128,), "w2": (64, 128), "b2": (64,), "w3": (CLASSES, 64), "b3": (CLASSES,)}
_LENET = {
    "k1": (20, 1, 5, 5),
    "c1": (20,),
    "k2": (50, 20, 5, 5),
    "c2": (50,),
    "w1": (500, 800),
    "b1": (500,),
    "w2": (CLASSES, 500),
    "b2": (CLASSES,),
}
_LSTM = {
    "word_table": (WORDS, UNITS),
    "i2h": (4 * UNITS, UNITS),
    "h2h": (4 * UNITS, UNITS),
    "i2h_bias": (4 * UNITS,),
    "h2h_bias": (4 * UNITS,),
    "w": (WORDS, UNITS),
    "b": (WORDS,),
}
_FACTORS = {"linear_table": (IDS, 1), "factor_table": (IDS, FACTORS), "b": (1,)}

MODELS = {
    model.name: model
    for model in (
        Model("mlp", 128, _LAYERS, _images(128, 784), _mlp, 128),
        Model("lenet", 64, _LENET, _images(64, 1, 28, 28), _lenet, 64),
        Model("lstm", 32, _LSTM, _sentences, _lstm, STEPS * 32),
        Model("transformer", 16, _BLOCK, _sequences, _transformer, 16 * LENGTH * FEATURES),
        Model("fm", 1024, _FACTORS, _clicks, _factors, 1024),
    )
}
