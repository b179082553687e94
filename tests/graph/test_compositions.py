"""Attention of several heads and stacks of recurrent layers, against their definitions by NumPy, on both fronts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.graph.cases.attention import attend
from tests.graph.cases.recurrent import GATES, stepwise
from tests.graph.op_case import Values, drawn
from windlass_graph.array import array_of
from windlass_graph.attention import multi_head_attention
from windlass_graph.compile import compiled
from windlass_graph.graph import Graph
from windlass_graph.recurrent import recurrent
from windlass_graph.symbol import Variable
from windlass_graph.tensor_type import type_of
from windlass_proto.errors import UsageError


def both_fronts(compose: Any, ins: list[Values]) -> list[Values]:
    """What `compose(operands)` gives on arrays, after it gave the same on symbols."""
    at_once = [np.asarray(one) for one in compose([array_of(each) for each in ins])]
    names = [f"in{i}" for i in range(len(ins))]
    symbols = compose([Variable(name) for name in names])
    known = {name: type_of(each) for name, each in zip(names, ins, strict=True)}
    program = compiled(Graph([symbol.value for symbol in symbols]), known)
    for found, expected in zip(program.run(dict(zip(names, ins, strict=True))), at_once, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12)
    return at_once


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_each_head_attends_with_its_own_rows_of_the_projections(heads: int) -> None:
    q, kv = drawn(2, 3, 5), drawn(2, 4, 5, seed=1)
    weights = [drawn(8, 5, seed=2), drawn(8), drawn(8, 5, seed=3), drawn(8), drawn(8, 5, seed=4), drawn(8),
               drawn(6, 8, seed=5), drawn(6)]  # fmt: skip
    mask = np.array([[1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 0]])

    def compose(operands: Any) -> Any:
        return [multi_head_attention(operands[0], operands[1], operands[1], operands[2:10], heads=heads,
                                     mask=operands[10])]  # fmt: skip

    (found,) = both_fronts(compose, [q, kv, *weights, mask])
    each = 8 // heads
    joined = np.concatenate(
        [
            attend(*(source @ w[rows].T + b[rows] for source, w, b in zip(
                (q, kv, kv), weights[0:6:2], weights[1:6:2], strict=True)), mask)
            for rows in (slice(k * each, (k + 1) * each) for k in range(heads))
        ], axis=-1,
    )  # fmt: skip
    np.testing.assert_allclose(found, joined @ weights[6].T + weights[7], atol=1e-12)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", GATES)
def test_a_stack_hands_each_layer_what_both_directions_of_the_one_before_gave(kind: str, bidirectional: bool) -> None:
    directions, units, rows = (2 if bidirectional else 1), 3, GATES[kind] * 3
    x = drawn(4, 2, 5)
    shapes = [
        shape
        for layer in range(2)
        for _ in range(directions)
        for shape in ((rows, 5 if layer == 0 else units * directions), (rows, units), (rows,), (rows,))
    ]
    weights = [drawn(*shape, seed=k) for k, shape in enumerate(shapes)]

    def compose(operands: Any) -> Any:
        out, last = recurrent(kind, operands[0], operands[1:], units=units, bidirectional=bidirectional)
        return [out, *last]

    out, *last = both_fronts(compose, [x, *weights])
    expected, states = x, []
    for layer in range(2):
        outs = []
        for direction in range(directions):
            at = 4 * (layer * directions + direction)
            found = stepwise(kind, expected, *weights[at : at + 4], reverse=direction == 1)
            one, *cell = found if kind == "lstm" else (found,)
            outs.append(one)
            states += [one[0 if direction else -1], *cell]
        expected = np.concatenate(outs, axis=2)
    for one, other in zip([out, *last], [expected, *states], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_states_go_on_where_they_stopped() -> None:
    x, weights = drawn(6, 2, 3), [drawn(*shape) for shape in ((8, 3), (8, 2), (8,), (8,))]
    operands = [array_of(each) for each in weights]
    whole, last = recurrent("lstm", array_of(x), operands, units=2)
    first, states = recurrent("lstm", array_of(x[:4]), operands, units=2)
    second, end = recurrent("lstm", array_of(x[4:]), operands, units=2, states=states)
    found = np.concatenate([np.asarray(first), np.asarray(second)])
    np.testing.assert_allclose(found, np.asarray(whole), atol=1e-12)
    for one, other in zip(end, last, strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-12)


def test_weights_that_make_no_whole_layer_are_refused() -> None:
    with pytest.raises(UsageError, match="do not make whole layers"):
        recurrent("gru", Variable("x"), [Variable("w")] * 5, units=2)
