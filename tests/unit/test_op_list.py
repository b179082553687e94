"""The page of ops is the op table's."""

from __future__ import annotations

from docs import ops
from windlass_graph.op import lookup, table


def test_the_page_is_current() -> None:
    assert ops.PAGE.read_text(encoding="utf-8") == ops.page(), "run: python docs/ops.py"


def test_every_op_has_one_row_and_says_what_it_gives() -> None:
    text = ops.page()
    for name in table():
        assert text.count(f"\n| `{name}` |") == 1


def test_a_row_says_how_gradients_flow() -> None:
    assert ops.gradient(lookup("exp")) == "yes"
    assert ops.gradient(lookup("argmax")) == "none"
    assert ops.gradient(lookup("embedding")) == "yes, not by indices"
    assert ops.gradient(lookup("softmax_output_gradient")).startswith("refused: it stands for")
