"""Graphs as JSON: what is read back is what was written, the format stays, and no file does harm."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import windlass as wl
from windlass_graph import graph_file
from windlass_graph.build import fresh_names
from windlass_graph.symbol import Symbol

GOLDEN = Path(__file__).parent / "golden" / "graph_version_1.json"


def net() -> Symbol:
    """Every kind of attribute: numbers, flags, infinities, sequences, text, nothing, arrays."""
    x = wl.sym.Variable("data", shape=(None, 1, 6, 6), dtype="float32")
    with wl.sym.Prefix("net_"), wl.sym.Labels(stage="1"):
        y = wl.sym.convolution(x, kernel_size=(3, 3), channels=2, name="conv", labels={"lr_mult": "0.1"})
        y = wl.sym.batch_norm(y, name="norm")
        y = wl.sym.clip(y * np.float64(2.5), low=-math.inf, high=1.5, name="clip")
        y = wl.sym.minimum(wl.sym.mean(y, axis=(2, 3), name="pool"), np.array([1.0, math.inf], "float32"))
        y = wl.sym.dropout(y, p=0.25, name="drop")
    found: Symbol = wl.sym.softmax_output(y, name="softmax")
    return wl.sym.Group([found, wl.sym.cast(y, dtype="float16", name="half")])


def computed(symbol: Symbol) -> list[Any]:
    exe = symbol.simple_bind(data=(2, 1, 6, 6))
    random = np.random.default_rng(0)
    for array in exe.arg_arrays:
        array[:] = random.normal(size=array.shape)
    return [out.numpy() for out in exe.forward()]


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    symbol = net()
    symbol.save(tmp_path / "net.json")
    back = wl.sym.load(tmp_path / "net.json")
    assert back.tojson() == symbol.tojson() == wl.sym.fromjson(symbol.tojson()).tojson()
    assert back.list_arguments() == symbol.list_arguments()
    assert back.list_auxiliary_states() == ["net_norm_moving_mean", "net_norm_moving_variance"]
    assert back.attr_dict() == symbol.attr_dict()
    assert back.attr_dict()["net_conv_weight"]["lr_mult"] == "0.1"
    for one, other in zip(computed(symbol), computed(back), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_format_of_version_1_stays() -> None:
    """A file of an earlier release is read; what is written has the same meaning."""
    symbol = wl.sym.load(GOLDEN)
    assert json.loads(symbol.tojson()) == json.loads(GOLDEN.read_text(encoding="utf-8"))
    [out] = symbol.eval(x=np.array([[0.5, -2.0, 8.0]], "float32"), fc_weight=np.eye(3)[:2], fc_bias=np.ones(2))
    np.testing.assert_allclose(out, [[4.5, -3.0]])


def test_names_of_new_nodes_avoid_those_that_were_read() -> None:
    with fresh_names():
        text = wl.sym.tanh(wl.sym.Variable("x"), name="tanh70").tojson()
        assert wl.sym.tanh(wl.sym.fromjson(text)).name == "tanh71"


def node(**fields: Any) -> dict[str, Any]:
    return {"op": "relu", "name": "n", "inputs": [[0, 0]], **fields}


def text_of(*nodes: Any, outputs: Any = None, **more: Any) -> str:
    whole = [
        {"op": "variable", "name": "x", "attrs": {"auxiliary": False}, "shape": [2, 3], "dtype": "float32"},
        *nodes,
    ]
    listed = [[len(whole) - 1, 0]] if outputs is None else outputs
    return json.dumps({"format": "windlass graph", "version": 1, "nodes": whole, "outputs": listed} | more)


def array(**fields: Any) -> dict[str, Any]:
    value = {"array": {"dtype": "float32", "shape": [2], "data": [1, 2], **fields}}
    return {"op": "constant", "name": "c", "attrs": {"value": value, "weak": False}}


DEEP = "[" * 100_000

WRONG = [
    ("", wl.CorruptionError, "no graph's JSON"),
    (DEEP, wl.CorruptionError, "no graph's JSON"),
    ("[1]", wl.CorruptionError, "no windlass graph"),
    ('{"format": NaN}', wl.CorruptionError, "NaN is no JSON"),
    (text_of(format="other"), wl.CorruptionError, "no windlass graph"),
    (text_of(version=2), wl.UsageError, r"version=2, known=1"),
    (text_of(version=None), wl.UsageError, r"version=None"),
    (text_of(nodes=[]), wl.CorruptionError, "number of nodes"),
    (text_of(nodes={}), wl.CorruptionError, "no lists"),
    (text_of(outputs=[]), wl.CorruptionError, "no output"),
    (text_of(outputs=[[1, 0]]), wl.CorruptionError, "no node before it"),
    (text_of(outputs=[[0, 1]]), wl.CorruptionError, "no such output"),
    (text_of(outputs=[[0, True]]), wl.CorruptionError, "no pair"),
    (text_of(3), wl.CorruptionError, r"a node is no object.*node 1"),
    (text_of(node(op="rleu")), wl.UsageError, r"no op 'rleu'. Did you mean relu\?"),
    (text_of(node(op=["relu"])), wl.CorruptionError, "op is no name"),
    (text_of(node(name="")), wl.CorruptionError, "name is wrong"),
    (text_of(node(name="x")), wl.UsageError, "two nodes are called 'x'"),
    (text_of(node(inputs=[[1, 0]])), wl.CorruptionError, "a cycle"),
    (text_of(node(inputs=[[0, 0], [0, 0]])), wl.UsageError, "relu takes 1 inputs, got 2"),
    (text_of(node(inputs="x")), wl.CorruptionError, "inputs are no list"),
    (text_of(node(labels={"a": 1})), wl.CorruptionError, "labels"),
    (text_of(node(attrs={"slope": 1})), wl.UsageError, "no attribute 'slope'"),
    (text_of(node(op="leaky_relu", attrs={"slope": "a"})), wl.CorruptionError, "another kind"),
    (text_of(node(op="leaky_relu", attrs={"slope": True})), wl.CorruptionError, "another kind"),
    (text_of(node(op="leaky_relu", attrs={"slope": {"float": "1"}})), wl.CorruptionError, "no attribute"),
    (text_of(node(op="sum", attrs={"axis": 7})), wl.UsageError, "sum 'n' does not take these"),
    (text_of(node(op="sum", attrs={"axis": "no"})), wl.CorruptionError, "none that its op takes"),
    (text_of(node(op="sum", attrs={"axis": 10**30})), wl.CorruptionError, "too large"),
    (text_of(node(op="reshape", attrs={"shape": [[1]]})), wl.UsageError, "reshape 'n' does not take"),
    (text_of(node(op="cast", attrs={"dtype": "object"})), wl.CorruptionError, "this is no dtype"),
    (text_of(node(op="fully_connected", attrs={"units": 4})), wl.UsageError, "takes 3 inputs, got 1"),
    (text_of(node(op="variable")), wl.CorruptionError, "a variable has inputs"),
    (text_of(node(op="variable", inputs=[], shape=[-1])), wl.CorruptionError, "no shape"),
    (text_of(node(op="variable", inputs=[], dtype="object")), wl.CorruptionError, "no dtype"),
    (text_of(array(data=[1])), wl.CorruptionError, "another length"),
    (text_of(array(data=[1, "x"])), wl.CorruptionError, "another kind"),
    (text_of(array(dtype="int8", data=[1, 300])), wl.CorruptionError, "does not fit its dtype"),
    (text_of(array(dtype="int8", data=[1, 1.5])), wl.CorruptionError, "another kind"),
    (text_of(array(shape=[2**62, 2**62])), wl.CorruptionError, "another length"),
    (text_of(array(shape=None)), wl.CorruptionError, "type is not told"),
    (text_of(node(op="constant", inputs=[], attrs={"value": 1})), wl.CorruptionError, "constant is no array"),
]


@pytest.mark.parametrize(("text", "error", "says"), WRONG, ids=[says for _, _, says in WRONG])
def test_wrong_texts_are_refused_in_words(text: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        wl.sym.fromjson(text)


def test_wrong_files_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(wl.CorruptionError, match=r"cannot be read.*No such file"):
        wl.sym.load(tmp_path / "missing.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(wl.CorruptionError, match="no text"):
        wl.sym.load(tmp_path / "bytes.json")
    monkeypatch.setattr(graph_file, "FILE_BYTES_MAX", 10)
    (tmp_path / "large.json").write_text(text_of())
    with pytest.raises(wl.CorruptionError, match=r"too large.*bytes_max=10"):
        wl.sym.load(tmp_path / "large.json")
    with pytest.raises(wl.CorruptionError, match="too long"):
        wl.sym.fromjson(text_of())


def test_what_no_file_can_carry_is_refused_when_it_is_written() -> None:
    class Twice(wl.autograd.Function):
        def forward(self, *inputs: Any) -> Any:
            return inputs[0] * 2

        def backward(self, *grads: Any) -> Any:
            return grads[0] * 2

    x = wl.sym.Variable("x", shape=(2,))
    with pytest.raises(wl.UsageError, match=r"function of your own"):
        Twice()(x).tojson()
    with pytest.raises(wl.UsageError, match=r"too large.*elements=70000"):
        (x + np.zeros((35_000, 2))).tojson()


PARTS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_text_with_any_part_replaced_is_read_or_refused_in_words(data: st.DataObject) -> None:
    record = json.loads(net().tojson())
    place: Any = record
    for _ in range(data.draw(st.integers(1, 6))):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if not isinstance(place[key], dict | list) or not place[key]:
            break
        inner = place[key]
        if data.draw(st.booleans()):
            place = inner
    keys = list(place) if isinstance(place, dict) else list(range(len(place)))
    place[data.draw(st.sampled_from(keys))] = data.draw(PARTS)
    with contextlib.suppress(wl.CorruptionError, wl.UsageError):  # anything else is a bug
        wl.sym.fromjson(json.dumps(record)).list_arguments()
