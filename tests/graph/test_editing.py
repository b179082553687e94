"""Graphs that change: nodes added, removed, replaced; executors that move to what came of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph.graph import Graph, verify


def net() -> Graph:
    hidden = wl.sym.fully_connected(wl.sym.Variable("data"), units=8, name="fc1")
    hidden = wl.sym.relu(hidden, name="act1")
    hidden = wl.sym.fully_connected(hidden, units=8, name="fc2")
    scores = wl.sym.fully_connected(wl.sym.relu(hidden, name="act2"), units=3, name="fc3")
    return wl.Graph(wl.sym.softmax_output(scores, name="softmax"))


def reads(graph: Graph, name: str) -> list[str]:
    return [str(value) for value in graph.node(name).inputs]


def test_a_replacement_may_use_the_node_that_it_replaces() -> None:
    graph = net()
    after = graph.replace("fc1", lambda old: wl.sym.tanh(old, name="squash"))
    verify(after)
    assert reads(after, "act1") == ["squash"]
    assert reads(after, "squash") == ["fc1"]
    assert after.node("fc1") is graph.node("fc1")
    assert graph.node("act1").inputs[0].node.name == "fc1", "the graph that was edited stays"
    assert after.symbol.list_arguments() == graph.symbol.list_arguments()


def test_a_symbol_over_the_graphs_own_nodes_takes_a_nodes_place() -> None:
    graph = net()
    inside = graph.symbol.get_internals()
    after = graph.replace("act2", wl.sym.tanh(inside["fc2_output"], name="other") + inside["act1_output"])
    assert "act2" not in {node.name for node in after.nodes}
    assert after.node("fc2") is graph.node("fc2")
    out = after.symbol.infer_shape(data=(2, 4))[1]
    assert out == [(2, 3)]


def test_another_op_takes_the_same_inputs_name_and_shared_attributes() -> None:
    after = net().replace("act1", "tanh")
    assert after.node("act1").op.name == "tanh"
    assert reads(after, "act1") == ["fc1"]
    wider = after.replace("fc2", "fully_connected", units=16)
    assert reads(wider, "fc2") == ["act1", "fc2_weight", "fc2_bias"]
    assert wider.symbol.infer_shape(data=(2, 4))[0][3] == (16, 8)
    plain = wider.replace("fc2", "fully_connected", use_bias=False)
    assert plain.node("fc2").attrs["units"] == 16
    assert "fc2_bias" not in plain.symbol.list_arguments()
    back = plain.replace("fc2", "fully_connected", use_bias=True)
    assert reads(back, "fc2") == ["act1", "fc2_weight", "fc2_bias"]


def test_nodes_are_added_after_before_and_on_one_edge() -> None:
    x = wl.sym.Variable("x")
    graph = wl.Graph(wl.sym.add(wl.sym.exp(x, name="e"), wl.sym.log(x, name="l"), name="sum"))
    everywhere = graph.add(lambda v: v * 2, after="x")
    assert len({reads(everywhere, "e")[0], reads(everywhere, "l")[0]}) == 1
    one = graph.add(wl.sym.negative(x, name="n"), after="x", only=["l"])
    assert (reads(one, "e"), reads(one, "l")) == (["x"], ["n"])
    assert one.node("e") is graph.node("e")
    before = graph.add(wl.sym.tanh, before="sum", which="y")
    assert reads(before, "sum")[0] == "e"
    [_, t] = before.node("sum").inputs
    assert (t.node.op.name, str(t.node.inputs[0])) == ("tanh", "l")
    last = graph.add(wl.sym.relu, after="sum")
    assert last.outputs[0].node.op.name == "relu"


def test_outputs_are_added() -> None:
    graph = net()
    after = graph.add(graph.symbol.get_internals()["fc3_output"])
    assert after.symbol.list_outputs() == ["softmax_output", "fc3_output"]
    assert after.node("softmax") is graph.node("softmax")


def test_an_input_takes_a_removed_nodes_place_and_its_parameters_go() -> None:
    after = net().remove("fc2").remove("act2")
    verify(after)
    assert reads(after, "fc3")[0] == "act1"
    assert "fc2_weight" not in after.symbol.list_arguments()
    x, y = wl.sym.Variable("x", shape=(2, 3)), wl.sym.Variable("y", shape=(3,))
    graph = wl.Graph(wl.sym.relu(wl.sym.add(x, y, name="sum")))
    assert str(graph.remove("sum").outputs[0].node.inputs[0]) == "x"
    assert str(graph.remove("sum", keep="y").outputs[0].node.inputs[0]) == "y"


def test_untouched_nodes_are_shared() -> None:
    graph = net()
    after = graph.replace("act2", "tanh")
    shared = set(graph.nodes) & set(after.nodes)
    assert {node.name for node in shared} == {
        "data", "fc1", "fc1_weight", "fc1_bias", "act1", "fc2", "fc2_weight", "fc2_bias", "fc3_weight", "fc3_bias",
        "softmax_label",
    }  # fmt: skip


def test_names_of_new_nodes_avoid_those_of_the_graph() -> None:
    x = wl.sym.Variable("x")
    graph = wl.Graph(wl.sym.exp(wl.sym.exp(x, name="relu50"), name="relu51"))
    after = graph.add(wl.sym.relu, after="relu50")
    assert [node.name for node in after.nodes] == ["x", "relu50", "relu52", "relu51"]


def data() -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    x = random.normal(size=(30, 4)).astype(np.float32)
    return x, (x[:, 0] > 0).astype(np.int64) + (x[:, 1] > 0)


def step(exe: Any, x: Any, y: Any) -> float:
    [p] = exe.forward(is_train=True, data=x, softmax_label=y)
    exe.backward()
    for name, grad in exe.grad_dict.items():
        if name not in ("data", "softmax_label"):
            exe.arg_dict[name][:] = exe.arg_dict[name] - grad * 0.01
    return float(-np.log(np.asarray(p)[np.arange(len(y)), y]).mean())


def test_a_net_that_gains_and_loses_layers_keeps_its_parameters_and_goes_on_learning() -> None:
    x, y = data()
    random = np.random.default_rng(2)
    exe = net().symbol.simple_bind(data=x.shape, type_dict={"softmax_label": "int64"})

    def fill(names: Any) -> None:
        for name in names:
            if name.endswith("weight"):
                exe.arg_dict[name][:] = random.normal(size=exe.arg_dict[name].shape) * 0.4

    fill(exe.fresh)
    first = step(exe, x, y)
    for _ in range(40):
        before = step(exe, x, y)
    kept = exe.arg_dict["fc1_weight"]

    deeper = exe.graph.add(lambda v: v + wl.sym.tanh(wl.sym.fully_connected(v, units=8, name="new")), after="act1")
    exe = exe.edited(deeper)
    assert set(exe.fresh) == {"new_weight", "new_bias"}
    assert exe.arg_dict["fc1_weight"] is kept
    fill(exe.fresh)
    for _ in range(40):
        grown = step(exe, x, y)
    assert grown < before < first

    exe = exe.edited(exe.graph.remove("act2").remove("fc2"))
    assert "fc2_weight" not in exe.arg_dict
    assert exe.arg_dict["fc1_weight"] is kept
    assert exe.fresh == ()
    cut = step(exe, x, y)
    for _ in range(40):
        shrunk = step(exe, x, y)
    assert shrunk < cut / 2
    assert shrunk < before


def test_a_trainer_goes_on_with_what_an_edited_net_kept() -> None:
    """The momentum of what stays is kept: two steps around an edit that changes nothing are two steps without it."""
    x, y = data()

    def begun() -> tuple[Any, Any]:
        exe = net().symbol.simple_bind(data=x.shape, type_dict={"softmax_label": "int64"})
        random = np.random.default_rng(3)
        for name, array in exe.arg_dict.items():
            array[:] = random.normal(size=array.shape) * 0.3 if name.endswith("weight") else 0
        return exe, wl.Trainer(parameters(exe), wl.optim.SGD(lr=0.01, momentum=0.9))

    def parameters(exe: Any) -> Any:
        return {name: array for name, array in exe.arg_dict.items() if name.startswith(("fc", "new"))}

    def train(exe: Any, trainer: Any) -> None:
        exe.forward(is_train=True, data=x, softmax_label=y)
        exe.backward()
        trainer.step(1)

    plain, trainer = begun()
    for _ in range(4):
        train(plain, trainer)

    exe, trainer = begun()
    train(exe, trainer)
    train(exe, trainer)
    exe = exe.edited(exe.graph.add(lambda v: v + wl.sym.fully_connected(v, units=8, name="new"), after="act1"))
    trainer.take(parameters(exe))  # the new layer begins with zeros, so it adds nothing
    exe = exe.edited(net())
    trainer.take(parameters(exe))
    train(exe, trainer)
    train(exe, trainer)
    for name, array in parameters(plain).items():
        np.testing.assert_allclose(exe.arg_dict[name], array, rtol=1e-5, atol=1e-7)


def test_a_layer_that_must_change_its_shape_begins_anew() -> None:
    exe = net().symbol.simple_bind(data=(5, 4))
    wider = exe.edited(exe.graph.replace("fc2", "fully_connected", units=16))
    assert wider.fresh == ("fc2_weight", "fc2_bias", "fc3_weight")
    assert wider.arg_dict["fc3_weight"].shape == (3, 16)
    assert wider.grad_dict["fc1_weight"] is exe.grad_dict["fc1_weight"]
    wider.forward(is_train=True)
    wider.backward()


def test_new_variables_get_the_shapes_that_are_given() -> None:
    exe = net().symbol.simple_bind(data=(5, 4), grad_req={"fc1_weight": "add"})
    graph = exe.graph.add(lambda v: v * wl.sym.Variable("mask"), after="act1")
    with pytest.raises(wl.UsageError, match=r"cannot be told \(variables=mask\)"):
        exe.edited(graph)
    moved = exe.edited(graph, mask=(8,))
    assert moved.fresh == ("mask",)
    assert moved.grad_req["fc1_weight"] == "add"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda g: g.replace("fc11", "tanh"), r"no node 'fc11'. Did you mean fc1\?"),
        (lambda g: g.replace("act1", "sigmiod"), r"no op 'sigmiod'. Did you mean sigmoid\?"),
        (lambda g: g.replace("act1", "softmax", axes=1), r"no attribute 'axes'"),
        (lambda g: g.replace("act1", "add"), r"add takes 2 inputs, got 1"),
        (lambda g: g.replace("act1", lambda _: 3), r"no symbol was given for the place of 'act1'"),
        (lambda g: g.replace("act1", lambda old: old, units=3), r"attributes belong to an op"),
        (lambda g: g.replace("act1", g.symbol.get_internals()["act2_output"]), r"two nodes are called"),
        (lambda g: g.replace("act1", wl.sym.Variable("fc2_weight")), r"two nodes are called 'fc2_weight'"),
        (
            lambda g: g.replace("act1", wl.sym.Variable("v", shape=(3,))),
            r"fully_connected 'fc2' does not take.*made_at",
        ),
        (lambda g: g.remove("data"), r"'data' has no input that could take its place \(read_by=fc1\)"),
        (lambda g: g.remove("act1", keep=1), r"'act1' has no input 1"),
        (lambda g: g.remove("fc1", keep="wait"), r"no input 'wait'. Did you mean weight\?"),
        (lambda g: g.add(wl.sym.relu, after="act1", only=["fc3"]), r"'fc3' does not read act1.*fc2"),
        (lambda g: g.add(wl.sym.relu, after="act1", which=1), r"no output 1"),
        (lambda g: g.add(lambda v: (v, v), after="act1"), r"one value is wanted after 'act1' \(got=2\)"),
        (lambda g: g.add(wl.sym.relu, after="act1", before="fc1"), r"after one or before one"),
        (lambda g: g.add(wl.sym.Variable("fc1_bias")), r"two nodes are called 'fc1_bias'"),
        (lambda _: wl.Graph([]), r"a graph has an output"),
    ],
)
def test_wrong_changes_are_said_in_words(wrong: Any, says: str) -> None:
    with pytest.raises(wl.UsageError, match=says):
        wrong(net())


def test_outputs_that_are_read_must_be_given_again() -> None:
    x = wl.sym.Variable("x")
    every, last = wl.sym.lstm(x, units=3, name="rnn")
    graph = wl.Graph(wl.sym.Group([every.sum(), wl.sym.tanh(last, name="t")]))
    with pytest.raises(wl.UsageError, match=r"output 1 of 'rnn' is still used.*outputs_given=1"):
        graph.replace("rnn", lambda old: wl.sym.relu(old[0]))
    with pytest.raises(wl.UsageError, match=r"several outputs of 'rnn' are used"):
        graph.remove("rnn")
    after = graph.replace("rnn", lambda old: (wl.sym.relu(old[0], name="r"), old[1]))
    assert after.node("rnn") is graph.node("rnn")
    assert reads(after, "t") == ["rnn[1]"]
    squashed = graph.add(wl.sym.tanh, after="rnn", which=1)
    assert squashed.node("t").inputs[0].node.op.name == "tanh"


def test_which_input_stays_must_be_said_where_it_cannot_be_told() -> None:
    x = wl.sym.Variable("x", shape=(2,))
    graph = wl.Graph(wl.sym.relu(wl.sym.add(x, wl.sym.Variable("y", shape=(2,)), name="sum")))
    with pytest.raises(wl.UsageError, match=r"cannot be told.*keep="):
        graph.remove("sum")
