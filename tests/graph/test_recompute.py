"""Recomputation: the same results with fewer values kept for the backward part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings

import windlass as wl
from tests.graph.random_graphs import Sample, samples
from windlass_graph.compile import compiled, program_of
from windlass_graph.device import CPU
from windlass_graph.graph import Graph, verify
from windlass_graph.inference import typed
from windlass_graph.passes.recompute import Policy, recompute
from windlass_graph.plan import Plan
from windlass_graph.program import Program
from windlass_graph.symbol import Symbol
from windlass_graph.tensor_type import TensorType
from windlass_graph.training_graph import training_graph
from windlass_proto.errors import UsageError

LAYERS = 16
KNOWN = {"x": TensorType((64, 32), "float32")}


def deep(layers: int = LAYERS, labels: Sequence[int] = ()) -> Graph:
    """A training graph of many like layers."""
    value = wl.sym.Variable("x")
    for layer in range(layers):
        value = wl.sym.fully_connected(value, units=32, name=f"fc{layer}")
        value = wl.sym.tanh(value, name=f"tanh{layer}", labels={"recompute": "yes"} if layer in labels else None)
    graph = typed(wl.sym.mean(value).graph, KNOWN)
    weights = [node.name for node in graph.arguments if node.name != "x"]
    return training_graph(graph, weights, heads=False).graph


def feeds(graph: Graph) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {node.name: random.normal(0, 0.3, node.types[0].known_shape).astype(np.float32) for node in graph.variables}


@pytest.mark.parametrize("policy", ["sqrt", 2, 3, ["*"]], ids=str)
@given(sample=samples())
@settings(max_examples=30, deadline=None)
def test_a_random_graph_gives_the_same_bits_with_values_computed_again(policy: Policy, sample: Sample) -> None:
    plain = sample.joint.graph
    changed = recompute(plain, policy)
    verify(changed)
    assert changed.leading_nodes == plain.leading_nodes
    programs = [Program(graph, CPU) for graph in (plain, changed)]
    programs[1].plan.check()
    with np.errstate(all="ignore"):
        expected, found = (program.run(sample.feeds) for program in programs)
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_array_equal(other, one)


def test_segments_of_a_deep_net_take_less_than_half_of_the_memory() -> None:
    """Chen et al., section 4: sqrt(n) segments keep O(sqrt(n)) values."""
    graph = deep(64)
    plain, changed = Plan(graph), Plan(recompute(graph, "sqrt"))
    assert changed.arena_bytes < plain.arena_bytes / 2
    again = len(changed.steps) - len(plain.steps)
    assert 0 < again <= 2 * 64


def test_bytes_grow_with_the_root_of_the_depth() -> None:
    small, large = (Plan(recompute(deep(layers), "sqrt")).arena_bytes for layers in (16, 144))
    assert large < 4 * small


def test_what_is_computed_again_runs_in_the_backward_part() -> None:
    changed = recompute(deep(), "sqrt")
    again = [node for node in changed.nodes if node.name.endswith("_again")]
    assert again
    assert not changed.leading_nodes & set(again)


def test_nodes_are_named_by_pattern_or_label() -> None:
    by_name = recompute(deep(), ["tanh3", "tanh7"])
    by_label = recompute(deep(labels=[3, 7]), "labelled")
    for graph in (by_name, by_label):
        assert {node.name for node in graph.nodes if node.name.endswith("_again")} == {"tanh3_again", "tanh7_again"}


def test_random_numbers_are_not_drawn_again() -> None:
    dropped = wl.sym.dropout(wl.sym.tanh(wl.sym.Variable("x")), training=True, name="drop")
    graph = typed(wl.sym.mean(wl.sym.square(dropped)).graph, KNOWN)
    changed = recompute(training_graph(graph, ["x"], heads=False).graph, ["*"])
    assert [node.op.name for node in changed.nodes].count("dropout") == 1


def test_a_graph_without_a_backward_part_is_left_alone() -> None:
    graph = typed(wl.sym.tanh(wl.sym.Variable("x")).graph, KNOWN)
    assert recompute(graph, "sqrt").nodes == graph.nodes


@pytest.mark.parametrize("policy", ["root", 0, True, ["tanh0", 3]], ids=str)
def test_what_is_no_policy_is_refused(policy: Policy) -> None:
    with pytest.raises(UsageError, match="no way to recompute"):
        recompute(deep(), policy)


def test_a_name_that_no_node_has_is_refused() -> None:
    with pytest.raises(UsageError, match="no node has this name"):
        recompute(deep(), ["tahn*"])


def test_a_program_is_compiled_with_a_policy_and_explains_it() -> None:
    graph = deep()
    plain, changed = program_of(graph, CPU), program_of(graph, CPU, recomputed="sqrt")
    assert changed.arena_bytes < plain.arena_bytes
    assert any(each.name == "recompute" and each.made for each in changed.explain().passes)
    given = feeds(graph)
    for one, other in zip(plain.run(given), changed.run(given), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-7)  # fused, tanh is rounded otherwise


def test_passes_do_not_undo_it() -> None:
    x: Symbol = wl.sym.Variable("x")
    program = compiled(wl.sym.tanh(x).graph, KNOWN, recomputed="sqrt")
    assert [each.name for each in program.explain().passes] == ["fold", "merge", "recompute", "fuse"]
