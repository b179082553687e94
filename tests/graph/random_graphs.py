"""Graphs that nobody would write: a strategy that grows one op by op, with the feeds to run it.

Every graph is small, differentiable almost everywhere and keeps its values near 1, so that what two ways of running it
give can be compared closely. It has shared subexpressions (operands come from a pool, and a past application may be
repeated), values that are used in several places, several outputs, ops with hidden outputs,
broadcasting, views, constants, and what passes look for: `x * 1`, `x + 0`, transposes of transposes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

import windlass as wl
from windlass_graph.build import fresh_names
from windlass_graph.graph import Graph
from windlass_graph.inference import typed
from windlass_graph.node import Value
from windlass_graph.symbol import Symbol
from windlass_graph.tensor_type import ContradictionError, TensorType, broadcast
from windlass_graph.training_graph import TrainingGraph, training_graph

Draw = Callable[[st.SearchStrategy[Any]], Any]
SHAPES = [(), (1,), (3,), (2, 3), (1, 3), (2, 1), (3, 3), (2, 1, 3), (2, 2, 3)]
UNARY = ["sin", "cos", "tanh", "sigmoid", "relu", "negative", "absolute", "square", "softplus", "leaky_relu", "sign"]
BINARY = ["add", "subtract", "multiply", "maximum", "minimum"]
NUMBERS: list[Callable[[Symbol], Symbol]] = [
    lambda x: x * 1,
    lambda x: 1 * x,
    lambda x: x + 0,
    lambda x: 0 + x,
    lambda x: x - 0,
    lambda x: x / 1,
    lambda x: x**1,
    lambda x: x * 0.5,
    lambda x: 1 - x,
    lambda x: wl.sym.negative(-x),
    lambda x: wl.sym.clip(x, low=-0.5, high=0.75),
    lambda x: wl.sym.where(x > 0, x, 0.25),
    lambda x: wl.sym.zeros_like(x) + x,
    lambda x: wl.sym.ones_like(x) * x,
    wl.sym.identity,
    lambda x: wl.sym.block_grad(x) * 0.5,
    lambda x: wl.sym.dropout(x, p=0.5, training=False),
    lambda x: wl.sym.dropout(x, p=0.0, training=True),
]


@dataclass(frozen=True, slots=True)
class Sample:
    """A graph in symbols, the types of its variables, and memory for them."""

    graph: Graph
    known: Mapping[str, TensorType]
    feeds: Mapping[str, npt.NDArray[Any]]

    @property
    def typed(self) -> Graph:
        return typed(self.graph, self.known)

    @property
    def joint(self) -> TrainingGraph:
        """Forward and backward, by every variable that a gradient reaches."""
        return training_graph(self.typed, [node.name for node in self.graph.arguments], heads=False)

    def __repr__(self) -> str:
        lines = [f"  {node.name} = {node.described()} {dict(node.attrs)}" for node in self.graph.nodes]
        return "\n".join(["Sample(", *lines, f"  outputs: {', '.join(map(str, self.graph.outputs))})"])


class _Growth:
    """The pool of values of one graph, and how it grows."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw
        self.dtype: str = draw(st.sampled_from(["float32", "float64"]))
        self.pool: list[Symbol] = []
        self.known: dict[str, TensorType] = {}
        self.past: list[Callable[[], Symbol]] = []
        self.random = np.random.default_rng(draw(st.integers(0, 2**16)))

    def variable(self, shape: tuple[int, ...]) -> Symbol:
        name = f"v{len(self.known)}"
        self.known[name] = TensorType(shape, self.dtype)
        return wl.sym.Variable(name, shape, self.dtype)

    def any(self) -> Symbol:
        found: Symbol = self.draw(st.sampled_from(self.pool))
        return found

    def one(self, ranks: tuple[int, ...]) -> Symbol | None:
        """A value of one of these ranks, if there is any."""
        found = [value for value in self.pool if value.ndim in ranks]
        return self.draw(st.sampled_from(found)) if found else None

    def step(self) -> None:
        """One op more, or one that was there, once more."""
        kind = self.draw(st.sampled_from([*_KINDS, _again]))
        made = kind(self)
        if made is None:
            return
        self.past.append(made)
        value = made()
        if np.prod(value.shape) <= 64:
            self.pool.append(value)


Made = Callable[[], Symbol] | None


def _again(growth: _Growth) -> Made:
    return growth.draw(st.sampled_from(growth.past)) if growth.past else None


def _unary(growth: _Growth) -> Made:
    name, x = growth.draw(st.sampled_from(UNARY)), growth.any()
    return lambda: getattr(wl.sym, name)(x)


def _number(growth: _Growth) -> Made:
    rule, x = growth.draw(st.sampled_from(NUMBERS)), growth.any()
    return lambda: rule(x)


def _binary(growth: _Growth) -> Made:
    name, x, y = growth.draw(st.sampled_from(BINARY)), growth.any(), growth.any()
    try:
        broadcast([x.shape, y.shape])
    except ContradictionError:
        return None
    return lambda: getattr(wl.sym, name)(x, y)


def _with_constant(growth: _Growth) -> Made:
    x = growth.any()
    array = np.asarray(growth.random.normal(size=x.shape), growth.dtype)
    return lambda: wl.sym.tanh(x * array) + np.sin(array) if x.shape else x * array


def _reduction(growth: _Growth) -> Made:
    x = growth.one((1, 2, 3))
    if x is None:
        return None
    name = growth.draw(st.sampled_from(["sum", "mean", "max"]))
    axis, keepdims = growth.draw(st.integers(-x.ndim, x.ndim - 1)), growth.draw(st.booleans())
    return lambda: getattr(wl.sym, name)(x, axis=axis, keepdims=keepdims)


def _view(growth: _Growth) -> Made:
    x = growth.one((1, 2, 3))
    if x is None:
        return None
    rules: list[Callable[[Symbol], Symbol]] = [
        lambda x: wl.sym.reshape(x, shape=(-1,)),
        lambda x: wl.sym.reshape(x, shape=(1, -1)),
        wl.sym.flatten,
        lambda x: wl.sym.expand_dims(x, axis=0),
        wl.sym.squeeze,
        lambda x: wl.sym.reshape_like(wl.sym.reshape(x, shape=(-1,)), x),
    ]
    rule = growth.draw(st.sampled_from(rules))
    return lambda: rule(x)


def _transpose(growth: _Growth) -> Made:
    x = growth.one((2, 3))
    if x is None:
        return None
    axes = tuple(growth.draw(st.permutations(range(x.ndim))))
    return lambda: wl.sym.transpose(x, axes=axes)


def _part(growth: _Growth) -> Made:
    x = growth.one((1, 2, 3))
    if x is None:
        return None
    axis = growth.draw(st.integers(0, x.ndim - 1))
    end = growth.draw(st.integers(1, x.shape[axis]))
    return lambda: wl.sym.slice_axis(x, axis=axis, begin=0, end=end)


def _join(growth: _Growth) -> Made:
    x, y = growth.one((2,)), growth.one((2,))
    if x is None or y is None or x.shape[0] != y.shape[0]:
        return None
    return lambda: wl.sym.concat(x, y, axis=1)


def _spread(growth: _Growth) -> Made:
    x = growth.one((0, 1))
    if x is None:
        return None
    shape = (2, 3) if x.shape in ((), (1,), (3,)) else (2, *x.shape)
    return lambda: wl.sym.broadcast_to(x, shape=shape)


def _product(growth: _Growth) -> Made:
    x, y = growth.one((2,)), growth.one((2,))
    if x is None or y is None or x.shape[1] != y.shape[0]:
        return None
    return lambda: wl.sym.tanh(wl.sym.matmul(x, y))


def _layer(growth: _Growth) -> Made:
    x = growth.one((2, 3))
    if x is None:
        return None
    features = int(np.prod(x.shape[1:]))
    weight, bias = growth.variable((3, features)), growth.variable((3,))
    return lambda: wl.sym.tanh(wl.sym.fully_connected(x, weight, bias, units=3))


def _softmax(growth: _Growth) -> Made:
    x, name = growth.one((1, 2, 3)), growth.draw(st.sampled_from(["softmax", "log_softmax"]))
    return None if x is None else lambda: getattr(wl.sym, name)(x)


def _loss(growth: _Growth) -> Made:
    x = growth.one((2,))
    if x is None:
        return None
    labels = growth.random.integers(0, x.shape[1], x.shape[0])
    return lambda: wl.sym.softmax_cross_entropy(x, labels)


def _cast(growth: _Growth) -> Made:
    x = growth.any()
    rules: list[Callable[[Symbol], Symbol]] = [
        lambda x: wl.sym.cast(x, dtype=growth.dtype),
        lambda x: wl.sym.cast(wl.sym.cast(x, dtype="float64"), dtype=growth.dtype),
        lambda x: wl.sym.cast(x > 0.1, dtype=growth.dtype),
    ]
    rule = growth.draw(st.sampled_from(rules))
    return lambda: rule(x)


_KINDS = [
    *(_unary, _unary, _number, _number, _binary, _binary, _with_constant, _reduction, _view, _transpose, _part),
    *(_join, _spread, _product, _layer, _softmax, _loss, _cast),
]


@st.composite
def samples(draw: Draw, steps_max: int = 14) -> Sample:
    """A random graph with its feeds."""
    growth = _Growth(draw)
    with fresh_names():
        for shape in draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=3)):
            growth.pool.append(growth.variable(shape))
        for _ in range(draw(st.integers(2, steps_max))):
            growth.step()
        outputs: list[Value] = [growth.pool[-1].value]
        outputs += [value.value for value in draw(st.lists(st.sampled_from(growth.pool), max_size=2))]
        graph = Graph(outputs)
    feeds = {
        node.name: growth.random.uniform(-1, 1, growth.known[node.name].known_shape).astype(growth.dtype)
        for node in graph.variables
    }
    return Sample(graph, {name: growth.known[name] for name in feeds}, feeds)
