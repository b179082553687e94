"""Fusion of elementwise nodes: the same results, fewer values stored, and no group that waits for itself."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from windlass_graph import sym
from windlass_graph.compile import compiled
from windlass_graph.graph import Graph, verify
from windlass_graph.inference import typed
from windlass_graph.op import table
from windlass_graph.passes.fuse import FusionFacts, facts, fuse
from windlass_graph.scalar_code import SCALARS
from windlass_graph.tensor_type import TensorType


def test_ops_and_their_scalar_code_agree() -> None:
    for op in table().values():
        if op.scalar:
            scalar = SCALARS[op.scalar]
            assert len(op.input_names(op.attrs)) >= scalar.inputs
            assert op.scalar == "cast" or len(op.attrs) == scalar.constants
        assert bool(op.scalar) or not op.elementwise, f"{op.name} has no scalar code"


def known(**shapes: tuple[int, ...]) -> dict[str, TensorType]:
    return {name: TensorType(shape, "float32") for name, shape in shapes.items()}


def both(graph: Graph, types: dict[str, TensorType]) -> tuple[Graph, list[Any], list[Any]]:
    """The fused graph, and what the graph gives without and with fusion."""
    fused = fuse(typed(graph, types), 0)
    verify(fused)
    rng = np.random.default_rng(3)
    feeds = {name: rng.normal(size=each.known_shape).astype(each.dtype) for name, each in types.items()}
    plain = compiled(graph, types, passes=()).run(feeds)
    return fused, plain, compiled(graph, types, passes=(lambda ready: fuse(ready, 0),)).run(feeds)


def close(found: list[Any], meant: list[Any]) -> None:
    for one, other in zip(found, meant, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_layer_and_its_gradient_are_fused_around_the_products() -> None:
    x, w, b = (sym.Variable(name) for name in ("x", "w", "b"))
    y = sym.tanh(sym.matmul(x, w) + b) * 0.5 + x
    loss = sym.mean(sym.square(y))
    whole = sym.Group([loss, *loss.gradient(["w", "b"])])
    fused, plain, run = both(whole.graph, known(x=(8, 8), w=(8, 8), b=(8,)))
    close(run, plain)
    found = facts(fused)
    assert found.groups >= 2
    assert found.nodes >= 8
    assert found.bytes_avoided == found.temporaries * 8 * 8 * 4


def test_what_is_read_outside_a_group_is_an_output_of_it() -> None:
    x = sym.Variable("x")
    a = sym.exp(x)
    b = a + 1.0
    c = sym.sqrt(b)
    fused, plain, run = both(sym.Group([c, a, sym.sum(b, axis=1)]).graph, known(x=(4, 5)))
    close(run, plain)
    assert facts(fused) == FusionFacts(1, 3, 0, 0)
    (node,) = (node for node in fused.nodes if node.op.name == "fused")
    assert len(node.types) == 3


def test_no_path_leaves_a_group_and_comes_back() -> None:
    """exp -> softmax -> times exp: the product waits for what is no elementwise op, so it is not in exp's group."""
    x = sym.Variable("x")
    a = sym.exp(x) + 1.0
    whole = sym.Group([sym.tanh(a * sym.softmax(a))])
    fused, plain, run = both(whole.graph, known(x=(4, 5)))
    close(run, plain)
    assert facts(fused).groups == 2


def test_two_groups_do_not_wait_for_each_other() -> None:
    """Two pairs of nodes, of two shapes, each of which has a node that reads one of the other's."""
    x, y = sym.Variable("x"), sym.Variable("y")
    a, b = sym.exp(x), sym.exp(y)
    c = sym.tanh(x) + sym.sum(b, axis=0)
    d = sym.tanh(y) * sym.sum(a)
    fused, plain, run = both(sym.Group([a + c, b + d]).graph, known(x=(5,), y=(4, 5)))
    close(run, plain)
    assert facts(fused).groups >= 2


def test_numbers_are_constants_of_the_kernel_and_not_of_its_code() -> None:
    x = sym.Variable("x")
    programs = []
    for slope in (0.1, 0.2):
        graph = typed((sym.leaky_relu(x, slope=slope) * slope).graph, known(x=(3, 4)))
        (node,) = (node for node in fuse(graph, 0).nodes if node.op.name == "fused")
        programs.append(node.attrs["kernel"].program)
        assert len(node.inputs) == 1
    assert programs[0] == programs[1]


def test_leading_outputs_do_not_wait_for_the_others() -> None:
    x, y = sym.Variable("x"), sym.Variable("y")
    first = sym.exp(x) + 1.0
    second = sym.tanh(first * y) * y
    graph = Graph([first.value, second.value], 1)
    fused = fuse(typed(graph, known(x=(4, 5), y=(4, 5))), 0)
    assert {node.name for node in fused.leading_nodes if node.is_variable} == {"x"}
    assert facts(fused).groups == 2


def test_what_a_gradient_makes_of_an_output_is_made_where_it_is_read() -> None:
    """1 - y for the gradient of y = sigmoid(...): in the gradient's kernel, not stored beside y until then."""
    x, w = sym.Variable("x"), sym.Variable("w")
    y = sym.sigmoid(sym.matmul(x, w) + 1.0)
    loss = sym.mean(sym.matmul(y, w))
    fused, plain, run = both(sym.Group([loss, loss.gradient("w")]).graph, known(x=(8, 8), w=(8, 8)))
    close(run, plain)
    programs = [node.attrs["kernel"].program for node in fused.nodes if node.op.name == "fused"]
    ops = [[each.name for each in program.instructions] for program in programs]
    assert ["multiply", "subtract", "multiply"] in ops


def test_a_program_says_what_fusion_spared() -> None:
    x = sym.Variable("x")
    said = compiled((sym.exp(x) * 2.0 + 1.0).graph, known(x=(64, 64))).explain()
    assert said.fusion == FusionFacts(1, 3, 2, 2 * 64 * 64 * 4)
    assert "1 kernels for 3 elementwise ops; 2 values of 32.0 KiB are never stored" in str(said)


def test_few_elements_are_left_alone() -> None:
    x = sym.Variable("x")
    graph = typed((sym.exp(x) + 1.0).graph, known(x=(4, 5)))
    assert fuse(graph).nodes == graph.nodes


UNARY = ("tanh", "sigmoid", "relu", "negative", "absolute", "softplus")
BINARY = ("add", "multiply", "maximum", "minimum", "subtract")


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Up to fourteen nodes on a matrix, a row and a column, with sums over an axis between them."""
    values = [sym.Variable("x"), sym.Variable("row"), sym.Variable("column")]
    shapes = [(3, 4), (1, 4), (3, 1)]
    for _ in range(draw(st.integers(2, 14))):
        kind = draw(st.sampled_from(("unary", "binary", "binary", "reduce")))
        i, j = (draw(st.integers(0, len(values) - 1)) for _ in range(2))
        if kind == "unary":
            made, shape = getattr(sym, draw(st.sampled_from(UNARY)))(values[i]), shapes[i]
        elif kind == "binary":
            made = getattr(sym, draw(st.sampled_from(BINARY)))(values[i], values[j])
            shape = np.broadcast_shapes(shapes[i], shapes[j])
        else:
            made = sym.mean(values[i], axis=1, keepdims=True)
            shape = (shapes[i][0], 1)
        values.append(made)
        shapes.append(shape)
    chosen = draw(st.lists(st.sampled_from(values[3:]), min_size=1, max_size=3, unique_by=id))
    return Graph([values[-1].value, *(each.value for each in chosen)], 1)


@settings(max_examples=15, derandomize=True, phases=(Phase.explicit, Phase.generate))  # each compiles a kernel
@given(graphs())
def test_random_graphs_give_the_same_with_and_without_fusion(graph: Graph) -> None:
    types = known(x=(3, 4), row=(1, 4), column=(3, 1))
    needed = {node.name for node in graph.variables}
    _, plain, run = both(graph, {name: each for name, each in types.items() if name in needed})
    close(run, plain)


@settings(max_examples=200)
@given(graphs())
def test_the_fused_graph_is_acyclic_and_no_larger(graph: Graph) -> None:
    types = known(x=(3, 4), row=(1, 4), column=(3, 1))
    needed = {node.name for node in graph.variables}
    ready = typed(graph, {name: each for name, each in types.items() if name in needed})
    fused = fuse(ready, 0)
    verify(fused)
    assert len(fused.nodes) <= len(ready.nodes)
    before = {node.name for node in ready.leading_nodes if node.is_variable}
    assert {node.name for node in fused.leading_nodes if node.is_variable} <= before
    assert [value.type for value in fused.outputs] == [value.type for value in ready.outputs]
