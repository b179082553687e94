"""Executors: binding, forward and backward, what is done with gradients, new shapes, shared memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph.executor import Executor
from windlass_graph.symbol import Symbol

RANDOM = np.random.default_rng(0)


def net() -> Symbol:
    hidden = wl.sym.relu(wl.sym.fully_connected(wl.sym.Variable("data"), units=8, name="fc1"), name="act")
    scores = wl.sym.fully_connected(hidden, units=3, name="fc2")
    found: Symbol = wl.sym.softmax_output(scores, normalization="batch", name="softmax")
    return found


def filled(executor: Executor) -> Executor:
    random = np.random.default_rng(1)
    for array in executor.arg_dict.values():
        array[:] = random.normal(size=array.shape) * 0.5
    return executor


def bound_net(**more: Any) -> Executor:
    return filled(net().simple_bind(data=(6, 4), type_dict={"softmax_label": "int64"}, **more))


X = RANDOM.normal(size=(6, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 2, 1, 0])


def softmax(scores: Any) -> Any:
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def by_numpy(exe: Executor) -> tuple[Any, dict[str, Any]]:
    w1, b1, w2, b2 = (np.asarray(exe.arg_dict[name]) for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"))
    hidden = np.maximum(X @ w1.T + b1, 0)
    p = softmax(hidden @ w2.T + b2)
    g = (p - np.eye(3)[Y]) / len(X)
    back = (g @ w2) * (hidden > 0)
    return p, {
        "fc2_weight": g.T @ hidden,
        "fc2_bias": g.sum(axis=0),
        "fc1_weight": back.T @ X,
        "fc1_bias": back.sum(axis=0),
        "data": back @ w1,
    }


def test_forward_and_backward_are_those_of_numpy() -> None:
    exe = bound_net()
    exe.forward(is_train=True, data=X, softmax_label=Y)
    exe.backward()
    expected, gradients = by_numpy(exe)
    np.testing.assert_allclose(exe.outputs[0], expected, rtol=1e-5)
    np.testing.assert_allclose(exe.output_dict["softmax_output"], expected, rtol=1e-5)
    assert set(exe.grad_dict) == set(gradients)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(exe.grad_dict[name], gradient, rtol=1e-4, atol=1e-6)


def test_add_adds_null_leaves_out_and_integers_have_no_gradient() -> None:
    reqs = {"fc1_weight": "add", "fc2_weight": "write"}
    exe = filled(net().simple_bind(data=(6, 4), type_dict={"softmax_label": "int64"}, grad_req=reqs))
    for _ in range(2):
        exe.forward(is_train=True, data=X, softmax_label=Y)
        exe.backward()
    _, gradients = by_numpy(exe)
    assert set(exe.grad_dict) == {"fc1_weight", "fc2_weight"}
    np.testing.assert_allclose(exe.grad_dict["fc1_weight"], 2 * gradients["fc1_weight"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(exe.grad_dict["fc2_weight"], gradients["fc2_weight"], rtol=1e-4, atol=1e-6)
    assert exe.grad_req["softmax_label"] == "null"
    assert sum(grad is None for grad in exe.grad_arrays) == 4


def test_bind_shares_the_arrays_it_is_given_and_writes_into_the_gradients() -> None:
    x, y = wl.nd.array([1.0, 2.0]), wl.nd.array([3.0, 4.0])
    dx = wl.nd.full((2,), 7.0)
    exe = (wl.sym.Variable("x") * wl.sym.Variable("y")).bind(args={"x": x, "y": y}, args_grad={"x": dx})
    [out] = exe.forward(is_train=True)
    np.testing.assert_array_equal(out, [3, 8])
    exe.backward(wl.nd.array([1.0, 10.0]))
    np.testing.assert_array_equal(dx, [3, 40])
    x[:] = [5.0, 6.0]
    np.testing.assert_array_equal(exe.forward()[0], [15, 24])
    assert exe.arg_dict["x"] is x
    assert exe.grad_dict["x"] is dx


def test_binding_leaves_tapes_and_gradients_of_arrays_alone() -> None:
    x = wl.nd.array([1.0, 2.0])
    x.attach_grad()
    with wl.autograd.record():
        y = x * 3
    exe = wl.sym.square(wl.sym.Variable("v")).bind(args=[y], args_grad=[wl.nd.zeros((2,))])
    exe.forward(is_train=True)
    exe.backward()
    y.backward()
    np.testing.assert_array_equal(exe.grad_dict["v"], [6, 12])
    np.testing.assert_array_equal(x.grad, [3, 3])
    other = wl.sym.square(wl.sym.Variable("v")).bind(args=[x], args_grad=[wl.nd.zeros((2,))])
    other.forward(is_train=True)
    other.backward()
    np.testing.assert_array_equal(other.grad_dict["v"], [2, 4])
    np.testing.assert_array_equal(x.grad, [3, 3])


def test_lists_follow_the_order_of_the_arguments() -> None:
    z = wl.sym.Variable("x") - wl.sym.Variable("y")
    grads = [None, wl.nd.zeros((1,))]
    exe = z.bind("cpu:1", [wl.nd.array([5.0], device="cpu:1"), np.array([3.0], "float32")], None)
    np.testing.assert_array_equal(exe.forward()[0], [2])
    exe = z.bind(args=[wl.nd.array([5.0]), wl.nd.array([3.0])], args_grad=grads, grad_req=["null", "write"])
    exe.forward(is_train=True)
    exe.backward()
    np.testing.assert_array_equal(exe.grad_dict["y"], [-1])


def test_what_no_path_reaches_gets_zeros_unless_it_is_added_to() -> None:
    x = wl.sym.Variable("x")
    z = wl.sym.block_grad(x) + wl.sym.Variable("y")
    for req, left in (("write", 0), ("add", 9)):
        exe = z.simple_bind(x=(2,), y=(2,), grad_req=req)
        exe.grad_dict["x"][:] = 9
        exe.forward(is_train=True)
        exe.backward()
        np.testing.assert_array_equal(exe.grad_dict["x"], [left, left])
        np.testing.assert_array_equal(exe.grad_dict["y"], [1, 1])


def test_several_outputs_are_weighed_by_their_own_gradients() -> None:
    x = wl.sym.Variable("x")
    exe = wl.sym.Group([x * 2, x * x]).simple_bind(x=(2,))
    exe.forward(is_train=True, x=[1.0, 2.0])
    exe.backward([np.array([1.0, 1.0]), np.array([0.0, 10.0])])
    np.testing.assert_array_equal(exe.grad_dict["x"], [2, 42])
    assert [out.shape for out in exe.outputs] == [(2,), (2,)]


def test_an_output_may_be_an_argument_and_is_a_copy() -> None:
    x = wl.sym.Variable("x")
    exe = wl.sym.Group([x, x + 1]).simple_bind(x=(1,))
    first, _ = exe.forward(is_train=True, x=[3.0])
    exe.backward()
    exe.arg_dict["x"][:] = 8
    assert first.item() == 3
    np.testing.assert_array_equal(exe.grad_dict["x"], [2])


def test_dropout_drops_in_training_alone() -> None:
    exe = wl.sym.dropout(wl.sym.Variable("x"), p=0.5).simple_bind(x=(1000,))
    ones = np.ones(1000)
    np.testing.assert_array_equal(exe.forward(x=ones)[0], ones)
    [dropped] = exe.forward(is_train=True, x=ones)
    assert 300 < int((np.asarray(dropped) == 0).sum()) < 700
    exe.backward()
    np.testing.assert_array_equal(exe.grad_dict["x"], dropped)


def test_other_shapes_share_the_arrays_that_stay() -> None:
    exe = bound_net()
    with pytest.raises(wl.UsageError, match=r"softmax_label.*Name it too"):
        exe.reshape(data=(2, 4))
    for small in (exe.reshape(data=(2, 4), softmax_label=(2,)), exe.reshape(True, data=(2, 4))):
        assert small.arg_dict["fc1_weight"] is exe.arg_dict["fc1_weight"]
        assert small.grad_dict["fc1_weight"] is exe.grad_dict["fc1_weight"]
        assert small.fresh == ("data", "softmax_label")
        [few] = small.forward(data=X[:2])
        np.testing.assert_allclose(few, np.asarray(exe.forward(data=X)[0])[:2], rtol=1e-6)
    with pytest.raises(wl.UsageError, match=r"'fc1_weight' would change.*\(8, 4\).*\(8, 5\)"):
        exe.reshape(data=(2, 5), softmax_label=(2,))


def test_executors_share_arrays_when_they_are_asked_to() -> None:
    exe = bound_net()
    other = net().simple_bind(data=(3, 4), type_dict={"softmax_label": "int64"}, shared_exec=exe)
    assert other.arg_dict["fc2_bias"] is exe.arg_dict["fc2_bias"]
    assert other.fresh == ("data", "softmax_label")


def test_values_of_every_node_are_shown_by_name() -> None:
    exe = bound_net()
    seen: dict[str, Any] = {}
    exe.set_monitor_callback(lambda name, array: seen.update({name: array.numpy()}))
    exe.forward(is_train=True, data=X, softmax_label=Y)
    exe.backward()
    assert list(seen) == ["fc1_output", "act_output", "fc2_output", "softmax_output"]
    np.testing.assert_array_equal(seen["act_output"], np.maximum(seen["fc1_output"], 0))
    np.testing.assert_allclose(exe.grad_dict["fc2_bias"], by_numpy(exe)[1]["fc2_bias"], rtol=1e-4, atol=1e-6)
    exe.set_monitor_callback(seen.__setitem__, monitor_all=True)
    exe.forward(data=X)
    np.testing.assert_array_equal(seen["fc1_weight"], exe.arg_dict["fc1_weight"])
    seen.clear()
    exe.set_monitor_callback(None)
    exe.forward(data=X)
    assert not seen


def test_parameters_are_copied_by_name() -> None:
    exe, other = bound_net(), net().simple_bind(data=(6, 4))
    with pytest.raises(wl.UsageError, match=r"no parameter 'fc1_wait'.*Did you mean fc1_weight"):
        other.copy_params_from({"fc1_wait": 1})
    values = {name: array.numpy() for name, array in exe.arg_dict.items()}
    other.copy_params_from(values | {"surplus": np.zeros(3)}, allow_extra_params=True)
    np.testing.assert_array_equal(other.arg_dict["fc1_weight"], values["fc1_weight"])
    with pytest.raises(wl.UsageError, match=r"'fc1_weight' has another shape"):
        other.copy_params_from({"fc1_weight": np.zeros(3)})


def test_a_number_leaves_the_shape_of_a_scalar_alone() -> None:
    [out] = (wl.sym.Variable("x") * 2).eval(x=np.array(3.0))
    assert out.shape == ()
    assert out.item() == 6


def test_a_symbol_is_evaluated_at_once() -> None:
    x = wl.sym.Variable("x")
    [out] = wl.sym.exp(x).eval(x=np.array([0.0, 1.0]))
    np.testing.assert_allclose(out, np.exp([0, 1]))


def test_training_lowers_the_loss() -> None:
    exe = bound_net()
    losses = []
    for _ in range(60):
        [p] = exe.forward(is_train=True, data=X, softmax_label=Y)
        losses.append(-np.log(np.asarray(p)[np.arange(6), Y]).mean())
        exe.backward()
        for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"):
            exe.arg_dict[name][:] = exe.arg_dict[name] - exe.grad_dict[name] * 0.5
    assert losses[-1] < losses[0] / 4


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda z, _: z.bind(args={}), r"arguments are unbound \(missing=x, y\)"),
        (lambda z, x: z.bind(args={"x": x}), r"unbound \(missing=y\)"),
        (lambda z, x: z.bind(args={"x": x, "yy": x}), r"no 'yy'. Did you mean y\?"),
        (lambda z, x: z.bind(args=[x]), r"wanted=2, got=1"),
        (lambda z, x: z.bind(args=[x, wl.nd.zeros((3,))]), r"multiply.*axes of 2 and 3.*made_at"),
        (lambda z, x: z.bind("cpu:1", args=[x, x]), r"another device"),
        (lambda z, x: z.bind(args=[x, x], args_grad={"x": np.zeros(2)}), r"would be a copy"),
        (lambda z, x: z.bind(args=[x, x], args_grad={"x": wl.nd.zeros((3,))}), r"gradient array of 'x'"),
        (lambda z, x: z.bind(args=[x, x], args_grad={"z": x}), r"no 'z'"),
        (lambda z, x: z.bind(args=[x, x], grad_req="wirte"), r"no grad_req"),
        (lambda z, x: z.bind(args=[x, x], grad_req={"q": "add"}), r"grad_req: the graph has no 'q'"),
        (lambda z, _: z.simple_bind(x=(2,)), r"cannot be told \(variables=y\)"),
        (lambda z, _: z.simple_bind(x=2, y=(2,)), r"no shape"),
        (lambda z, _: z.simple_bind(x=(2,), y=(2,), type_dict={"x": "int32"}, grad_req={"x": "add"}), r"only floats"),
        (lambda z, _: z.simple_bind(q=(2,)), r"no variable 'q'"),
        (lambda z, _: z.simple_bind(x=(2,), y=(2,)).outputs, r"computed nothing yet"),
        (lambda z, _: z.simple_bind(x=(2,), y=(2,)).backward(), r"no training pass"),
        (lambda z, x: z.simple_bind(x=(2,), y=(2,)).forward(w=x), r"no argument 'w'"),
        (lambda z, _: z.simple_bind(x=(2,), y=(2,)).forward(x=[1]), r"another shape.*bound=\(2,\), got=\(1,\)"),
        (lambda z, _: z.simple_bind(x=(2,), y=(2,)).reshape(z=(2,)), r"no argument 'z'"),
    ],
)
def test_wrong_arguments_are_said_in_words(wrong: Any, says: str) -> None:
    z = wl.sym.Variable("x") * wl.sym.Variable("y")
    with pytest.raises(wl.UsageError, match=says):
        wrong(z, wl.nd.array([1.0, 2.0]))


def test_gradients_of_outputs_have_the_outputs_shapes() -> None:
    exe = (wl.sym.Variable("x") * 2).simple_bind(x=(2,))
    exe.forward(is_train=True)
    with pytest.raises(wl.UsageError, match=r"gradient of output 0.*wanted=\(2,\), got=\(3,\)"):
        exe.backward(wl.nd.ones((3,)))
    with pytest.raises(wl.UsageError, match=r"each output has one gradient"):
        exe.backward([1, 2])
    exe.backward()
    with pytest.raises(wl.UsageError, match=r"forward\(is_train=True\)"):
        exe.backward()


def test_an_executor_explains_what_compiling_did() -> None:
    exe = bound_net()
    training, prediction = exe.explain(is_train=True), exe.explain()
    assert training.steps["matmul"] > 0 == prediction.steps.get("matmul", 0)
    assert [each.name for each in training.passes] == ["fold", "merge", "fuse"]
    assert f"{training.saved:.0%} less" in str(training)
