"""Convolution, pooling and normalisation as layers: what is told of shapes, what is refused, what training updates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from windlass_graph import autograd, nd
from windlass_graph.array import array_of
from windlass_graph.compile import in_mode
from windlass_graph.device import CPU
from windlass_graph.functions import function
from windlass_graph.inference import typed
from windlass_graph.program import Program
from windlass_graph.symbol import Variable
from windlass_graph.tensor_type import type_of
from windlass_graph.training_graph import training_graph
from windlass_proto.errors import UsageError


def shapes_of(symbol: Any, **known: tuple[int, ...]) -> dict[str, Any]:
    arguments, outputs, auxiliary = symbol.infer_shape(**known)
    names = [*symbol.list_arguments(), *symbol.list_auxiliary_states()]
    return {**dict(zip(names, [*arguments, *auxiliary], strict=True)), "out": outputs[0]}


def test_a_convolution_tells_its_weight_from_its_data() -> None:
    convolved = function("convolution")(Variable("x"), kernel_size=(3, 5), channels=8, stride=2, groups=2, name="c")
    assert shapes_of(convolved, x=(7, 4, 9, 9)) == {
        "x": (7, 4, 9, 9), "c_weight": (8, 2, 3, 5), "c_bias": (8,), "out": (7, 8, 4, 3)
    }  # fmt: skip


def test_a_transposed_convolution_gives_back_the_size_that_was_convolved() -> None:
    for size in range(5, 12):
        convolved = nd.convolution(
            nd.zeros((1, 1, size)), nd.zeros((2, 1, 3)), kernel_size=(3,), channels=2, stride=3, padding=1,
            use_bias=False,
        )  # fmt: skip
        back = nd.transposed_convolution(
            convolved, nd.zeros((2, 1, 3)), kernel_size=(3,), channels=1, stride=3, padding=1, use_bias=False,
            output_padding=(size - 1) % 3,
        )  # fmt: skip
        assert back.shape == (1, 1, size)


def test_a_network_of_layers_knows_all_its_shapes_from_the_data() -> None:
    x = function("convolution")(Variable("x"), kernel_size=(5, 5), channels=20, name="one")
    x = function("max_pool")(x, kernel_size=(2, 2))
    x = function("batch_norm")(x, name="norm")
    x = function("mean_pool")(x, global_pool=True)
    found = shapes_of(x, x=(64, 1, 28, 28))
    assert found["one_weight"] == (20, 1, 5, 5)
    assert found["norm_gamma"] == found["norm_moving_mean"] == (20,)
    assert found["out"] == (64, 20, 1, 1)


@pytest.mark.parametrize(
    ("op", "given", "words"),
    [
        ("convolution", {"kernel_size": 3, "channels": 2}, "one number for each of one to three axes"),
        ("convolution", {"kernel_size": (3, 3), "channels": 2, "stride": (1,)}, "stride needs a whole number"),
        ("convolution", {"kernel_size": (3, 3), "channels": 2, "stride": 1.5}, "stride needs a whole number"),
        ("convolution", {"kernel_size": (3, 3), "channels": 3, "groups": 2}, "multiple of groups"),
        ("convolution", {"kernel_size": (9, 3), "channels": 2}, "a window of 9 on 5 elements"),
        ("convolution", {"kernel_size": (3,), "channels": 2}, "a window of 1 axes needs"),
        ("convolution", {"kernel_size": (3, 3), "channels": 6, "groups": 3}, "4 channels in 3 groups"),
        ("transposed_convolution", {"kernel_size": (3, 3), "channels": 2, "output_padding": 1}, "less than the stride"),
        ("max_pool", {}, "by a window or global"),
        ("max_pool", {"kernel_size": (2, 2), "padding": 2}, "in the padding by half"),
        ("batch_norm", {"momentum": 2.0}, "momentum is a share"),
        ("group_norm", {"groups": 3}, "4 channels in 3 groups"),
        ("layer_norm", {"epsilon": 0.0}, "Give more than 0"),
    ],
)
def test_wrong_attributes_and_shapes_are_refused_in_words(op: str, given: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        function(op)(Variable("x", (1, 4, 5, 6)), **given)


def test_training_moves_the_averages_and_prediction_uses_them() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, (16, 2, 10)).astype("float32")
    normed = function("batch_norm")(Variable("x"), momentum=0.75, name="n")
    kept = {"n_moving_mean": np.zeros(2, "float32"), "n_moving_variance": np.ones(2, "float32")}
    feeds = {"x": values, "n_gamma": np.ones(2, "float32"), "n_beta": np.zeros(2, "float32"), **kept}
    graph = typed(normed.graph, {"x": type_of(values)})
    joint = training_graph(in_mode(graph, training=True), ["x"], heads=False)
    assert joint.updated == ("n_moving_mean", "n_moving_variance")
    _, moving_mean, moving_variance, _ = Program(joint.graph, CPU).run(feeds)
    mean, variance = values.mean(axis=(0, 2)), values.var(axis=(0, 2))
    np.testing.assert_allclose(moving_mean, 0.25 * mean, rtol=1e-5)
    np.testing.assert_allclose(moving_variance, 0.75 + 0.25 * variance, rtol=1e-5)
    feeds |= {"n_moving_mean": moving_mean, "n_moving_variance": moving_variance}
    (out,) = Program(in_mode(graph, training=False), CPU).run(feeds)
    expected = (values - moving_mean[:, None]) / np.sqrt(moving_variance + 1e-5)[:, None]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


def test_a_second_gradient_of_a_normalisation_is_refused_by_name() -> None:
    x, gamma, beta = (array_of(values) for values in (np.ones((2, 3)), np.ones(3), np.ones(3)))
    x.attach_grad()
    with autograd.record():
        (first,) = autograd.grad(nd.layer_norm(x, gamma, beta).sum(), [x], create_graph=True)
        total = (first * first).sum()
    with pytest.raises(UsageError, match=r"layer_norm_gradient.*differentiated once"):
        total.backward()


@pytest.mark.parametrize("dtype", ["float16", "int32", "float64"])
def test_operands_of_every_dtype_are_computed_in_float32_at_least(dtype: str) -> None:
    x = (np.arange(2 * 3 * 6).reshape(2, 3, 6) % 7).astype(dtype)
    weight = np.ones((2, 3, 2), "float16" if dtype == "float16" else "float32")
    out = nd.convolution(array_of(x), array_of(weight), kernel_size=(2,), channels=2, use_bias=False)
    assert out.dtype == {"float16": "float16", "int32": "float32", "float64": "float64"}[dtype]
    expected = x[:, :, :-1].astype(float).sum(axis=1) + x[:, :, 1:].astype(float).sum(axis=1)
    np.testing.assert_array_equal(np.asarray(out)[:, 0], expected)
    pooled = nd.max_pool(array_of(x), kernel_size=(2,))
    np.testing.assert_array_equal(np.asarray(pooled), x.reshape(2, 3, 3, 2).max(axis=-1))


def test_what_compiled_loops_would_write_outside_their_arrays_is_refused() -> None:
    scores, wrong = array_of(np.zeros((2, 3))), array_of(np.array([0, 3]))
    with pytest.raises(UsageError, match="labels"):
        nd.softmax_cross_entropy(scores, wrong)
    with pytest.raises(UsageError, match="labels"):
        nd.cross_entropy_gradient(array_of(np.ones(2)), scores, wrong)
    at = array_of(np.array([[[4]]], "int32"))
    with pytest.raises(UsageError, match="within the points"):
        nd.max_pool_gradient(array_of(np.ones((1, 1, 1))), at, array_of(np.ones((1, 1, 4))), global_pool=True)
    with pytest.raises(UsageError, match="within the points"):
        nd.max_pool_gather(array_of(np.ones((1, 1, 4))), at, global_pool=True)
