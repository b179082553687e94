"""Forward and backward as one program."""

from __future__ import annotations

import numpy as np

import windlass as wl
from windlass_graph.device import CPU
from windlass_graph.graph import Graph, verify
from windlass_graph.inference import typed
from windlass_graph.program import Program
from windlass_graph.tensor_type import TensorType
from windlass_graph.training_graph import training_graph

KNOWN = {"x": TensorType((5, 4), "float32"), "y": TensorType((5,), "int64")}
LAYERS = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")


def loss() -> Graph:
    hidden = wl.sym.relu(wl.sym.fully_connected(wl.sym.Variable("x"), units=16, name="fc1"))
    scores = wl.sym.fully_connected(hidden, units=3, name="fc2")
    found: Graph = wl.sym.softmax_cross_entropy(scores, wl.sym.Variable("y")).mean().graph
    return found


def test_one_program_trains_and_its_gradients_are_those_of_the_tape() -> None:
    joint = training_graph(typed(loss(), KNOWN), LAYERS, heads=False)
    verify(joint.graph)
    program = Program(joint.graph, CPU)
    random = np.random.default_rng(0)
    shapes = dict(zip(LAYERS, ((16, 4), (16,), (3, 16), (3,)), strict=True))
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    x, y = random.normal(size=(5, 4)).astype(np.float32), np.array([0, 1, 2, 1, 0])

    arrays = {name: wl.nd.array(value) for name, value in weights.items()}
    for array in arrays.values():
        array.attach_grad()
    with wl.autograd.record():
        hidden = wl.nd.relu(wl.nd.fully_connected(wl.nd.array(x), arrays["fc1_weight"], arrays["fc1_bias"], units=16))
        scores = wl.nd.fully_connected(hidden, arrays["fc2_weight"], arrays["fc2_bias"], units=3)
        at_once = wl.nd.softmax_cross_entropy(scores, wl.nd.array(y)).mean()
    at_once_value = at_once.numpy()
    at_once.backward()

    first, *gradients = program.run({"x": x, "y": y, **weights})
    np.testing.assert_allclose(first, at_once_value, rtol=1e-6)
    for name, gradient in zip(joint.gradients, gradients, strict=True):
        np.testing.assert_allclose(gradient, np.asarray(arrays[name].grad), rtol=1e-5, atol=1e-7)

    for _ in range(100):
        last, *gradients = program.run({"x": x, "y": y, **weights})
        for name, gradient in zip(joint.gradients, gradients, strict=True):
            weights[name] -= 0.2 * gradient
    assert last < first / 4


def test_gradients_of_the_last_layer_are_complete_first() -> None:
    joint = training_graph(typed(loss(), KNOWN), LAYERS, heads=False)
    assert set(joint.gradients[:2]) == {"fc2_weight", "fc2_bias"}
