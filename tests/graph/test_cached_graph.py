"""A traced function gives what it gives at once: values, gradients, gradients of gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph import functions as F  # noqa: N812 - as it is called in the field
from windlass_graph.arena import arena_of
from windlass_graph.array import Array
from windlass_graph.cached_graph import CachedGraph
from windlass_graph.symbol import Symbol, Variable
from windlass_proto.errors import UsageError

SHAPES = {"w1": (6, 4), "b1": (6,), "w2": (3, 6), "b2": (3,)}


def layers(x: Any, p: Mapping[str, Any]) -> Any:
    hidden = F.tanh(F.fully_connected(x, p["w1"], p["b1"], units=6))
    return F.fully_connected(hidden, p["w2"], p["b2"], units=3)


def traced() -> CachedGraph:
    parameters = {name: Variable(name) for name in SHAPES}
    return CachedGraph(lambda inputs: [layers(inputs[0], parameters)])


@pytest.fixture
def parameters() -> dict[str, Array]:
    random = np.random.default_rng(0)
    found = {name: wl.nd.array(random.normal(size=shape).astype(np.float32)) for name, shape in SHAPES.items()}
    for array in found.values():
        array.attach_grad()
    return found


def batch(rows: int) -> Array:
    return wl.nd.array(np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32))


def gradients(output: Callable[[], Array], parameters: Mapping[str, Array]) -> tuple[list[str], list[Any]]:
    """Names in the order in which their gradients were complete, and the gradients."""
    with wl.autograd.record():
        loss = (output() ** 2).mean()
    order: list[str] = []
    names = {id(array): name for name, array in parameters.items()}
    wl.autograd.backward([loss], final=lambda array: order.append(names[id(array)]))
    return order, [np.array(array.grad) for array in parameters.values()]


def test_values_and_gradients_are_those_of_the_imperative_call(parameters: dict[str, Array]) -> None:
    graph = traced()
    at_once = gradients(lambda: layers(batch(5), parameters), parameters)
    cached = gradients(lambda: graph([batch(5)], parameters)[0][0], parameters)
    for one, other in zip(at_once[1], cached[1], strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(graph([batch(5)], parameters)[0][0], layers(batch(5), parameters), rtol=1e-6)


def test_each_gradient_is_told_once_and_those_of_the_last_layer_first(parameters: dict[str, Array]) -> None:
    graph = traced()
    order, _ = gradients(lambda: graph([batch(5)], parameters)[0][0], parameters)
    assert sorted(order) == sorted(SHAPES)
    assert set(order[:2]) == {"w2", "b2"}


def test_a_parameter_that_two_calls_use_is_told_when_both_have_given_their_part(parameters: dict[str, Array]) -> None:
    graph = traced()

    def twice() -> Array:
        found: Array = graph([batch(5)], parameters)[0][0] + graph([batch(5) * 2], parameters)[0][0]
        return found

    order, found = gradients(twice, parameters)
    _, wanted = gradients(lambda: layers(batch(5), parameters) + layers(batch(5) * 2, parameters), parameters)
    assert sorted(order) == sorted(SHAPES)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_signature_is_compiled_once_and_lengths_share_one_block(parameters: dict[str, Array]) -> None:
    graph = traced()
    arena = arena_of(wl.cpu(0))
    while arena.free_bytes:
        arena.borrow(0)
    longest = 0
    for rows in (3, 50, 7, 20, 50, 3):
        gradients(lambda rows=rows: graph([batch(rows)], parameters)[0][0], parameters)  # type: ignore[misc]
        longest = max(longest, arena.free_bytes)
    assert graph.signatures == 4
    assert arena.free_bytes == longest, "six runs of four lengths need the memory of the longest"


def test_gradients_can_be_differentiated_through_a_cached_call() -> None:
    x = wl.nd.array(np.linspace(-1, 1, 5))
    x.attach_grad()
    graph = CachedGraph(lambda inputs: [F.sum(F.tanh(inputs[0]) * inputs[0])])
    found = []
    for call in (lambda v: F.sum(F.tanh(v) * v), lambda v: graph([v], {})[0][0]):
        with wl.autograd.record():
            slope = wl.autograd.grad(call(x), x, create_graph=True)
            squares = (slope * slope).sum()
        squares.backward()
        found.append(np.array(x.grad))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-9)


def test_a_retained_tape_is_walked_again_with_the_same_random_numbers() -> None:
    x = wl.nd.array(np.arange(1.0, 65.0))
    x.attach_grad()
    graph = CachedGraph(lambda inputs: [F.dropout(inputs[0], p=0.5) * inputs[0]])
    with wl.autograd.record():
        total = graph([x], {})[0][0].sum()
    total.backward(retain_graph=True)
    first = np.array(x.grad)
    total.backward()
    np.testing.assert_array_equal(first, np.array(x.grad))
    assert 0 < np.count_nonzero(first) < first.size


def test_a_mode_is_a_signature_of_its_own() -> None:
    x = wl.nd.ones((1000,))
    graph = CachedGraph(lambda inputs: [F.dropout(inputs[0], p=0.5)])
    with wl.autograd.train_mode():
        dropped = np.asarray(graph([x], {})[0][0])
    assert 300 < np.count_nonzero(dropped == 0) < 700
    np.testing.assert_array_equal(graph([x], {})[0][0], np.ones(1000))


def test_inputs_that_do_not_fit_are_refused_with_the_node_and_the_line(parameters: dict[str, Array]) -> None:
    with pytest.raises(UsageError, match=r"fully_connected.*7 features.*test_cached_graph.py:\d+"):
        traced()([wl.nd.ones((2, 7))], parameters)


def test_a_foreign_parameter_is_refused(parameters: dict[str, Array]) -> None:
    def foreign(inputs: Sequence[Symbol]) -> Sequence[Symbol]:
        found: Symbol = inputs[0] * Variable("other", (1,), "float32")
        return [found]

    with pytest.raises(UsageError, match=r"not its own.*other"):
        CachedGraph(foreign)([batch(2)], parameters)


def test_a_traced_function_explains_each_signature(parameters: dict[str, Array]) -> None:
    graph = traced()
    graph([batch(2)], parameters)
    with wl.autograd.record():
        graph([batch(5)], parameters)
    found = graph.explain()
    assert list(found) == ["float32(2, 4): prediction", "float32(5, 4): training"]
    assert found["float32(5, 4): training"].steps["fully_connected"] == 2


def test_what_is_computed_again_changes_memory_and_not_gradients(parameters: dict[str, Array]) -> None:
    symbols = {name: Variable(name) for name in SHAPES}

    def deep(x: Any) -> Any:
        for _ in range(12):
            x = F.sin(F.tanh(x))
        return x

    def trained(policy: str | None) -> tuple[int, list[Any]]:
        graph = CachedGraph(lambda inputs: [deep(F.multiply(inputs[0], symbols["b2"]))], recompute=policy)
        _, grads = gradients(
            lambda: graph([wl.nd.array(np.full((64, 1), 0.3, np.float32))], parameters)[0][0], parameters
        )
        [explanation] = graph.explain().values()
        return explanation.arena_bytes, grads

    (plain_bytes, plain), (again_bytes, again) = trained(None), trained("sqrt")
    assert again_bytes < plain_bytes
    for one, other in zip(plain, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_gradient_that_is_written_is_computed_where_it_is_kept(parameters: dict[str, Array]) -> None:
    """And one that is added beside it."""
    graph = traced()
    gradients(lambda: graph([batch(5)], parameters)[0][0], parameters)
    (call,) = graph._calls.values()
    joint, program = call._training_program()
    late = program.plan.late_outputs
    assert not any(late[: joint.outputs])
    assert all(late[joint.outputs + len(joint.updated) :])
    parameters["w1"].attach_grad("add")
    once = gradients(lambda: graph([batch(5)], parameters)[0][0], parameters)[1][0]
    twice = gradients(lambda: graph([batch(5)], parameters)[0][0], parameters)[1][0]
    np.testing.assert_allclose(twice, 2 * once, rtol=1e-6)
