"""Plans: what is written over what, what shares memory, what is saved."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

import windlass as wl
from tests.graph.random_graphs import Sample, samples
from windlass_graph.arena import Arena, arena_of
from windlass_graph.compile import program_of
from windlass_graph.device import CPU, Device
from windlass_graph.graph import Graph
from windlass_graph.inference import typed
from windlass_graph.plan import Plan
from windlass_graph.program import Program
from windlass_graph.symbol import Symbol
from windlass_graph.tensor_type import TensorType
from windlass_graph.training_graph import training_graph

X = {"x": TensorType((64, 64), "float32")}
BYTES = 64 * 64 * 4


def planned(symbol: Symbol) -> Plan:
    plan = Plan(typed(symbol.graph, X))
    plan.check()
    return plan


@given(samples())
@settings(max_examples=60, deadline=None)
def test_a_random_training_graph_is_planned_without_overlaps(sample: Sample) -> None:
    plan = Plan(sample.joint.graph)
    plan.check()
    assert plan.arena_bytes <= plan.unplanned_bytes


def test_a_chain_of_elementwise_ops_is_computed_in_the_memory_of_its_output() -> None:
    x = wl.sym.Variable("x")
    plan = planned(wl.sym.exp(wl.sym.sin(wl.sym.tanh(x))))
    assert plan.in_place == 2
    assert plan.arena_bytes == 0
    assert plan.unplanned_bytes == 2 * BYTES


def test_what_is_read_again_is_not_written_over() -> None:
    x = wl.sym.Variable("x")
    hidden = wl.sym.tanh(x)
    plan = planned(wl.sym.sum(wl.sym.exp(hidden)) + wl.sym.sum(hidden))
    assert plan.arena_bytes >= 2 * BYTES


def test_results_are_written_over_inputs_through_views() -> None:
    x = wl.sym.Variable("x")
    flat = wl.sym.reshape(wl.sym.matmul(x, x), shape=(-1,))
    plan = planned(wl.sym.sum(wl.sym.exp(wl.sym.reshape(wl.sym.tanh(flat), shape=(32, 128)))))
    assert plan.in_place == 2
    assert plan.arena_bytes == BYTES


def test_variables_are_never_written() -> None:
    x = np.full((64, 64), 0.5, np.float32)
    Program(typed(wl.sym.tanh(wl.sym.Variable("x")).graph, X), CPU).run({"x": x})
    np.testing.assert_array_equal(x, np.float32(0.5))


def test_outputs_that_are_one_value_have_memory_of_their_own() -> None:
    x = wl.sym.Variable("x")
    both = wl.sym.Group([wl.sym.tanh(x), wl.sym.reshape(wl.sym.tanh(x), shape=(-1,)), x])
    fed = np.ones((64, 64), np.float32)
    one, other, same = program_of(typed(both.graph, X), CPU).run({"x": fed})
    np.testing.assert_array_equal(one.reshape(-1), other)
    assert not np.shares_memory(one, other)
    assert not np.shares_memory(same, fed)


def test_what_only_the_type_is_taken_of_may_be_gone() -> None:
    x = wl.sym.Variable("x")
    part = wl.sym.slice_axis_gradient(wl.sym.slice_axis(x, axis=0, end=1), wl.sym.exp(x), axis=0, end=1)
    plan = planned(wl.sym.sum(part))
    [at] = [at for at, step in enumerate(plan.steps) if step.node.op.name == "slice_axis_gradient"]
    assert len(plan.steps[at].read) == 1 < len(plan.steps[at].ins)


def perceptron() -> Graph:
    value = wl.sym.Variable("x")
    for layer in range(4):
        value = wl.sym.relu(wl.sym.fully_connected(value, units=256, name=f"fc{layer}"))
    loss = wl.sym.softmax_cross_entropy(wl.sym.fully_connected(value, units=10, name="out"), wl.sym.Variable("y"))
    known = {"x": TensorType((128, 784), "float32"), "y": TensorType((128,), "int64")}
    graph = typed(loss.mean().graph, known)
    weights = [node.name for node in graph.arguments if node.name not in known]
    return training_graph(graph, weights, heads=False).graph


def test_training_a_perceptron_takes_less_than_half_of_the_memory_of_no_plan() -> None:
    plan = Plan(perceptron())
    plan.check()
    assert plan.arena_bytes < plan.unplanned_bytes / 2


def lenet(activation: str) -> Graph:
    value = wl.sym.Variable("x")
    for layer, channels in enumerate((20, 50)):
        value = wl.sym.convolution(value, channels=channels, kernel_size=(5, 5), name=f"conv{layer}")
        value = getattr(wl.sym, activation)(value)
        value = wl.sym.max_pool(value, kernel_size=(2, 2), stride=(2, 2))
    value = getattr(wl.sym, activation)(wl.sym.fully_connected(value, units=500, name="fc"))
    loss = wl.sym.softmax_cross_entropy(wl.sym.fully_connected(value, units=10, name="out"), wl.sym.Variable("y"))
    known = {"x": TensorType((64, 1, 28, 28), "float32"), "y": TensorType((64,), "int64")}
    graph = typed(loss.mean().graph, known)
    return training_graph(graph, [node.name for node in graph.arguments if node.name not in known], heads=False).graph


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_training_lenet_takes_at_least_two_fifths_less_memory_than_with_no_plan(activation: str) -> None:
    program = program_of(lenet(activation), CPU)
    program.plan.check()
    assert program.explain().saved >= 0.4
    assert program.arena_bytes <= 1.1 * program.plan.peak()[1]


def test_memory_is_borrowed_by_the_first_run_and_not_before() -> None:
    place = Device("cpu", 61)
    x = wl.sym.Variable("x")
    program = Program(typed(wl.sym.sum(wl.sym.matmul(x, x)).graph, X), place)
    frame = program.start()
    frame.feed("x", np.ones((64, 64), np.float32))
    frame.finish()
    assert arena_of(place).free_bytes == 0
    program.run({"x": np.ones((64, 64), np.float32)})
    assert arena_of(place).free_bytes >= program.arena_bytes > 0


def test_blocks_that_grow_step_by_step_are_few() -> None:
    arena = Arena(CPU)
    sizes = set()
    for nbytes in range(1000, 100_000, 1000):
        block = arena.borrow(nbytes)
        sizes.add(block.nbytes)
        arena.give_back(block)
    assert len(sizes) <= 8
    assert arena.free_bytes == max(sizes)
