"""Passes change how a graph is run and not what it gives: random graphs with and without each, and what each does."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings

import windlass as wl
from tests.graph.random_graphs import Sample, samples
from windlass_graph.compile import PASSES, Pass
from windlass_graph.device import CPU
from windlass_graph.graph import Graph, verify
from windlass_graph.inference import typed
from windlass_graph.passes.fold import fold
from windlass_graph.passes.fuse import fuse
from windlass_graph.passes.merge import merge
from windlass_graph.program import Program
from windlass_graph.symbol import Symbol
from windlass_graph.tensor_type import TensorType

# What may differ, relative to 1, in units of the dtype's precision; 0 is equal bit for bit (but for the sign of 0).
ALL_ULPS = 4
ULPS: dict[Pass, int] = {fold: 0, merge: 0, fuse: 4}
X = TensorType((2, 3), "float32")


def agree(sample: Sample, passes: Sequence[Pass], ulps: int) -> None:
    """Forward and gradients of a sample are the same with these passes."""
    plain = changed = sample.joint.graph
    for one in passes:
        changed = one(changed)
        verify(changed)
        assert [value.type for value in changed.outputs] == [value.type for value in plain.outputs]
        assert {node.name for node in changed.variables} <= {node.name for node in plain.variables}
    with np.errstate(all="ignore"):
        expected, found = (checked(graph).run(sample.feeds) for graph in (plain, changed))
    for one_output, other in zip(expected, found, strict=True):
        if ulps == 0 or one_output.dtype.kind != "f":
            np.testing.assert_array_equal(other, one_output)
        else:
            tolerance = ulps * np.finfo(one_output.dtype).eps
            np.testing.assert_allclose(other, one_output, rtol=tolerance, atol=tolerance)


def checked(graph: Graph) -> Program:
    """A program whose plan is proved."""
    program = Program(graph, CPU)
    program.plan.check()
    return program


@pytest.mark.parametrize("one", PASSES, ids=lambda one: one.__name__)
@given(sample=samples())
@settings(max_examples=50, deadline=None)
def test_a_random_graph_gives_the_same_with_and_without_a_pass(one: Pass, sample: Sample) -> None:
    agree(sample, [one], ULPS[one])


@given(sample=samples())
@settings(max_examples=50, deadline=None)
def test_a_random_graph_gives_the_same_with_all_passes(sample: Sample) -> None:
    agree(sample, PASSES, ALL_ULPS)


def after(one: Pass, write: Callable[[Symbol], Symbol], known: TensorType = X) -> Graph:
    """The graph of `write(x)`, typed, after a pass."""
    graph = one(typed(write(wl.sym.Variable("x")).graph, {"x": known}))
    verify(graph)
    return graph


def ops(graph: Graph) -> list[str]:
    return [node.op.name for node in graph.nodes]


NOTHING: dict[str, Callable[[Symbol], Symbol]] = {
    "times one": lambda x: x * 1,
    "one times": lambda x: 1 * x,
    "plus zero": lambda x: x + 0,
    "minus zero": lambda x: x - 0,
    "over one": lambda x: x / 1,
    "to the power of one": lambda x: x**1,
    "negative twice": lambda x: wl.sym.negative(-x),
    "identity": wl.sym.identity,
    "a stopped gradient": wl.sym.block_grad,
    "zeros added": lambda x: wl.sym.zeros_like(x) + x,
    "ones multiplied": lambda x: x * wl.sym.ones_like(x),
    "a large tensor of zeros added": lambda x: x + np.zeros((2, 3), np.float32),
    "the dtype it has": lambda x: wl.sym.cast(x, dtype="float32"),
    "a wider dtype and back": lambda x: wl.sym.cast(wl.sym.cast(x, dtype="float64"), dtype="float32"),
    "the dtype of itself": lambda x: wl.sym.cast_like(x, x),
    "transposed twice": lambda x: wl.sym.transpose(wl.sym.transpose(x)),
    "another shape and back": lambda x: wl.sym.reshape(wl.sym.reshape(x, shape=(6,)), shape=(2, 3)),
    "the shape of itself": lambda x: wl.sym.reshape_like(wl.sym.flatten(x), x),
    "broadcast to its own shape": lambda x: wl.sym.broadcast_like(x, x),
    "summed to its own shape": lambda x: wl.sym.sum_to_like(x, x),
    "all of it": lambda x: wl.sym.slice_axis(x, axis=0, begin=0, end=2),
    "joined with nothing": lambda x: wl.sym.concat(x, axis=0),
    "dropout in prediction": lambda x: wl.sym.dropout(x, training=False),
}


@pytest.mark.parametrize("write", NOTHING.values(), ids=NOTHING)
def test_what_changes_nothing_is_folded_away(write: Callable[[Symbol], Symbol]) -> None:
    assert ops(after(fold, write)) == ["variable"]


def test_what_changes_the_dtype_or_the_shape_stays() -> None:
    assert "multiply" in ops(after(fold, lambda x: x * np.ones((2, 3), np.float64)))
    assert "add" in ops(after(fold, lambda x: x + np.zeros((4, 2, 3), np.float32)))
    assert "cast" in ops(after(fold, lambda x: wl.sym.cast(wl.sym.cast(x, dtype="float16"), dtype="float32")))
    assert "multiply" in ops(after(fold, lambda x: x * 0))


def test_constants_are_computed_once() -> None:
    graph = after(fold, lambda x: x + wl.sym.exp(wl.sym.ones_like(x) * 2))
    assert ops(graph) == ["variable", "constant", "add"]
    [number] = [node.attrs["value"].array for node in graph.nodes if node.op.name == "constant"]
    assert number.shape == ()
    assert number == np.exp(np.float32(2))


def test_a_constant_larger_than_64_kib_is_not_made_of_a_small_one() -> None:
    graph = after(fold, lambda x: wl.sym.broadcast_to(wl.sym.sum(wl.sym.zeros_like(x)), shape=(300, 300)))
    assert ops(graph) == ["constant", "broadcast_to"]


def test_views_of_views_are_one_view() -> None:
    graph = after(fold, lambda x: wl.sym.expand_dims(wl.sym.flatten(wl.sym.reshape(x, shape=(3, 2))), axis=0))
    assert ops(graph) == ["variable", "reshape"]


def test_a_transpose_that_moves_axes_of_one_is_a_view() -> None:
    graph = after(fold, lambda x: wl.sym.transpose(x, axes=(1, 0, 2)), TensorType((4, 1, 3), "float32"))
    assert ops(graph) == ["variable", "reshape"]


def test_what_only_the_type_was_taken_of_is_not_waited_for() -> None:
    graph = after(fold, lambda x: wl.sym.broadcast_like(wl.sym.sum(x), wl.sym.exp(x)) * 1)
    assert "exp" not in ops(graph)


def test_an_elementwise_op_broadcasts_by_itself() -> None:
    graph = after(fold, lambda x: wl.sym.broadcast_like(wl.sym.sum(x), x) * x)
    assert ops(graph) == ["variable", "sum", "multiply"]


def test_like_work_is_done_once() -> None:
    graph = after(merge, lambda x: wl.sym.exp(x) * 2 + wl.sym.exp(x) * 2)
    assert sorted(ops(graph)) == ["add", "constant", "exp", "multiply", "variable"]


def test_attributes_that_python_calls_equal_are_told_apart() -> None:
    graph = after(merge, lambda x: wl.sym.clip(x, low=0.0) + wl.sym.clip(x, low=-0.0))
    assert ops(graph).count("clip") == 2


def test_random_numbers_are_drawn_as_often_as_was_written() -> None:
    def twice(x: Symbol) -> Symbol:
        both: Symbol = wl.sym.dropout(x, training=True) + wl.sym.dropout(x, training=True)
        return both

    assert ops(after(merge, twice)).count("dropout") == 2


def test_what_leads_waits_for_nothing_that_does_not() -> None:
    x = wl.sym.Variable("x")
    both = typed(Graph([wl.sym.exp(x).value, (wl.sym.exp(x) * 2).value], 1), {"x": X})
    merged = merge(both)
    assert merged.leading == 1
    assert {node.op.name for node in merged.leading_nodes} == {"variable", "exp"}
    assert ops(merged).count("exp") == 1
