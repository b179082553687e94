"""MXNet's symbols and arrays: nets recorded from MXNet 1.9.1 compute the same here, and no file does harm."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph import mxnet_symbols

GOLDEN = Path(__file__).parent / "golden"
CASES = [json.loads(line) for line in (GOLDEN / "mxnet_ops.jsonl").read_text(encoding="utf-8").splitlines()]


def title(case: dict[str, Any]) -> str:
    ops = [node for node in case["symbol"]["nodes"] if node["op"] != "null"]
    return f"{ops[-1]['op']}-" + "-".join(f"{key}={value}" for key, value in ops[-1].get("attrs", {}).items())


def array(listed: dict[str, Any]) -> Any:
    return np.array(listed["values"], "float32").reshape(listed["shape"])


def read(record: dict[str, Any], tmp_path: Path, shapes: Any = None) -> Any:
    path = tmp_path / "net-symbol.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    return wl.sym.load_mxnet(path, shapes)


@pytest.mark.parametrize("case", CASES, ids=title)
def test_what_mxnet_computes_is_computed_alike(case: dict[str, Any], tmp_path: Path) -> None:
    shapes = {name: tuple(listed["shape"]) for name, listed in case["inputs"].items()}
    symbol = read(case["symbol"], tmp_path, shapes)
    exe = symbol.simple_bind(grad_req="write")
    exe.copy_params_from({name: array(listed) for name, listed in case["inputs"].items()})
    outputs = exe.forward(is_train=True)
    exe.backward([array(weight) for weight in case["weights"]])
    for out, wanted in zip(outputs, case["outputs"], strict=True):
        np.testing.assert_allclose(out, array(wanted), rtol=2e-5, atol=2e-6)
    for name, wanted in case["gradients"].items():
        np.testing.assert_allclose(exe.grad_dict[name], array(wanted), rtol=1e-4, atol=1e-5, err_msg=name)
    for name, wanted in case["auxiliaries"].items():
        np.testing.assert_allclose(exe.aux_dict[name], array(wanted), rtol=1e-4, err_msg=name)


def test_a_checkpoint_of_mxnet_answers_as_it_did_there() -> None:
    symbol = wl.sym.load_mxnet(GOLDEN / "lenet-symbol.json")
    answer = json.loads((GOLDEN / "lenet-answer.json").read_text(encoding="utf-8"))
    data = array(answer["data"])
    exe = symbol.simple_bind(data=data.shape)
    exe.copy_params_from(wl.nd.load_mxnet(GOLDEN / "lenet-0000.params"))
    [out] = exe.forward(data=data)
    np.testing.assert_allclose(out, array(answer["output"]), rtol=1e-5, atol=1e-6)
    assert symbol.list_outputs() == ["softmax_output"]
    assert symbol.list_auxiliary_states() == ["bn1_moving_mean", "bn1_moving_var"]


def node(op: str, attrs: dict[str, str] | None = None, inputs: Any = ((0, 0, 0),), name: str = "n") -> dict[str, Any]:
    return {"op": op, "name": name, "attrs": attrs or {}, "inputs": [list(each) for each in inputs]}


def net(*nodes: Any, heads: Any = None, shape: str = "(0, 3)") -> dict[str, Any]:
    x = {"op": "null", "name": "x", "attrs": {"__shape__": shape, "__lr_mult__": "0.5"}, "inputs": []}
    return {"nodes": [x, *nodes], "heads": [[len(nodes), 0, 0]] if heads is None else heads}


def test_hidden_attributes_become_labels_types_and_unknown_axes(tmp_path: Path) -> None:
    symbol = read(net(node("relu", {"ctx_group": "a"})), tmp_path)
    assert symbol.attr_dict() == {"x": {"auxiliary": "False", "lr_mult": "0.5"}, "n": {"ctx_group": "a"}}
    assert symbol.shape == (None, 3)


def test_attributes_are_read_under_the_names_of_older_releases(tmp_path: Path) -> None:
    old = {"op": "Activation", "name": "n", "param": {"act_type": "relu"}, "inputs": [[0, 0]], "backward_source_id": -1}
    assert read(net(old, heads=[[1, 0]]), tmp_path).value.node.op.name == "relu"


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("record", "error", "says"),
    [
        (net(node("Custom")), wl.UsageError, r"op 'Custom' of MXNet, node 'n', has no translation"),
        (net(node("relu", {"slope": "1"})), wl.UsageError, r"relu 'n' of MXNet.*unknown \(attributes=slope\)"),
        (net(node("Activation", {"act_type": "x"})), wl.UsageError, r"act_type is unknown"),
        (net(node("LeakyReLU", {"act_type": "rrelu"})), wl.UsageError, r"LeakyReLU 'n'.*act_type=rrelu"),
        (net(node("softmax", {"temperature": "2.0"})), wl.UsageError, r"temperature is not None"),
        (net(node("SoftmaxOutput", {"use_ignore": "1"})), wl.UsageError, r"use_ignore is set"),
        (net(node("sum", {"axis": "x"})), wl.CorruptionError, r"node=n, attribute=axis, text=x"),
        (net(node("sum", {"keepdims": "2"})), wl.CorruptionError, r"attribute=keepdims"),
        (net(node("clip", {"a_min": "0"})), wl.CorruptionError, r"attribute=a_max"),
        (net(node("expand_dims", {"axis": "(1, 2)"})), wl.CorruptionError, r"attribute=axis"),
        (net(node("dot")), wl.UsageError, r"matmul takes 2 inputs, got 1"),
        (net(node("pick")), wl.UsageError, r"pick takes 2 inputs, got 1"),
        (net(node("dot", inputs=())), wl.CorruptionError, r"no inputs"),
        (
            net(node("SwapAxis", {"dim1": "0", "dim2": "7"})),
            wl.CorruptionError,
            r"attributes or inputs that its op lacks",
        ),
        (net(node("relu", inputs=((1, 0, 0),))), wl.CorruptionError, r"a cycle"),
        (net(node("relu", inputs=((0, 1, 0),))), wl.UsageError, r"reads an output that windlass lacks"),
        (net(node("relu", inputs=((0,),))), wl.CorruptionError, r"no pair of numbers"),
        (net(node("relu", name="x")), wl.UsageError, r"two nodes are called 'x'"),
        (net({"op": "relu"}), wl.CorruptionError, r"none of MXNet's"),
        (net(node("relu", {"a": 1})), wl.CorruptionError, r"not text by name"),  # type: ignore[dict-item]
        (net(heads=[]), wl.CorruptionError, r"number of nodes"),
        ({"nodes": []}, wl.CorruptionError, r"no symbol of MXNet"),
        ([], wl.CorruptionError, r"no symbol of MXNet"),
        (net(node("Reshape", {"shape": "(-3, 2)"}), shape="None"), wl.UsageError, r"give shapes="),
        (net(node("Reshape", {"shape": "(0, 0, -1)", "reverse": "True"})), wl.UsageError, r"reverse is set"),
        (
            net(node("Pooling", {"kernel": "(3,)", "stride": "(2,)", "pooling_convention": "full"}), shape="(1, 1, 4)"),
            wl.UsageError,
            r"its last window is partial.*size=4, kernel=3, stride=2",
        ),
        (
            net(node("Pooling", {"kernel": "(3,)", "stride": "(2,)", "pooling_convention": "full"}), shape="(1, 1, 0)"),
            wl.UsageError,
            r"cannot be told; give shapes=",
        ),
    ],
)
def test_wrong_symbols_are_refused_in_words(record: Any, error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        read(record, tmp_path)


def places(part: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a JSON record: what holds it, and its key there."""
    listed = part.items() if isinstance(part, dict) else enumerate(part) if isinstance(part, list) else ()
    for key, value in listed:
        yield part, key
        yield from places(value)


def test_a_symbol_with_any_part_replaced_is_read_or_refused_in_words(tmp_path: Path) -> None:
    chance = random.Random(0)
    parts = [None, True, -1, 5, 10**30, 1.5, "", "x", "(1, 2)", "(-1,)", "nan", [], [0, 0], [1, 0, 0], {"a": "b"}]
    for _ in range(400):
        record = copy.deepcopy(chance.choice(CASES)["symbol"])
        for _ in range(2):
            holder, key = chance.choice(list(places(record)))
            holder[key] = copy.deepcopy(chance.choice(parts))
        with contextlib.suppress(wl.CorruptionError, wl.UsageError):  # anything else is a bug
            read(record, tmp_path).list_arguments()


def test_files_that_are_no_symbols_are_refused_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "net-symbol.json"
    for raw in (b"", b"\xff", DEEP.encode()):
        path.write_bytes(raw)
        with pytest.raises(wl.CorruptionError, match="no symbol's JSON"):
            wl.sym.load_mxnet(path)
    with pytest.raises(wl.CorruptionError, match="No such file"):
        wl.sym.load_mxnet(tmp_path / "missing")
    with pytest.raises(wl.UsageError, match=r"no variable 'y'. Did you mean x\?|no variable 'y'"):
        read(net(node("relu")), tmp_path, {"y": (1,)})
    monkeypatch.setattr(mxnet_symbols, "FILE_BYTES_MAX", 10)
    with pytest.raises(wl.CorruptionError, match="too large"):
        read(net(node("relu")), tmp_path)


def dense(values: Any, magic: int = 0xF993FAC9, flag: int = 0, stored: int = 0) -> bytes:
    """One array as MXNet's releases have written them."""
    head = struct.pack("<I", magic)
    if magic in (0xF993FAC9, 0xF993FACA):
        head += struct.pack("<i", stored)
    axes = struct.pack(f"<i{values.ndim}q", values.ndim, *values.shape)
    if magic == values.ndim:  # before version 1
        axes = struct.pack(f"<{values.ndim}I", *values.shape)
    return head + axes + struct.pack("<iii", 1, 0, flag) + bytes(values.tobytes())


def listing(arrays: list[bytes], names: list[str], magic: int = 0x112) -> bytes:
    raw = struct.pack("<QQQ", magic, 0, len(arrays)) + b"".join(arrays) + struct.pack("<Q", len(names))
    return raw + b"".join(struct.pack("<Q", len(name.encode())) + name.encode() for name in names)


def load(raw: bytes, tmp_path: Path) -> Any:
    (tmp_path / "net.params").write_bytes(raw)
    return wl.nd.load_mxnet(tmp_path / "net.params")


VALUES = np.arange(6, dtype="float32").reshape(2, 3)


@pytest.mark.parametrize("magic", [2, 0xF993FAC8, 0xF993FAC9, 0xF993FACA])
def test_arrays_of_every_version_are_read(magic: int, tmp_path: Path) -> None:
    found = load(listing([dense(VALUES, magic)], ["arg:w"]), tmp_path)
    np.testing.assert_array_equal(found["w"], VALUES)


@pytest.mark.parametrize(
    ("flag", "dtype"), [(0, "f4"), (1, "f8"), (2, "f2"), (3, "u1"), (4, "i4"), (5, "i1"), (6, "i8"), (7, "?")]
)
def test_arrays_of_every_dtype_are_read(flag: int, dtype: str, tmp_path: Path) -> None:
    found = load(listing([dense(VALUES.astype(dtype), flag=flag)], []), tmp_path)["0"]
    np.testing.assert_array_equal(found, VALUES.astype(dtype))
    assert found.dtype == np.dtype(dtype)


def test_a_scalar_of_numpys_semantics_is_read(tmp_path: Path) -> None:
    assert load(listing([dense(np.float32(3), 0xF993FACA)], ["s"]), tmp_path)["s"].item() == 3


@pytest.mark.parametrize(
    ("raw", "error", "says"),
    [
        (b"", wl.CorruptionError, "ends too early"),
        (listing([], [], magic=0x113), wl.CorruptionError, "no file of MXNet's arrays"),
        (listing([dense(VALUES)], ["w"])[:-40], wl.CorruptionError, r"ends too early.*wanted="),
        (struct.pack("<QQQ", 0x112, 0, 2**60), wl.CorruptionError, "too many arrays"),
        (listing([dense(VALUES)], ["w", "b"]), wl.CorruptionError, "names are not as many"),
        (listing([dense(VALUES), dense(VALUES)], ["arg:w", "aux:w"]), wl.UsageError, "two arrays.*'w'"),
        (listing([dense(VALUES, stored=1)], ["w"]), wl.UsageError, "sparse.*storage=row_sparse"),
        (listing([dense(VALUES, flag=12)], ["w"]), wl.UsageError, "none that windlass reads.*flag=12"),
        (struct.pack("<QQQIiiq", 0x112, 0, 1, 0xF993FAC9, 0, 1, -5) + bytes(99), wl.CorruptionError, "negative length"),
        (struct.pack("<QQQIii", 0x112, 0, 1, 0xF993FAC9, 0, 99) + bytes(99), wl.CorruptionError, "rank is wrong"),
        (struct.pack("<QQQIii", 0x112, 0, 1, 0xF993FAC9, 0, 0) + bytes(99), wl.CorruptionError, "never filled"),
        (
            struct.pack("<QQQIiiqqiii", 0x112, 0, 1, 0xF993FAC9, 0, 2, 2**62, 2**62, 1, 0, 0),
            wl.CorruptionError,
            "ends too early",
        ),
        (listing([dense(VALUES)], ["w"])[:-1] + b"\xff", wl.CorruptionError, "a name is no text"),
    ],
)
def test_wrong_arrays_are_refused_in_words(raw: bytes, error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        load(raw, tmp_path)
