"""Graphs as blocks, and blocks as graphs: called with symbols, exported, imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import windlass as wl
from windlass_graph import nn
from windlass_proto.errors import UsageError

X = np.random.default_rng(0).normal(size=(3, 1, 6, 6)).astype(np.float32)


def net() -> nn.HybridSequential:
    made = nn.HybridSequential(
        nn.Conv2D(2, 3, activation="relu"),
        nn.BatchNorm(),
        nn.Dropout(0.5),
        nn.Dense(4),
        nn.HybridLambda("relu"),
    )
    made.initialize()
    with wl.autograd.train_mode():
        made(X)
    return made


def test_a_block_of_a_symbol_is_a_symbol_whose_variables_are_its_parameters() -> None:
    symbol = net()(wl.sym.Variable("data"))
    assert symbol.list_arguments() == ["data", "0.weight", "0.bias", "1.gamma", "1.beta", "3.weight", "3.bias"]
    assert symbol.list_auxiliary_states() == ["1.running_mean", "1.running_var"]


def test_a_symbols_block_computes_what_the_symbol_does_and_learns() -> None:
    x = wl.sym.Variable("x")
    hidden = wl.sym.relu(wl.sym.fully_connected(x, units=8, name="fc1"))
    block = nn.SymbolBlock([wl.sym.fully_connected(hidden, units=2, name="fc2"), hidden], x)
    assert list(block.collect_params()) == ["fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"]
    block.initialize(wl.init.Normal(0.5))
    data = X.reshape(3, 36)
    for hybrid in (False, True):
        block.hybridize(hybrid)
        with wl.autograd.record():
            out, inner = block(data)
            total = (out + inner.sum()).sum()
        total.backward()
        values = {name: p.data().numpy() for name, p in block.collect_params().items()}
        expected = np.maximum(data @ values["fc1_weight"].T + values["fc1_bias"], 0)
        np.testing.assert_allclose(inner.numpy(), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(block.collect_params()["fc2_bias"].grad().numpy(), [3, 3])


def test_an_exported_block_comes_back_equal(tmp_path: Path) -> None:
    made = net()
    expected = made(X).numpy()
    graph, values = made.export(tmp_path / "model", X)
    assert (graph.name, values.name) == ("model-symbol.json", "model.safetensors")
    back = nn.SymbolBlock.imports(graph, "data", values)
    np.testing.assert_allclose(back(X).numpy(), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(back(X[:1]).numpy(), expected[:1], rtol=1e-4, atol=1e-5)
    assert set(back.collect_params()) == set(made.collect_params())
    back.hybridize()
    np.testing.assert_allclose(back(X).numpy(), expected, rtol=1e-5, atol=1e-6)
    before = made.collect_params()["1.running_mean"].data().numpy()
    with wl.autograd.record():
        out = back(X)
    out.backward()
    assert not np.array_equal(back.collect_params()["1.running_mean"].data().numpy(), before)
    assert back.collect_params()["0.weight"].grad().numpy().any()


def test_several_inputs_and_outputs_are_exported(tmp_path: Path) -> None:
    class Two(nn.HybridBlock):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Dense(2)

        def forward(self, x: Any, pair: Any) -> Any:
            return self.dense(x) + pair[0], pair[1] * 0.5

    block = Two()
    block.initialize()
    pair = [np.ones((3, 2), np.float32), X]
    expected = [each.numpy() for each in block(X, pair)]
    graph, values = block.export(tmp_path / "two", X, pair)
    back = nn.SymbolBlock.imports(graph, ["data0", "data1", "data2"], values)
    for found, wanted in zip(back(X, *pair), expected, strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)


def test_what_does_not_fit_a_graph_is_refused_in_words() -> None:
    symbol = wl.sym.Variable("data") * wl.sym.Variable("scale")
    with pytest.raises(UsageError, match=r"no variable 'date'.*Did you mean data"):
        nn.SymbolBlock(symbol, "date")
    with pytest.raises(UsageError, match=r"no parameter 'scal'.*Did you mean scale"):
        nn.SymbolBlock(symbol, "data", {"scal": np.ones(1)})
    with pytest.raises(UsageError, match=r"takes its inputs .*inputs=data, got=2"):
        nn.SymbolBlock(symbol, "data", {"scale": np.ones(1, np.float32)})(X, X)
