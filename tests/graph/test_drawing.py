"""Graphs for people: the listing, the drawing in text, Graphviz's language; names, labels and inputs of symbols."""

from __future__ import annotations

from pathlib import Path

import pytest

import windlass as wl
from windlass_graph.symbol import Symbol


def net() -> Symbol:
    x = wl.sym.Variable("x")
    hidden = wl.sym.relu(wl.sym.fully_connected(x, units=4, name="fc"), name="act")
    found: Symbol = wl.sym.concat(wl.sym.tanh(x, name="t"), hidden, wl.sym.exp(hidden, name="e"), name="all")
    return found


def test_the_drawing_shows_every_value_that_is_still_to_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    net().print(x=(2, 3))
    assert capsys.readouterr().out == (
        "●      x (2, 3)\n"
        "├─●    t tanh (2, 3)\n"
        "● │    fc fully_connected units=4 (2, 4)  [fc_weight (4, 3), fc_bias (4,)]\n"
        "● │    act relu (2, 4)\n"
        "├─┼─●  e exp (2, 4)\n"
        "●─┴─╯  all concat (2, 11)\n"
    )


def test_the_listing_has_a_line_for_each_node() -> None:
    assert net().debug_str().splitlines() == [
        "x = variable() -> ?(?)",
        "t = tanh(x) -> ?(?)",
        "fc_weight = variable() -> ?(4, ?)",
        "fc_bias = variable() -> ?(4,)",
        "fc = fully_connected(x, fc_weight, fc_bias, units=4) -> ?(?, 4)",
        "act = relu(fc) -> ?(?, 4)",
        "e = exp(act) -> ?(?, 4)",
        "all = concat(t, act, e) -> ?(?)",
        "outputs: all",
    ]


def test_graphviz_gets_boxes_edges_and_types(tmp_path: Path) -> None:
    text = wl.sym.exp(wl.sym.Variable('say "x"'), name="e").draw(tmp_path / "net.dot", **{'say "x"': (2,)})
    assert (tmp_path / "net.dot").read_text(encoding="utf-8") == text
    assert text.startswith("digraph")
    assert text.endswith("}\n")
    assert 'n0 [shape=ellipse, label="say \\"x\\"\\n?(2,)"];' in text
    assert 'n1 [shape=box, label="e\\nexp\\n?(2,)", penwidth=2];' in text
    assert 'n0 -> n1 [label="?(2,)"];' in text


def test_prefixes_and_labels_hold_for_what_is_made_inside() -> None:
    with wl.sym.Prefix("a_"), wl.sym.Labels(group="1", lr_mult="2"):
        x = wl.sym.Variable("x")
        with wl.sym.Prefix("b_"):
            y = wl.sym.fully_connected(x, units=2, name="fc", labels={"lr_mult": "0.1"})
    assert y.name == "a_b_fc"
    assert y.list_inputs() == ["x", "a_b_fc_weight", "a_b_fc_bias"]
    assert (x.attr("lr_mult"), y.attr("lr_mult"), y.attr("group")) == ("2", "0.1", "1")
    assert y.attr_dict()["a_b_fc_weight"]["lr_mult"] == "0.1"
    assert wl.sym.relu(y, name="r").attr("group") is None
    with pytest.raises(wl.UsageError, match=r"label 'lr_mult' is no text"):
        wl.sym.Variable("x", labels={"lr_mult": 1})  # type: ignore[dict-item]


def test_children_are_what_a_node_reads() -> None:
    children = net().get_children()
    assert children is not None
    assert children.list_outputs() == ["t_output", "act_output", "e_output"]
    assert wl.sym.Variable("x").get_children() is None
