"""Prepared steps are found again by what they do; programs explain what was done for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

import windlass as wl
from windlass_graph.build import make
from windlass_graph.compile import compiled
from windlass_graph.device import CPU
from windlass_graph.graph import Graph, kept
from windlass_graph.inference import typed
from windlass_graph.node import Node, Value
from windlass_graph.op import lookup
from windlass_graph.program import Program
from windlass_graph.step_table import StepTable
from windlass_graph.symbol import Symbol
from windlass_graph.tensor_type import TensorType


def net(width: int, layers: Sequence[str]) -> Graph:
    """Layers of a width that no other test has."""
    value = wl.sym.Variable("x")
    for i, name in enumerate(layers):
        value = getattr(wl.sym, name)(wl.sym.fully_connected(value, units=width, name=f"fc{i}"), name=f"act{i}")
    return value.graph


def known(width: int) -> dict[str, TensorType]:
    return {"x": TensorType((4, width), "float32")}


def test_only_what_was_edited_is_prepared() -> None:
    graph = typed(net(37, ["tanh", "sin", "cos"]), known(37))
    before = Program(graph, CPU)
    assert before.compiled_steps == 4  # one layer, three functions
    assert before.reused_steps == 2  # the layer, twice more

    def other(node: Node, inputs: tuple[Value, ...]) -> list[Value]:
        if node.name != "act1":
            return kept(node, inputs)
        entry = lookup("sigmoid")
        return [Value(make(entry, inputs, entry.filled({}), node.name), 0)]

    edited = Program(graph.rewritten(other), CPU)
    assert edited.compiled_steps == 1
    assert edited.reused_steps == 5


def test_a_second_program_of_the_same_graph_prepares_nothing() -> None:
    compiled(net(41, ["tanh", "sigmoid"]), known(41))
    again = compiled(net(41, ["tanh", "sigmoid"]), known(41))
    assert again.compiled_steps == 0
    assert again.reused_steps == 4


def test_another_signature_prepares_its_own() -> None:
    graph = net(43, ["tanh"])
    compiled(graph, known(43))
    assert compiled(graph, {"x": TensorType((5, 43), "float32")}).compiled_steps == 2


def test_a_layer_more_and_a_layer_less_prepare_what_is_new() -> None:
    compiled(net(47, ["tanh", "sin"]), known(47))
    assert compiled(net(47, ["tanh", "sin", "cos"]), known(47)).compiled_steps == 1
    assert compiled(net(47, ["sin"]), known(47)).compiled_steps == 0


def test_the_table_forgets_what_was_asked_for_longest_ago() -> None:
    table = StepTable(steps_max=2)
    nodes = [compiled(net(width, ["tanh"]), known(width)).plan.steps[0].node for width in (3, 5, 7)]
    for node in nodes:
        assert table.forward(node, CPU)[1] is False
    assert len(table) == 2
    assert table.forward(nodes[2], CPU)[1] is True
    assert table.forward(nodes[0], CPU)[1] is False


def test_attributes_that_python_calls_equal_are_prepared_apart() -> None:
    table = StepTable()
    x: Symbol = wl.sym.Variable("x", (3,), "float32")
    for low in (0.0, -0.0, 0):
        assert table.forward(wl.sym.clip(x, low=low).value.node, CPU)[1] is False


def test_an_explanation_names_what_passes_did_and_the_bytes_saved() -> None:
    x: Symbol = wl.sym.Variable("x")
    hidden = wl.sym.tanh(wl.sym.fully_connected(x, units=64, name="fc"), name="first")
    twice = wl.sym.identity(hidden, name="nothing") + wl.sym.tanh(hidden, name="one") * wl.sym.tanh(hidden, name="two")
    loss = wl.sym.sum(wl.sym.matmul(twice, twice, transpose_y=True), name="loss")
    program = compiled(loss.graph, {"x": TensorType((64, 64), "float32")})
    explanation = program.explain()
    fold, merge, fuse = explanation.passes
    assert "nothing" in fold.gone
    assert merge.gone == ("two",)
    assert (fold.before, merge.before - merge.after) == (12, 1)
    assert fuse.name == "fuse"
    assert explanation.steps["matmul"] == 1
    assert explanation.arena_bytes == program.arena_bytes < program.unplanned_bytes == explanation.unplanned_bytes
    assert 0 < explanation.saved < 1
    text = str(explanation)
    for said in ("nothing", "two", f"{explanation.saved:.0%} less", "most is in use at"):
        assert said in text


def test_a_prepared_function_computes_what_the_op_does() -> None:
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    for name in ("sin", "exp", "negative", "sqrt"):
        [found] = compiled(getattr(wl.sym, name)(wl.sym.Variable("x")).graph, {"x": TensorType((3, 4), "float32")}).run(
            {"x": np.abs(x)}
        )
        np.testing.assert_array_equal(found, getattr(wl.nd, name)(wl.nd.array(np.abs(x))).numpy())
    [found] = compiled(wl.sym.sqrt(wl.sym.Variable("x")).graph, {"x": TensorType((4,), "int64")}).run(
        {"x": np.array([0, 1, 4, 9])}
    )
    np.testing.assert_array_equal(found, np.array([0, 1, 2, 3], np.float32))


def test_a_net_edited_between_training_steps_prepares_only_the_touched_nodes() -> None:
    graph = wl.Graph(wl.sym.softmax_output(Symbol(net(59, ["relu", "relu", "sigmoid"]).outputs), name="softmax"))
    before = graph.symbol.simple_bind(x=(4, 59), type_dict={"softmax_label": "int64"})
    first = before.explain(is_train=True)
    assert first.compiled_steps + first.reused_steps == sum(first.steps.values())
    after = before.edited(graph.replace("act1", "tanh")).explain(is_train=True)
    new = {name for name in after.steps if name not in first.steps}
    assert new == {"tanh", "square"}  # the rest of its gradient is what sigmoid's is made of
    assert after.compiled_steps == 2
    assert after.reused_steps == sum(after.steps.values()) - 2
